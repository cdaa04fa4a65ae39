"""Words and pairs against the rule written a character at a time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queries_making import plain_words

from ostension.curate.queries.segment import joined, pair_text, segment

LETTERS = (
    "ab7\u00e9e\u0301'-’&/_.,!?;:`\"()“”—… \t\n\0$%°❤"
    "中国のカไทक्\u200d\u00ad\ufeff\ufffd"
    "\U0001f600\U00020000\uac00\u1100\u1161\u212b"
)


def words_of(text, case="kept"):
    found = segment(joined([text], case))
    vocabulary = [word.decode() for word in found.vocabulary.to_pylist()]
    return [vocabulary[place] for place in found.ids], found.linked.tolist()


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=LETTERS, max_size=60))
def test_words_and_pairs_are_those_of_the_rule(text):
    assert words_of(text) == plain_words(text)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_words_and_pairs_are_those_of_the_rule_in_any_text(text):
    assert words_of(text) == plain_words(text.encode("utf-8", "replace").decode())


@pytest.mark.parametrize(
    ("text", "words", "pairs"),
    [
        ('the dog\'s "t-shirt" -- AT&T', ["the", "dog's", "t-shirt", "AT&T"], ["the dog's"]),
        ("in Paris, France", ["in", "Paris", "France"], ["in Paris"]),
        ("a  b\tc", ["a", "b", "c"], ["a b", "b c"]),
        ("(New York)", ["New", "York"], ["New York"]),
        ("well-known-", ["well-known"], []),
        ("3,000 U.S.", ["3", "000", "U", "S"], ["000 U"]),
        ("我爱 北京tv", ["我", "爱", "北", "京", "tv"], ["我爱", "北京"]),
        ("cafe\u0301 cafe", ["café", "cafe"], ["café cafe"]),
        ("`quoted` word", ["quoted", "word"], []),
    ],
)
def test_examples(text, words, pairs):
    found, linked = words_of(text)
    assert found == words
    assert [pair_text(*pair) for pair, near in zip(itertools.pairwise(found), linked, strict=True) if near] == pairs


def test_texts_make_no_pairs_with_each_other():
    found = segment(joined(["New", "York"]))
    assert not found.linked.any()


def test_folding_is_that_of_matching():
    assert words_of("Straße DOG", "folded")[0] == ["strasse", "dog"]


def test_longer_runs_are_left_out_and_part_their_neighbours():
    found = segment(joined(["a " + "x" * 65 + " b c " + "é" * 64]))
    assert [word.decode() for word in found.vocabulary.to_pylist()] == ["a", "b", "c", "é" * 64]
    assert found.linked.tolist() == [False, True, True]
    assert found.num_long == 1


@pytest.mark.parametrize("text", ["", " ", "!!!", "-", "\0", "'"])
def test_a_text_without_words_has_none(text):
    assert words_of(text) == ([], [])
