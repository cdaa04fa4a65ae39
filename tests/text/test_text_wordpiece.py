"""WordPiece: by hand, and against the package `tokenizers`."""

from __future__ import annotations

import json
import pickle

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ostension.errors import CheckpointError, LimitError
from ostension.text.hf_fast import FastTokenizer, special_ids
from ostension.text.tokenizer import FastTokenizerConfig, WordPieceConfig, load_tokenizer
from ostension.text.wordpiece import WordPieceTokenizer, vocabulary_bytes

PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "a", "cat", "##s", ",", "!", "é", "e", "##e", "x", "##x", "中",
    "i", "##̇", "ς", "σ", "##σ", "cafe", "1", "##2", "°", "-",
]  # fmt: skip
CONFIG = WordPieceConfig(context_length=12, vocab_size=30, start_id=2, end_id=3, pad_id=0, unknown_id=1)


@pytest.fixture(scope="module")
def own():
    return WordPieceTokenizer(CONFIG, vocabulary_bytes(PIECES))


def hf_file(lowercase=True, strip_accents=None):
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    special = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in (("[CLS]", 2), ("[SEP]", 3))}
    tree = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": special},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }  # fmt: skip
    return json.dumps(tree).encode()


def test_a_word_is_cut_into_the_longest_pieces_from_the_left(own):
    assert own.encode("unaffable cats, a cat!") == [4, 5, 6, 8, 9, 10, 7, 8, 11]
    assert own.decode(own.encode("unaffable cats, a cat!")) == "unaffable cats , a cat !"
    assert own("a cat").tolist() == [[2, 7, 8, 3, 0, 0, 0, 0, 0, 0, 0, 0]]


def test_a_word_that_cannot_be_cut_to_its_end_is_one_unknown(own):
    assert own.encode("catz a") == [1, 7]
    assert own.encode("x" * 100) == [15] + [16] * 99
    assert own.encode("x" * 101) == [1]


def test_special_tokens_inside_a_text_are_characters(own):
    assert 3 not in own.encode("a [SEP] cat")


@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=80, deadline=None)
@given(st.text(st.one_of(st.sampled_from("unafble cts,!éE中İΣς1 2°-\t\x00\ufffd"), st.characters(codec="utf-8")), max_size=30))
def test_ids_are_those_of_the_package_tokenizers(lowercase, text):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(hf_file(lowercase).decode())
    config = WordPieceConfig(
        context_length=12, vocab_size=30, start_id=2, end_id=3, pad_id=0, unknown_id=1, lowercase=lowercase,
        strip_accents=lowercase,
    )  # fmt: skip
    ours = WordPieceTokenizer(config, vocabulary_bytes(PIECES))
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_it_is_saved_with_its_vocabulary_and_a_changed_one_is_refused(own, tmp_path):
    own.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == own.config
    assert loaded.encode("unaffable") == own.encode("unaffable") == pickle.loads(pickle.dumps(own)).encode("unaffable")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: the file has changed since it was saved"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no vocab.txt; expected the vocabulary of a WordPiece tokenizer"):
        load_tokenizer(tmp_path)


def test_a_text_past_the_context_is_an_error_or_cut_with_the_end_token_last(own):
    with pytest.raises(LimitError, match="at most 12"):
        own("a " * 20)
    assert own.ragged("a " * 20, truncate=True)[0] == [2, *[7] * 10, 3]


def test_a_tokenizer_of_the_package_is_kept_whole(tmp_path):
    file = hf_file()
    assert special_ids(file, "here") == (2, 3)
    ours = FastTokenizer(FastTokenizerConfig(context_length=12, vocab_size=30, start_id=2, end_id=3, pad_id=0), file)
    ours.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.ragged("unaffable cats") == [[2, 4, 5, 6, 8, 9, 3]]
    assert loaded.decode([2, 8, 9, 3]) == "cats"
    (tmp_path / "tokenizer.hf.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="not a tokenizer that the package 'tokenizers' reads"):
        FastTokenizer(ours.config, b"{}")
