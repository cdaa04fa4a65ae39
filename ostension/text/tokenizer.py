"""Texts to token ids and back: CLIP's byte-pair encoding, and what every tokenizer has in common.

    tokenizer = build_tokenizer(TokenizerConfig())
    tokens = tokenizer(["a photo of a cat", "a dog"])          # (2, 77), int64
    rows = tokenizer.ragged(["a photo of a cat", "a dog"])     # the same without padding, as lists

Where we differ from OpenAI's tokenizer, on purpose: the spellings of the special tokens inside a text are tokenised as
ordinary characters (there, `<|endoftext|>` in a caption ends it early); ids are int64; a warning says how many texts were cut.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ostension.config import from_tree, to_tree
from ostension.errors import CheckpointError, ConfigError, DataError, LimitError
from ostension.files import read_json, write_json
from ostension.shapes import Int
from ostension.text.bpe import merges
from ostension.text.config import NUM_MERGES, FastTokenizerConfig, SentencePieceConfig, TokenizerConfig, WordPieceConfig
from ostension.text.words import MODES

__all__ = [
    "NUM_MERGES",
    "ClipTokenizer",
    "Piece",
    "FastTokenizerConfig",
    "SentencePieceConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerConfigs",
    "WordPieceConfig",
    "build_tokenizer",
    "load_tokenizer",
    "pack",
]

logger = logging.getLogger("ostension.text")

TOKENIZER_FILE = "tokenizer.json"
FORMAT = "ostension-tokenizer"

TokenizerConfigs = TokenizerConfig | SentencePieceConfig | WordPieceConfig | FastTokenizerConfig

# A text, or several. The run-time checker of the tests must not speak before our own message does.
if TYPE_CHECKING:
    Texts = str | Sequence[str]
else:
    Texts = Any


class Piece(NamedTuple):
    """A part of a prompt that was tokenised alone: its ids, its first and its last character ("" if it is empty)."""

    ids: list[int]
    first: str
    last: str


class Tokenizer(abc.ABC):
    """What every tokenizer offers; `B` texts become `B` rows of `T = context_length` ids.

    Attributes:
        config: what to save with the model.
        vocab_size: number of ids; the token embedding has that many rows.
        context_length: tokens in a row, start and end included.
        start_id: the token before every text, or None where the kind has none.
        end_id: the token after every text; the last one of a text that was cut.
        pad_id: what fills the row after the end.
        num_truncated: texts cut so far by this tokenizer.
    """

    config: TokenizerConfigs
    start_id: int | None
    end_id: int
    pad_id: int
    num_truncated: int = 0

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def __call__(self, texts: Texts, *, truncate: bool = False) -> Int[Tensor, "B T"]:
        """The ids of one or several texts with start, end and padding, int64.

        Raises:
            LimitError: for a text of more than `context_length` tokens, unless `truncate` cuts it. The end token stays last.
            DataError: for what is not text.
        """
        return pack(self.ragged(texts, truncate=truncate), self.pad_id, self.context_length)

    def ragged(self, texts: Texts, *, truncate: bool = False) -> list[list[int]]:
        """The ids of one or several texts with start and end but without padding; raises as `__call__` does."""
        texts = as_texts(texts)
        before = [] if self.start_id is None else [self.start_id]
        room = self.context_length - len(before) - 1
        rows, num_cut = [], 0
        for index, text in enumerate(texts):
            ids = self._leading_ids(text, room + 1)
            if len(ids) > room:
                if not truncate:
                    raise self.too_long(text, f"texts[{index}]")
                ids = ids[:room]
                num_cut += 1
            rows.append([*before, *ids, self.end_id])
        if num_cut:
            self.count_truncated(num_cut, len(texts))
        return rows

    def encode(self, text: Any) -> list[int]:
        """The ids of one text (a `str`), without start, end or limit.

        Raises:
            DataError: for what is not text.
        """
        if not isinstance(text, str):
            raise _not_text(text, "the text to encode")
        return list(self._leading_ids(text, None))

    def decode(self, ids: Any) -> str:
        """The cleaned text of `ids` (a list or a one-dimensional tensor), up to the first end token.

        Raises:
            DataError: for an id that the vocabulary does not have.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        for index in ids:
            if not isinstance(index, (int, np.integer)) or not 0 <= index < self.vocab_size:
                raise DataError(f"{index!r} is not a token id", expected=f"ids from 0 to {self.vocab_size - 1}")
        ids = itertools.takewhile(lambda index: index != self.end_id, ids)
        return self._decode([index for index in ids if index != self.start_id])

    def piece(self, text: str) -> Piece | None:
        """`text` tokenised as a part of a prompt, or None where its ids may depend on the text around it."""
        return None

    def save(self, folder: str | os.PathLike) -> None:
        """Write what `load_tokenizer` needs into `folder`: `tokenizer.json` and the files that it names."""
        write_json(Path(folder) / TOKENIZER_FILE, {"format": FORMAT, "config": to_tree(self.config), **self._facts()})

    def too_long(self, text: str, where: str) -> LimitError:
        """The error for a text that does not fit and may not be cut."""
        return LimitError(
            f"the text {_shortened(text)} has more than {self.context_length} tokens with start and end",
            source=where,
            expected=f"at most {self.context_length}",
            fix="shorten it, or ask for truncate=True",
        )

    def count_truncated(self, num_cut: int, num_texts: int) -> None:
        """Report that `num_cut` of `num_texts` texts were cut."""
        self.num_truncated += num_cut
        logger.warning("cut %d of %d texts to %d tokens", num_cut, num_texts, self.context_length)

    @abc.abstractmethod
    def _leading_ids(self, text: str, limit: int | None) -> Sequence[int]:
        """The ids of a text without specials; with a limit, at least the first `limit` of them and perhaps more."""

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of known ids without specials."""

    @abc.abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What `tokenizer.json` says beside the configuration: checksums."""


class ClipTokenizer(Tokenizer):
    """CLIP's byte-level byte-pair encoding, with the ids of OpenAI's or of Hugging Face's tokenizer (`config.mode`).

    A text is cleaned, split at spaces and then into words: contractions, runs of letters, single digits, runs of the rest.
    Neither a word nor what cleans plain ASCII reaches across a space, so the ids of what stands between two spaces are
    remembered. Most captions cost one look-up a word.

    Source: clip/simple_tokenizer.py of openai/CLIP; transformers 5 for "hf".
    """

    config: TokenizerConfig

    # What the memory of words may hold; past it, it starts anew, so that a stream of captions cannot fill the machine.
    MAX_REMEMBERED = 200_000
    MAX_REMEMBERED_LENGTH = 64

    def __init__(self, config: TokenizerConfig):
        self.config = config
        self.merges = merges(config.num_merges)
        self.start_id, self.end_id = self.merges.start_id, self.merges.end_id
        self.pad_id = 0 if config.pad == "zero" else self.end_id
        self._is_plain, self._clean, self._split = MODES[config.mode]
        self._remembered: dict[str, tuple[int, ...]] = {"": ()}

    def __reduce__(self):
        return ClipTokenizer, (self.config,)

    def clean(self, text: str) -> str:
        """The text that is split into words: one space between runs of characters, none at the ends."""
        return " ".join(text.lower().split()) if self._is_plain(text) else self._clean(text)

    def words(self, text: str) -> list[str]:
        """The words that are encoded one by one; `decode(encode(text))` gives them with single spaces between."""
        return self._split(self.clean(text))

    def piece(self, text: str) -> Piece | None:
        # Of plain ASCII, only "&" can change meaning by what follows it.
        if not (text.isascii() and text.isprintable()) or "&" in text:
            return None
        return Piece(list(self._leading_ids(text, None)), text[:1].lower(), text[-1:].lower())

    def _leading_ids(self, text: str, limit: int | None) -> list[int]:
        # With a limit only that many runs matter, for every run has a token at least.
        if self._is_plain(text):
            runs = text.lower().split(None, -1 if limit is None else limit)
        else:
            runs = self._clean(text).split(" ", -1 if limit is None else limit)
        if limit is not None:
            del runs[limit:]
        ids: list[int] = []
        remembered = self._remembered
        for run in runs:
            known = remembered.get(run)
            ids += self._encode_run(run, limit) if known is None else known
        return ids

    def _encode_run(self, run: str, limit: int | None) -> Sequence[int]:
        words = self._split(run)
        if len(words) == 1:
            return self._encode_word(words[0])
        ids: list[int] = []
        for word in words if limit is None else words[:limit]:
            ids += self._encode_word(word)
        if limit is None or len(words) <= limit:
            self._remember(run, tuple(ids))
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        known = self._remembered.get(word)
        if known is None:
            known = self.merges.encode(word)
            self._remember(word, known)
        return known

    def _remember(self, run: str, ids: tuple[int, ...]) -> None:
        if len(run) <= self.MAX_REMEMBERED_LENGTH:
            if len(self._remembered) >= self.MAX_REMEMBERED:
                self._remembered = {"": ()}
            self._remembered[run] = ids

    def _decode(self, ids: list[int]) -> str:
        return self.merges.decode(ids)

    def _facts(self) -> dict[str, Any]:
        return {"merges_sha256": self.merges.sha256}


def pack(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Int[Tensor, "B T"]:
    """Rows of ids as one int64 matrix of `length` columns (the longest row's without one), filled up with `pad_id`.

    Raises:
        LimitError: for a row of more than `length` ids.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    longest = int(lengths.max(initial=0))
    if length is None:
        length = longest
    if longest > length:
        raise LimitError(f"row {int(lengths.argmax())} has {longest} ids", expected=f"at most {length}")
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
    packed = np.full((len(rows), length), pad_id, np.int64)
    packed[np.arange(length) < lengths[:, None]] = flat
    return torch.from_numpy(packed)


def as_texts(texts: Texts) -> Sequence[str]:
    """One or several texts as a sequence of `str`; a `DataError` names the first that is not."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise _not_text(texts, "the texts")
    texts = texts if isinstance(texts, (list, tuple)) else list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _not_text(text, f"texts[{index}]")
    return texts


def build_tokenizer(config: TokenizerConfigs, folder: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of `config`.

    Args:
        folder: the model folder. A sentencepiece model, a WordPiece vocabulary and the like are read from it; a CLIP
            vocabulary that lies in it, ours or Hugging Face's, is compared with the shipped one, for another vocabulary
            would give other meanings silently.

    Raises:
        CheckpointError: if the folder's files are missing or belong to another tokenizer.
    """
    folder = None if folder is None else Path(folder)
    if not isinstance(config, TokenizerConfig):
        return _from_folder(config, folder)
    tokenizer = ClipTokenizer(config)
    if folder is not None:
        _check_vocabulary(tokenizer, folder)
    return tokenizer


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `folder`.

    Raises:
        CheckpointError: if the files are missing, changed or of another format.
    """
    path = Path(folder) / TOKENIZER_FILE
    tree = read_json(path, CheckpointError)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise CheckpointError(f"not a tokenizer of format {FORMAT!r}", source=path)
    config: TokenizerConfigs = from_tree(TokenizerConfigs, tree.get("config"), path)  # type: ignore[arg-type]
    return build_tokenizer(config, folder)


def _from_folder(config: SentencePieceConfig | WordPieceConfig | FastTokenizerConfig, folder: Path | None) -> Tokenizer:
    """A tokenizer whose pieces lie in the model folder."""
    if folder is None:
        raise ConfigError(f"a tokenizer of the kind {config.kind!r} is read from its model folder", fix="give the folder")
    if isinstance(config, WordPieceConfig):
        from ostension.text.wordpiece import WordPieceTokenizer, read_vocabulary

        return WordPieceTokenizer(config, read_vocabulary(folder))
    if isinstance(config, FastTokenizerConfig):
        from ostension.text.hf_fast import FastTokenizer, read_file

        return FastTokenizer(config, read_file(folder))
    from ostension.text.sentencepiece import SentencePieceTokenizer, read_model

    return SentencePieceTokenizer(config, read_model(folder))


def _check_vocabulary(tokenizer: ClipTokenizer, folder: Path) -> None:
    path = next((folder / name for name in (TOKENIZER_FILE, "vocab.json") if (folder / name).exists()), None)
    if path is None:
        return
    tree = read_json(path, CheckpointError)
    try:
        if tree.get("format") == FORMAT:
            expected: Any = {"config": to_tree(tokenizer.config), **tokenizer._facts()}
            found = {key: tree.get(key) for key in expected}
        else:
            vocabulary = tree["model"]["vocab"] if path.name == TOKENIZER_FILE else tree
            expected = dict(enumerate(tokenizer.merges.symbols))
            found = {index: symbol for symbol, index in vocabulary.items() if index in expected}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"not a known kind of tokenizer file ({error})", source=path) from None
    for key, value in expected.items():
        if found.get(key) != value:
            raise CheckpointError(
                f"the tokenizer is another one: {key!r} is {found.get(key)!r}", source=path, expected=f"{value!r}"
            )


def _not_text(value: object, where: str) -> DataError:
    fix = "decode it first, e.g. value.decode('utf-8')" if isinstance(value, bytes) else None
    return DataError(f"{where} is {_shortened(value)}, a {type(value).__name__}", expected="a str", fix=fix)


def _shortened(value: object, length: int = 60) -> str:
    shown = repr(value[: length + 1] if isinstance(value, (str, bytes)) else value)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."
