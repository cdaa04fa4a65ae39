"""A tokenizer that the package `tokenizers` reads (extra `towers`), for text towers of families without one of our own.

The file travels in the model folder as `tokenizer.hf.json`. Its truncation and padding are switched off: these are ours.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError, require_extra
from ostension.files import read_json, sha256_bytes, write_bytes
from ostension.text.config import FastTokenizerConfig
from ostension.text.tokenizer import FORMAT, TOKENIZER_FILE, Tokenizer

HF_FILE = "tokenizer.hf.json"


class FastTokenizer(Tokenizer):
    """A `tokenizer.json` of Hugging Face with at most one token before a text and one after it."""

    config: FastTokenizerConfig

    def __init__(self, config: FastTokenizerConfig, file: bytes):
        self.config, self.file = config, file
        self.start_id, self.end_id, self.pad_id = config.start_id, config.end_id, config.pad_id
        self._tokenizer = parse(file)

    def __reduce__(self):
        return FastTokenizer, (self.config, self.file)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `tokenizer.json` and `tokenizer.hf.json` into `folder`."""
        write_bytes(Path(folder) / HF_FILE, self.file)
        super().save(folder)

    def _leading_ids(self, text: str, limit: int | None) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _facts(self) -> dict[str, Any]:
        return {"file_sha256": sha256_bytes(self.file)}


def parse(file: bytes) -> Any:
    """The tokenizer in a file's bytes, without truncation and padding.

    Raises:
        CheckpointError: if it is none.
        MissingExtraError: without the package.
    """
    tokenizers = require_extra("tokenizers", "towers")
    try:
        found = tokenizers.Tokenizer.from_str(file.decode("utf-8"))
    except Exception as error:  # the package raises plain Exception
        raise CheckpointError(f"not a tokenizer that the package 'tokenizers' reads ({error})") from None
    found.no_truncation()
    found.no_padding()
    return found


def special_ids(file: bytes, source: object) -> tuple[int | None, int]:
    """The tokens that the file puts before (None: nothing) and after a text.

    Raises:
        CheckpointError: if it adds others.
    """
    tokenizer = parse(file)
    empty, full = tokenizer.encode("").ids, tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    if len(empty) == 2 and full == [empty[0], *plain, empty[1]]:
        return empty[0], empty[1]
    if len(empty) == 1 and full == [*plain, empty[0]]:
        return None, empty[0]
    raise CheckpointError(
        f"the tokenizer puts {len(empty)} special tokens around a text",
        source=source,
        expected="one after it, or one on each side",
    )


def read_file(folder: Path) -> bytes:
    """`tokenizer.hf.json` of a model folder, checked against the SHA-256 in our `tokenizer.json`.

    Raises:
        CheckpointError: if there is none, or if it is not the one that was saved.
    """
    path = folder / HF_FILE
    if not path.is_file():
        raise CheckpointError(f"no {HF_FILE}", source=folder, expected="the tokenizer of this model")
    found = path.read_bytes()
    saved = folder / TOKENIZER_FILE
    if saved.exists():
        tree = read_json(saved, CheckpointError)
        if isinstance(tree, dict) and tree.get("format") == FORMAT and tree.get("file_sha256") != sha256_bytes(found):
            raise CheckpointError("the file has changed since it was saved", source=path, expected=tree.get("file_sha256"))
    return found
