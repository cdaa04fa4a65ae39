"""BERT's tokenizer: a text's words, each cut into the longest pieces of a vocabulary.

Cleaning: control characters go, whitespace becomes spaces, Chinese characters stand alone, accents are taken off and
letters lower-cased as the configuration says. Words are what stands between spaces; a punctuation mark is a word of its own. A
word is cut from the left: the longest piece that is in the vocabulary, then the longest piece of the rest with "##" before
it. A word that cannot be cut to its end, or is longer than 100 characters, is the unknown token.

Where we differ from Hugging Face's on purpose: "[SEP]" and its like inside a text are ordinary characters.

Source: google-research/bert, tokenization.py; `BertNormalizer` and `BertPreTokenizer` of the package `tokenizers`, which
is the oracle of the tests.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError
from ostension.files import read_json, sha256_bytes, write_bytes
from ostension.text.config import WordPieceConfig
from ostension.text.tokenizer import FORMAT, TOKENIZER_FILE, Tokenizer

VOCABULARY = "vocab.txt"
MAX_WORD = 100
# Ranges of ideographs, as in BERT; Hangul, Hiragana and Katakana are written with spaces or are alphabets.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPieceTokenizer(Tokenizer):
    """WordPiece over the pieces of `vocab.txt`, a line each, whose number is the id."""

    config: WordPieceConfig

    # What the memory of words may hold; past it, it starts anew.
    MAX_REMEMBERED = 200_000

    def __init__(self, config: WordPieceConfig, vocabulary: bytes):
        self.config, self.vocabulary = config, vocabulary
        self.start_id, self.end_id, self.pad_id = config.start_id, config.end_id, config.pad_id
        self.pieces = vocabulary.decode("utf-8").removesuffix("\n").split("\n")
        if len(self.pieces) > config.vocab_size:
            raise CheckpointError(f"the vocabulary has {len(self.pieces)} pieces", expected=f"at most {config.vocab_size}")
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        self._remembered: dict[str, tuple[int, ...]] = {}

    def __reduce__(self):
        return WordPieceTokenizer, (self.config, self.vocabulary)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `tokenizer.json` and `vocab.txt` into `folder`."""
        write_bytes(Path(folder) / VOCABULARY, self.vocabulary)
        super().save(folder)

    def words(self, text: str) -> list[str]:
        """The words that are cut into pieces."""
        config = self.config
        cleaned = "".join(_cleaned(character, config.split_chinese) for character in text)
        if config.strip_accents:
            cleaned = "".join(c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn")
        if config.lowercase:
            cleaned = "".join(c.lower() for c in cleaned)  # one by one: no special form for a sigma that ends a word
        spaced = "".join(f" {c} " if is_punctuation(c) else c for c in cleaned)
        return spaced.split()

    def _leading_ids(self, text: str, limit: int | None) -> list[int]:
        ids: list[int] = []
        for word in self.words(text):
            known = self._remembered.get(word)
            if known is None:
                known = self._cut(word)
                if len(self._remembered) >= self.MAX_REMEMBERED:
                    self._remembered = {}
                self._remembered[word] = known
            ids += known
            if limit is not None and len(ids) >= limit:
                break
        return ids

    def _cut(self, word: str) -> tuple[int, ...]:
        unknown = (self.config.unknown_id,)
        if len(word) > MAX_WORD:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return unknown
        return tuple(found)

    def _decode(self, ids: list[int]) -> str:
        text = " ".join(self.pieces[index] if index < len(self.pieces) else "" for index in ids if index != self.pad_id)
        return text.replace(" ##", "")

    def _facts(self) -> dict[str, Any]:
        return {"vocabulary_sha256": sha256_bytes(self.vocabulary)}


def read_vocabulary(folder: Path) -> bytes:
    """`vocab.txt` of a model folder, checked against the SHA-256 in our `tokenizer.json`.

    Raises:
        CheckpointError: if there is none, or if it is not the one that was saved.
    """
    path = folder / VOCABULARY
    if not path.is_file():
        raise CheckpointError(f"no {VOCABULARY}", source=folder, expected="the vocabulary of a WordPiece tokenizer")
    found = path.read_bytes()
    saved = folder / TOKENIZER_FILE
    if saved.exists():
        tree = read_json(saved, CheckpointError)
        known = tree.get("vocabulary_sha256") if isinstance(tree, dict) and tree.get("format") == FORMAT else None
        if known not in (None, sha256_bytes(found)):
            raise CheckpointError("the file has changed since it was saved", source=path, expected=known)
    return found


def vocabulary_bytes(pieces: Sequence[str]) -> bytes:
    """`vocab.txt` of pieces in the order of their ids."""
    return ("\n".join(pieces) + "\n").encode("utf-8")


def is_punctuation(character: str) -> bool:
    """All that is neither a letter, a digit, nor a space in ASCII, and Unicode's punctuation beyond it."""
    code = ord(character)
    if code < 128:
        return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return unicodedata.category(character).startswith("P")


def _cleaned(character: str, split_chinese: bool) -> str:
    code = ord(character)
    if 32 <= code < 127:
        return character
    if character in "\t\n\r" or (character.isspace() and unicodedata.category(character) != "Cc"):
        return " "
    if code == 0xFFFD or unicodedata.category(character) in ("Cc", "Cf", "Co"):
        return ""
    if split_chinese and any(first <= code <= last for first, last in _CHINESE):
        return f" {character} "
    return character
