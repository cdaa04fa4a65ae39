"""Cleaning: exactly ftfy's, guards that are safe, linear time."""

from __future__ import annotations

import html
import time
import unicodedata

import ftfy
import pytest
import regex
from hard_strings import hard_strings
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.text import cleaning

ENTITIES = st.sampled_from(["&", "&amp", ";", "&lt;", "&#38;", "\x1b[", "\x7f", "\x0b", "\x1c", "\r\n", "\t", "<"])


def reference_clean(text: str) -> str:
    """OpenAI's `basic_clean`, `whitespace_clean` and lower, written out."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def test_repair_is_ftfys_on_hard_strings():
    for text in hard_strings(800, seed=1, everything=True):
        assert cleaning.fix_text(text) == ftfy.fix_text(text), ascii(text)


def test_the_fixers_leave_every_other_character_alone():
    others = "".join(filter(lambda character: not cleaning._FIXABLE.match(character), map(chr, range(0x110000))))
    assert all(fixer(others) == others for fixer in cleaning._FIXERS)


def test_openai_cleaning_is_the_references_on_hard_strings():
    for text in hard_strings(800, seed=2, everything=True):
        assert cleaning.clean_openai(text) == reference_clean(text), ascii(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(ENTITIES, st.text(st.characters(max_codepoint=127), max_size=8)), max_size=12).map("".join))
def test_what_the_ascii_guard_lets_through_needs_no_repair(text):
    if cleaning.is_plain_openai(text):
        assert " ".join(text.lower().split()) == reference_clean(text)


def test_the_ascii_guard_is_right_about_every_pair_of_ascii_characters():
    for first in map(chr, range(128)):
        for second in map(chr, range(128)):
            text = f"a{first}{second}b &{second}lt; {first}"
            if cleaning.is_plain_openai(text):
                assert " ".join(text.lower().split()) == reference_clean(text), ascii(text)


def test_ordinary_captions_pass_the_guard():
    for text in ("A photo of a dog.", "two lines\nof text", "salt & pepper", "R2-D2 (c. 1977) costs $5!"):
        assert cleaning.is_plain_openai(text)
    for text in ("AT&T", "&lt;", "café", "a\x00b", "“quoted”", "\x1b[1m"):
        assert not cleaning.is_plain_openai(text)


def test_lines_before_the_first_angle_bracket_have_their_entities_decoded_by_ftfy():
    text = "&eacute; one\n<b> &Eacute; &EACUTE;\n&EACUTE; é"
    assert cleaning.fix_text(text) == ftfy.fix_text(text) == "é one\n<b> &Eacute; &EACUTE;\n&EACUTE; é"


@pytest.mark.parametrize("marks", ["\u0316\u0301", "\u0301\u0316", "\u0f73", "\u0344\u0323", "\u0301\u0903\u0316"])
def test_long_runs_of_marks_keep_their_normal_form(marks):
    text = "é" + marks * 150 + "x" + "".join(reversed(marks)) * 70
    assert cleaning.nfc(text) == unicodedata.normalize("NFC", text)


def test_a_reference_of_thousands_of_digits_is_a_replacement_character():
    assert cleaning.clean_openai("a &#" + "1" * 5000 + "; &#" + "0" * 5000 + "66;") == "a \ufffd b"


@pytest.mark.parametrize(
    "unit",
    ["\u0316\u0301", "&amp;", "amp;", "é\n", "&#790;&#769;", "Ã©", "&", "<", " ", "\x1b[", "Ì–Ì\x81", "“", "&a", "\x80é"],
)
@pytest.mark.parametrize("clean", [cleaning.clean_openai, cleaning.clean_hf])
def test_time_grows_in_proportion_to_the_text(clean, unit):
    def seconds(count: int) -> float:
        text = "&" + unit * count
        cleaning._fix_short_line.cache_clear()
        start = time.process_time()
        clean(text)
        return time.process_time() - start

    # A quadratic step would take 64 times as long for 8 times the text; the smaller time is kept away from zero.
    assert min(seconds(16_000) for _ in range(2)) < 30 * max(min(seconds(2_000) for _ in range(3)), 1e-3)
