"""CLIP's tokenizer: OpenAI's ids, limits, small vocabularies, folders."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import pickle
import time
from pathlib import Path

import pytest
import torch
from hard_strings import hard_strings
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.config import from_tree
from ostension.errors import CheckpointError, ConfigError, DataError, LimitError
from ostension.files import read_json, write_json
from ostension.text.bpe import END, START, merge_long, merges
from ostension.text.tokenizer import NUM_MERGES, TokenizerConfig, build_tokenizer, load_tokenizer, pack

CAT = [320, 1125, 539, 320, 2368]  # "a photo of a cat", from OpenAI's tokenizer


def small(**settings):
    return build_tokenizer(TokenizerConfig(**settings))


# Ids


def test_a_photo_of_a_cat_has_openais_ids(tokenizer):
    assert tokenizer.encode("a photo of a cat") == CAT
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (49408, 49406, 49407, 0)


def test_ids_equal_the_stored_ones_of_openais_tokenizer(tokenizer):
    rows = json.loads(gzip.decompress((Path(__file__).parent / "golden_tokens.json.gz").read_bytes()))
    assert len(rows) == 2000
    for text, ids in rows:
        assert tokenizer.encode(text) == ids, ascii(text)


def test_ids_equal_openais_on_fresh_strings_from_all_of_unicode(tokenizer, openai):
    for text in hard_strings(1000, seed=3, everything=True):
        assert tokenizer.encode(text) == openai.encode(text), ascii(text)


def test_every_kind_of_character_has_openais_ids_in_every_neighbourhood(tokenizer, openai):
    for code in [*range(0x250), *range(0x250, 0x110000, 1999)]:
        character = chr(code)
        text = f"a{character}b {character} '{character} 1{character}Σ{character}. {character}{character}"
        assert tokenizer.encode(text) == openai.encode(text), hex(code)


def test_special_strings_in_a_text_are_ordinary_characters(tokenizer):
    ids = tokenizer.encode("a <|endoftext|> b <|StartOfText|> <end_of_text>")
    assert tokenizer.end_id not in ids
    assert tokenizer.start_id not in ids
    assert tokenizer.decode(ids) == "a <| endoftext |> b <| startoftext |> < end _ of _ text >"


def test_vocabulary_has_the_published_sizes_and_order():
    table = merges()
    assert len(table.lines) == NUM_MERGES == 48_894
    assert table.lines[-1] == "jeky ll</w>"
    vocabulary = table.vocabulary()
    assert len(vocabulary) == 49_408
    assert (vocabulary["!"], vocabulary["!</w>"], vocabulary[START], vocabulary[END]) == (0, 256, 49406, 49407)
    assert vocabulary["cat</w>"] == 2368


@pytest.mark.parametrize("alphabet", ["ab", "a", "!.-", "etaoin", "abcdefghijklmnopqrstuvwxyz", "😂😍", "漢字é"])
def test_long_words_merge_as_short_ones_do(alphabet):
    table = merges()
    for length in (1, 2, 3, 7, 40, 150):
        word = "".join(alphabet[(index * index + index // 3) % len(alphabet)] for index in range(length))
        ids = [table._byte_ids[byte] for byte in word.encode()]
        ids[-1] += 256
        assert merge_long(ids, *table._pair_table) == table._merge(ids), word


def test_a_word_of_a_thousand_letters_has_openais_ids(tokenizer, openai):
    word = "".join("etaoinshrdlu"[(index * index + 3 * index) % 12] for index in range(1000))
    assert tokenizer.encode(word) == openai.encode(word)


# Decoding


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_decoding_gives_the_cleaned_text(text):
    tokenizer = small()
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded == " ".join(tokenizer.words(text))
    assert decoded.replace(" ", "") == tokenizer.clean(text).replace(" ", "")


def test_decoding_reads_a_row_of_the_batch_up_to_its_end(tokenizer):
    assert tokenizer.decode(tokenizer("A photo, of a cat")[0]) == "a photo , of a cat"
    assert small(pad="end").decode(small(pad="end")("a cat")[0].tolist()) == "a cat"


def test_a_character_cut_in_two_decodes_to_a_replacement(tokenizer):
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("𓀀")[:1])


@pytest.mark.parametrize("ids", [[49408], [-1], ["a"], [1.5]])
def test_ids_that_do_not_exist_are_refused(tokenizer, ids):
    with pytest.raises(DataError, match="not a token id"):
        tokenizer.decode(ids)


# Batches and limits


def test_a_batch_is_start_ids_end_and_padding(tokenizer):
    tokens = tokenizer(["a photo of a cat", ""])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [49406, *CAT, 49407] + [0] * 70
    assert tokens[1].tolist() == [49406, 49407] + [0] * 75
    assert tokenizer("a photo of a cat").shape == (1, 77)
    assert tokenizer([]).shape == (0, 77)


def test_hugging_faces_padding_repeats_the_end_token():
    assert small(pad="end")("a photo of a cat")[0].tolist() == [49406, *CAT] + [49407] * 71


def test_ragged_rows_are_the_batch_without_padding(tokenizer):
    texts = ["a photo of a cat", "", "dogs!"]
    rows = tokenizer.ragged(texts)
    assert rows[0] == [49406, *CAT, 49407]
    assert torch.equal(pack(rows, tokenizer.pad_id, 77), tokenizer(texts))
    assert pack(rows, 7).tolist()[1] == [49406, 49407] + [7] * 5
    assert pack([], 0).shape == (0, 0)


def test_packing_refuses_rows_that_do_not_fit():
    with pytest.raises(LimitError, match=r"row 1 has 3 ids; expected at most 2"):
        pack([[1], [1, 2, 3]], 0, 2)


def test_seventy_five_tokens_fit_and_seventy_six_do_not(tokenizer):
    assert tokenizer("dog " * 75)[0, -1] == tokenizer.end_id
    with pytest.raises(LimitError, match=r"texts\[1\]: the text 'dog dog .* more than 77 tokens .*truncate"):
        tokenizer(["dog", "dog " * 76])


def test_truncation_keeps_the_end_token_last_as_openai_does(tokenizer, caplog):
    text = "one two, three! " * 40
    fresh = small()
    with caplog.at_level(logging.WARNING, "ostension.text"):
        tokens = fresh([text, "short", text], truncate=True)
    assert tokens[0].tolist() == [49406, *tokenizer.encode(text)[:75], 49407]
    assert tokens[1].tolist()[:3] == [49406, *tokenizer.encode("short"), 49407]
    assert fresh.num_truncated == 2
    assert caplog.messages == ["cut 2 of 3 texts to 77 tokens"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["dog", "o'clock", "12345", "!?", "x" * 300, "é-é", "  "]), max_size=20), st.integers(3, 20))
def test_truncation_is_the_head_of_the_whole_encoding(parts, length):
    tokenizer = small(context_length=length)
    text = " ".join(parts)
    ids = tokenizer.encode(text)
    row = tokenizer.ragged(text, truncate=True)[0]
    assert row == [tokenizer.start_id, *ids[: length - 2], tokenizer.end_id]
    assert (tokenizer.num_truncated > 0) == (len(ids) > length - 2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (5, "the texts is 5, a int"),
        (None, "the texts is None"),
        (b"a cat", r"decode it first"),
        (["a", float("nan")], r"texts\[1\] is nan, a float; expected a str"),
        (["a", b"b"], r"texts\[1\] is b'b', a bytes"),
        ([["a"]], r"texts\[0\] is \['a'\], a list"),
    ],
)
def test_what_is_not_text_is_refused_by_place(tokenizer, texts, message):
    with pytest.raises(DataError, match=message):
        tokenizer(texts)
    with pytest.raises(DataError):
        tokenizer.encode(texts)


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "\t\r\n", "\u3000", "👩‍👩‍👧", "שלום", "\ufeff"])
def test_odd_texts_give_a_row_that_ends(tokenizer, text):
    row = tokenizer(text)[0].tolist()
    assert row[0] == tokenizer.start_id
    assert tokenizer.end_id in row


@pytest.mark.parametrize("unit", ["a", "1", "!", "hello world ", "é ", " ", "a\n", "&amp;", "\u0301\u0316", "😂"])
def test_a_megabyte_is_read_in_a_second_or_so(tokenizer, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    start = time.process_time()
    tokenizer(text, truncate=True)
    # Under a second on an idle machine; the bound only tells linear from quadratic, which would take minutes.
    assert time.process_time() - start < 10


# Small vocabularies


def test_small_vocabularies_are_bytes_then_the_first_merges_then_the_specials():
    tokenizer = small(num_merges=100, context_length=16)
    assert tokenizer.vocab_size == 614
    assert (tokenizer.start_id, tokenizer.end_id) == (612, 613)
    assert tokenizer.merges.lines[:2] == ["i n", "t h"]
    assert tokenizer.encode("inn")[0] == 512
    assert max(max(row) for row in tokenizer.ragged(["the thing in it"])) == 613


@pytest.mark.parametrize("num_merges", [1, 300, 4096])
def test_small_vocabularies_split_as_openais_tokenizer_with_fewer_merges(openai, num_merges):
    reference = copy.copy(openai)
    reference.bpe_ranks = {pair: rank for pair, rank in openai.bpe_ranks.items() if rank < num_merges}
    reference.cache = {}
    tokenizer = small(num_merges=num_merges)
    for text in [*hard_strings(300, seed=6), "a photograph of two retrievers"]:
        assert tokenizer.encode(text) == reference.encode(text), ascii(text)


def test_without_merges_every_byte_is_a_token():
    tokenizer = small(num_merges=0)
    assert tokenizer.vocab_size == 514
    assert tokenizer.encode("!a") == [256, 256 + 64]
    assert len(tokenizer.encode("x" * 1000)) == 1000
    assert tokenizer.decode(tokenizer.encode("héllo wörld")) == "héllo wörld"


@pytest.mark.parametrize(
    "settings", [{"num_merges": 48_895}, {"num_merges": -1}, {"context_length": 2}, {"mode": "other"}, {"pad": "one"}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        from_tree(TokenizerConfig, settings)


# Memory and processes


def test_the_memory_of_words_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "MAX_REMEMBERED", 50)
    fresh = small()
    for index in range(500):
        assert fresh.encode(f"w{index}, and") == tokenizer.encode(f"w{index} , and")
    assert len(fresh._remembered) <= 50


def test_a_tokenizer_survives_pickling(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a photo of a cat") == CAT
    assert len(pickle.dumps(tokenizer)) < 1000


# Folders


@pytest.mark.parametrize("settings", [{}, {"mode": "hf", "pad": "end"}, {"num_merges": 1000, "context_length": 16}])
def test_a_saved_tokenizer_loads_the_same(tmp_path, settings):
    tokenizer = small(**settings)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config
    assert torch.equal(loaded("a photo of a cat"), tokenizer("a photo of a cat"))
    assert build_tokenizer(tokenizer.config, tmp_path).config == tokenizer.config
    assert read_json(tmp_path / "tokenizer.json")["merges_sha256"] == tokenizer.merges.sha256


def test_another_configuration_than_the_folders_is_refused(tmp_path):
    small().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer is another one: 'config'"):
        build_tokenizer(TokenizerConfig(mode="hf"), tmp_path)


def test_other_merges_than_ours_are_refused(tmp_path):
    small(num_merges=10).save(tmp_path)
    tree = read_json(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer.json", tree | {"merges_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="merges_sha256"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_hugging_face_vocabulary_is_compared(tmp_path, name):
    config = TokenizerConfig(num_merges=50)
    vocabulary = build_tokenizer(config).merges.vocabulary()
    wrap = (lambda tree: {"model": {"vocab": tree}}) if name == "tokenizer.json" else (lambda tree: tree)
    write_json(tmp_path / name, wrap(vocabulary))
    assert build_tokenizer(config, tmp_path).config == config
    vocabulary["!"], vocabulary['"'] = 1, 0
    write_json(tmp_path / name, wrap(vocabulary))
    with pytest.raises(CheckpointError, match=r"another one: 0 is '\"'; expected '!'"):
        build_tokenizer(config, tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "{", '{"format": "ostension-tokenizer"}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises((CheckpointError, ConfigError), match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path)
    assert build_tokenizer(TokenizerConfig(), tmp_path).encode("a photo of a cat") == CAT
