"""The tokenizer in a Hugging Face folder of a text encoder: WordPiece by our own code, any other by the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError
from ostension.files import read_json
from ostension.text.config import FastTokenizerConfig, WordPieceConfig
from ostension.text.hf_fast import FastTokenizer, special_ids
from ostension.text.tokenizer import Tokenizer
from ostension.text.wordpiece import WordPieceTokenizer, vocabulary_bytes

_SPECIAL = {"start_id": "[CLS]", "end_id": "[SEP]", "pad_id": "[PAD]", "unknown_id": "[UNK]"}


def read_tokenizer(folder: Path, vocab_size: int, context_length: int, pad_id: int) -> Tokenizer:
    """The tokenizer of a folder with `tokenizer.json`, or with `vocab.txt` and `tokenizer_config.json`.

    Raises:
        CheckpointError: if there is none, or one that we cannot repeat.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _from_vocabulary(folder, vocab_size, context_length)
    tree = read_json(path, CheckpointError)
    pieces = tree.get("model") if isinstance(tree, Mapping) else None
    if not isinstance(pieces, Mapping):
        raise CheckpointError("is not a tokenizer of the package 'tokenizers'", source=path)
    if pieces.get("type") == "WordPiece" and _is_bert(tree):
        return _word_piece(tree, path, vocab_size, context_length)
    file = json.dumps(tree, ensure_ascii=False).encode("utf-8")
    start, end = special_ids(file, path)
    config = FastTokenizerConfig(
        context_length=context_length, vocab_size=vocab_size, start_id=start, end_id=end, pad_id=pad_id
    )  # fmt: skip
    return FastTokenizer(config, file)


def _is_bert(tree: Mapping[str, Any]) -> bool:
    """Whether everything about it is as in BERT, so that our own code gives the same ids."""
    normalizer, model = tree.get("normalizer") or {}, tree["model"]
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and (tree.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and model.get("continuing_subword_prefix") == "##"
        and model.get("max_input_chars_per_word") == 100
    )


def _word_piece(tree: Mapping[str, Any], path: Path, vocab_size: int, context_length: int) -> Tokenizer:
    normalizer, vocabulary = tree["normalizer"], tree["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
        raise CheckpointError("the ids of the vocabulary are not 0, 1, 2, ...", source=path)
    lowercase = bool(normalizer.get("lowercase", True))
    accents = normalizer.get("strip_accents")
    return _made(
        pieces, path, vocab_size, context_length, lowercase=lowercase, strip_accents=lowercase if accents is None else accents,
        split_chinese=bool(normalizer.get("handle_chinese_chars", True)),
    )  # fmt: skip


def _from_vocabulary(folder: Path, vocab_size: int, context_length: int) -> Tokenizer:
    path, settings_path = folder / "vocab.txt", folder / "tokenizer_config.json"
    if not path.is_file() or not settings_path.is_file():
        raise CheckpointError(
            "holds no tokenizer", source=folder, expected="tokenizer.json, or vocab.txt and tokenizer_config.json"
        )
    settings = read_json(settings_path, CheckpointError)
    lowercase = bool(settings.get("do_lower_case", True))
    accents = settings.get("strip_accents")
    return _made(
        path.read_text(encoding="utf-8").splitlines(), path, vocab_size, context_length, lowercase=lowercase,
        strip_accents=lowercase if accents is None else bool(accents),
        split_chinese=bool(settings.get("tokenize_chinese_chars", True)),
    )  # fmt: skip


def _made(pieces: list[str], path: Path, vocab_size: int, context_length: int, **settings: bool) -> Tokenizer:
    missing = [token for token in _SPECIAL.values() if token not in pieces]
    if missing:
        raise CheckpointError(f"the vocabulary lacks {missing[0]!r}", source=path, expected="BERT's special tokens")
    values: dict[str, Any] = {name: pieces.index(token) for name, token in _SPECIAL.items()} | settings
    config = WordPieceConfig(context_length=context_length, vocab_size=vocab_size, **values)
    return WordPieceTokenizer(config, vocabulary_bytes(pieces))
