"""When captions are the same, and which are worth keeping of copies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate.duplicates_captions import caption_digest, new_captions, normalised

SAME = [
    ("A cat on the mat", "a CAT on the mat"), ("a cat, on the mat.", "a cat on  the mat"), ("a\tcat on\u00a0it", "a cat on it"),
    ("ﬁne café", "fine cafe\u0301"), ("ＣＡＴ", "cat"), ("Straße", "STRASSE"), ("a\u200bcat", "acat"), ("☀\ufe0f sun", "☀ sun"),
    ("«Chat» – noir…", "chat noir"), ("rock-climbing", "rock climbing"),
]  # fmt: skip
OTHER = [("a cat", "a cats"), ("C++", "C"), ("café", "cafe"), ("a cat on a mat", "a mat on a cat"), ("1 cat", "2 cats")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_form_case_blanks_and_punctuation_do_not_tell_captions_apart(one, other):
    assert normalised(one) == normalised(other)
    assert caption_digest([one]) == caption_digest([other]) != 0


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_everything_else_does(one, other):
    assert caption_digest([one]) != caption_digest([other])


@given(st.text(max_size=30))
@settings(deadline=None)
def test_a_caption_that_is_normalised_stays_as_it_is(caption):
    assert normalised(normalised(caption)) == normalised(caption)


def test_samples_of_several_captions_are_the_same_if_all_are_in_any_order():
    assert caption_digest(["a cat", "A dog!"]) == caption_digest(["a dog", "a cat", "a cat."])
    assert caption_digest(["a cat"]) != caption_digest(["a cat", "a dog"])


def test_nothing_and_punctuation_alone_are_the_same_as_nothing():
    assert caption_digest([]) == caption_digest(["", "!!!", "\u200b"]) == 0


def test_of_a_copys_captions_only_those_with_other_words_are_new():
    assert new_captions(["a cat"], ["A cat.", "black cat", "Black  cat", "", "a pet"], 3) == ["a cat", "black cat", "a pet"]
    assert new_captions(["a cat"], ["black cat", "a pet"], 2) == ["a cat", "black cat"]
