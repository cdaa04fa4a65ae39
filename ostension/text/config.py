"""What a tokenizer is made of, as data; saved with the model, so that a model folder says how its texts were read."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ostension.config import require

# OpenAI's list has 262,144 merges; its tokenizer reads the first 49,152 - 256 - 2 of them.
NUM_MERGES = 48_894


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """CLIP's byte-pair encoding.

    Attributes:
        mode: how text is cleaned. "openai" repairs it with ftfy, decodes HTML entities twice, collapses whitespace and
            lower-cases; "hf" does what Hugging Face's CLIPTokenizer does: NFC, whitespace, lower case. They give different
            ids for curly quotes, entities, full-width letters and the like, so the mode belongs to the weights.
        context_length: tokens in a row, the start and end tokens included.
        num_merges: merges used, from the top of OpenAI's list; the vocabulary has 512 + num_merges + 2 entries and the two
            special tokens have the highest ids. A small model takes a few thousand.
        pad: token after the end: "zero" (OpenAI) or "end" (Hugging Face repeats the end token).
    """

    kind: Literal["clip"] = "clip"
    mode: Literal["openai", "hf"] = "openai"
    context_length: int = 77
    num_merges: int = NUM_MERGES
    pad: Literal["zero", "end"] = "zero"

    def __post_init__(self):
        require(self.mode in ("openai", "hf"), "tokenizer.mode", self.mode, "'openai' or 'hf'")
        require(self.context_length >= 3, "tokenizer.context_length", self.context_length, "3 or more")
        require(0 <= self.num_merges <= NUM_MERGES, "tokenizer.num_merges", self.num_merges, f"0 to {NUM_MERGES}")
        require(self.pad in ("zero", "end"), "tokenizer.pad", self.pad, "'zero' or 'end'")

    @property
    def vocab_size(self) -> int:
        return 512 + self.num_merges + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPieceConfig:
    """BERT's tokenizer: words, then the longest pieces of a vocabulary that is stored as `vocab.txt` in the model folder.

    Attributes:
        context_length: tokens in a row, the start and end tokens included.
        lowercase: lower-case first.
        strip_accents: take accents off.
        split_chinese: every Chinese character is a word.
        start_id, end_id, pad_id, unknown_id: [CLS], [SEP], [PAD] and [UNK].
    """

    kind: Literal["wordpiece"] = "wordpiece"
    context_length: int = 512
    vocab_size: int = 30_522
    lowercase: bool = True
    strip_accents: bool = True
    split_chinese: bool = True
    start_id: int = 101
    end_id: int = 102
    pad_id: int = 0
    unknown_id: int = 100

    def __post_init__(self):
        require(self.context_length >= 3, "tokenizer.context_length", self.context_length, "3 or more")
        for name in ("start_id", "end_id", "pad_id", "unknown_id"):
            value = getattr(self, name)
            require(0 <= value < self.vocab_size, f"tokenizer.{name}", value, f"an id below vocab_size ({self.vocab_size})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastTokenizerConfig:
    """A tokenizer that the package `tokenizers` reads (extra `towers`), stored as `tokenizer.hf.json` in the model folder.

    Attributes:
        context_length: tokens in a row, the start and end tokens included.
        start_id: the token before every text, or None where the kind has none.
    """

    kind: Literal["hf_fast"] = "hf_fast"
    context_length: int
    vocab_size: int
    start_id: int | None
    end_id: int
    pad_id: int

    def __post_init__(self):
        require(self.context_length >= 3, "tokenizer.context_length", self.context_length, "3 or more")
        for name in ("start_id", "end_id", "pad_id"):
            value = getattr(self, name)
            known = value is None or 0 <= value < self.vocab_size
            require(known, f"tokenizer.{name}", value, f"an id below vocab_size ({self.vocab_size})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceConfig:
    """A sentencepiece model (SigLIP), stored as `tokenizer.model` in the model folder.

    Attributes:
        context_length: tokens in a row, the end token included.
        vocab_size: rows of the token embedding; the sentencepiece model may not have more pieces.
        lowercase: lower-case first (SigLIP 1 and 2).
        canonicalize: also turn underscores into spaces, remove ASCII punctuation and collapse whitespace (SigLIP 1).
        pad_id: id after the end; SigLIP pads with its end token (1), SigLIP 2 with 0.
        eos_id: id that ends every text.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    context_length: int = 64
    vocab_size: int = 32_000
    lowercase: bool = True
    canonicalize: bool = True
    pad_id: int = 1
    eos_id: int = 1

    def __post_init__(self):
        require(self.context_length >= 1, "tokenizer.context_length", self.context_length, "1 or more")
        require(self.vocab_size >= 1, "tokenizer.vocab_size", self.vocab_size, "1 or more")
        for name, value in (("pad_id", self.pad_id), ("eos_id", self.eos_id)):
            require(0 <= value < self.vocab_size, f"tokenizer.{name}", value, f"an id below vocab_size ({self.vocab_size})")
