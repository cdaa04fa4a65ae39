"""Hugging Face mode: the ids and the padding of transformers' CLIPTokenizer."""

from __future__ import annotations

import re
import warnings

import pytest
from hard_strings import hard_strings

from ostension.text.tokenizer import TokenizerConfig, build_tokenizer

pytestmark = pytest.mark.slow  # importing transformers takes seconds


@pytest.fixture(scope="module")
def ours():
    return build_tokenizer(TokenizerConfig(mode="hf", pad="end"))


@pytest.fixture(scope="module")
def theirs(ours):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        pairs = [tuple(line.split(" ")) for line in ours.merges.lines]
        return transformers.CLIPTokenizer(vocab=ours.merges.vocabulary(), merges=pairs)


def comparable(text: str) -> str:
    """Without lone surrogates, which theirs cannot read, and special strings, which ours reads as characters."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"<\|(start|end)oftext\|>", "", text, flags=re.IGNORECASE)


def test_ids_equal_transformers_on_hard_strings(ours, theirs):
    texts = [comparable(text) for text in hard_strings(800, seed=5)]
    for text, ids in zip(texts, theirs(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert ours.encode(text) == ids, ascii(text)


def test_every_kind_of_character_has_transformers_ids(ours, theirs):
    # Characters with a case that this Python does not know yet are left out: see clean_hf.
    newer = {0x1C89, *range(0xA7CB, 0xA7DD), *range(0x10D50, 0x10D66), *range(0x16EA0, 0x16EB9)}
    codes = [code for code in [*range(0x400), *range(0x400, 0x110000, 997)] if not 0xD800 <= code < 0xE000]
    codes = [code for code in codes if code not in newer]
    texts = [f"a{chr(code)}b {chr(code)} '{chr(code)} 1{chr(code)}Σ{chr(code)}." for code in codes]
    for code, text, ids in zip(codes, texts, theirs(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert ours.encode(text) == ids, hex(code)


def test_padding_and_truncation_equal_transformers(ours, theirs):
    texts = ["a photo of a cat", "", "dog, " * 60]
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ours(texts, truncate=True).tolist() == expected


def test_the_two_modes_differ_where_the_references_do(ours, tokenizer):
    for text in ("“quoted”", "&amp;", "ＦＵＬＬ", "ΑΣ", "ﬁ"):
        assert ours.encode(text) != tokenizer.encode(text)
    for text in ("A photo of a dog.", "don't", "12 o'clock\n"):
        assert ours.encode(text) == tokenizer.encode(text)
