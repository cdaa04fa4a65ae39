"""Placeholder of the tokenizers: their configurations are fixed, the rest follows."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ostension.config import require

NUM_MERGES = 48_894


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """CLIP's byte-pair encoding.

    Attributes:
        mode: how text is cleaned: "openai" (ftfy, HTML unescape twice, collapse, lower) or "hf" (NFC, whitespace, lower).
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
        require(self.context_length >= 3, "tokenizer.context_length", self.context_length, "3 or more")
        require(0 <= self.num_merges <= NUM_MERGES, "tokenizer.num_merges", self.num_merges, f"0 to {NUM_MERGES}")

    @property
    def vocab_size(self) -> int:
        return 512 + self.num_merges + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceConfig:
    """A sentencepiece model (SigLIP), stored as `tokenizer.model` in the model folder.

    Attributes:
        canonicalize: lower-case and remove punctuation first (SigLIP 1).
        pad_id: id after the end; SigLIP pads with its end token (1), SigLIP 2 with 0.
        eos_id: id appended to every text.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    context_length: int = 64
    vocab_size: int = 32_000
    canonicalize: bool = True
    pad_id: int = 1
    eos_id: int = 1

    def __post_init__(self):
        require(self.context_length >= 1, "tokenizer.context_length", self.context_length, "1 or more")
