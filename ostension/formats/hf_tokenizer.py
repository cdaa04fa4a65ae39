"""Tokenizer files that transformers reads: vocab.json and merges.txt for CLIP, spiece.model for SigLIP.

Hugging Face's CLIPTokenizer cleans text in its own way (NFC, no ftfy, no HTML entities), whatever the weights were trained
with; there is no file that could say otherwise, so a model in OpenAI's mode is written with a note.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ostension.files import write_bytes, write_json, write_text
from ostension.text.bpe import END, START
from ostension.text.sentencepiece import SentencePieceTokenizer
from ostension.text.tokenizer import ClipTokenizer, Tokenizer


def write(tokenizer: Tokenizer, folder: Path, *, causal: bool) -> list[str]:
    """Write the files of `tokenizer`; gives notes on what transformers will do otherwise.

    Args:
        causal: whether the text tower looks back only, so that what stands after the end token is of no effect.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _write_sentencepiece(tokenizer, folder)
    assert isinstance(tokenizer, ClipTokenizer)
    vocabulary = {symbol: index for index, symbol in enumerate(tokenizer.merges.symbols)}
    vocabulary |= {START: tokenizer.merges.start_id, END: tokenizer.merges.end_id}
    # Never "!", which is id 0: as a special token it would be cut out of every text that has one.
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "vocab.json", vocabulary)
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges.lines]) + "\n")
    write_json(folder / "special_tokens_map.json", special)
    _write_config(folder, "CLIPTokenizer", tokenizer.context_length, special | {"do_lower_case": True})
    notes = []
    if tokenizer.config.mode == "openai":
        notes.append(
            "CLIPTokenizer does not repair text as OpenAI's does: ids differ for HTML entities, curly quotes and the like"
        )
    if tokenizer.config.pad == "zero" and not causal:
        notes.append("CLIPTokenizer pads with the end token, the model was made with 0, and its text tower sees the padding")
    return notes


def _write_sentencepiece(tokenizer: SentencePieceTokenizer, folder: Path) -> list[str]:
    write_bytes(folder / "spiece.model", tokenizer.model)
    pieces = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    _write_config(folder, "SiglipTokenizer", tokenizer.context_length, pieces | {"do_lower_case": tokenizer.config.lowercase})
    if tokenizer.config.pad_id != tokenizer.config.eos_id or not tokenizer.config.canonicalize:
        return ["SiglipTokenizer removes punctuation and pads with the end token, unlike this model's tokenizer"]
    return []


def _write_config(folder: Path, kind: str, length: int, special: dict[str, Any]) -> None:
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind, "model_max_length": length, **special})
