"""SigLIP's tokenizer: a sentencepiece model, an end token that is always there, and padding.

The model is read by the package `sentencepiece` (extra `towers`) and travels in the model folder as `tokenizer.model`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError, require_extra
from ostension.files import read_json, sha256_bytes, write_bytes
from ostension.text.cleaning import clean_siglip
from ostension.text.config import SentencePieceConfig
from ostension.text.tokenizer import FORMAT, TOKENIZER_FILE, Tokenizer

# Ours and Gemma's name, then the one of Hugging Face's SigLIP folders.
MODEL_FILES = ("tokenizer.model", "spiece.model")


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with SigLIP's rules: no start token, the end token kept when a text is cut.

    Source: `get_pp_tokenize` of google-research/big_vision with eos="sticky"; SiglipTokenizer of transformers.
    """

    config: SentencePieceConfig
    start_id = None

    def __init__(self, config: SentencePieceConfig, model: bytes):
        sentencepiece = require_extra("sentencepiece", "towers")
        self.config, self.model = config, model
        self.end_id, self.pad_id = config.eos_id, config.pad_id
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(f"not a sentencepiece model: {error}") from None
        pieces = self._processor.get_piece_size()
        if pieces > config.vocab_size:
            raise CheckpointError(f"the sentencepiece model has {pieces} pieces", expected=f"at most {config.vocab_size}")

    def __reduce__(self):
        return SentencePieceTokenizer, (self.config, self.model)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `tokenizer.json` and `tokenizer.model` into `folder`."""
        write_bytes(Path(folder) / MODEL_FILES[0], self.model)
        super().save(folder)

    def clean(self, text: str) -> str:
        """The text that the sentencepiece model splits."""
        return clean_siglip(text, self.config.lowercase, self.config.canonicalize)

    def _leading_ids(self, text: str, limit: int | None) -> list[int]:
        return self._processor.encode(self.clean(text))

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _facts(self) -> dict[str, Any]:
        return {"model_sha256": sha256_bytes(self.model)}


def read_model(folder: Path) -> bytes:
    """The sentencepiece model in a model folder, checked against the SHA-256 in our `tokenizer.json` where there is one.

    Raises:
        CheckpointError: if there is none, or if it is not the one that was saved.
    """
    path = next((folder / name for name in MODEL_FILES if (folder / name).exists()), None)
    if path is None:
        raise CheckpointError("no sentencepiece model", source=folder, expected=" or ".join(MODEL_FILES))
    model = path.read_bytes()
    saved = folder / TOKENIZER_FILE
    if saved.exists():
        tree = read_json(saved, CheckpointError)
        if isinstance(tree, dict) and tree.get("format") == FORMAT and tree.get("model_sha256") != sha256_bytes(model):
            raise CheckpointError("the file has changed since it was saved", source=path, expected=tree.get("model_sha256"))
    return model
