"""Matching: the published rules by hand, and the fast matcher against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate import match_table
from ostension.curate.matching import CHUNK_LETTERS, PUBLISHED, Matcher, Rules, match_plain
from ostension.errors import DataError

FOLDED, JOINED = Rules(case="folded"), Rules(spaces="joined")


def found(text: str, entries: list[str], rules: Rules = PUBLISHED) -> list[str]:
    plain = match_plain([text], entries, rules)
    assert Matcher(entries, rules).match_texts([text])[0].tolist() == plain
    return [entries[number] for number in plain]


def test_a_query_matches_between_spaces_only():
    assert found("a cat sat on the concatenated mat", ["cat", "mat", "at", "con", "cat sat", "sat cat"]) == [
        "cat",
        "mat",
        "cat sat",
    ]


def test_queries_that_overlap_all_match():
    entries = ["new york city", "new york", "york city", "york", "new", "city", "city hall"]
    assert found("new york city", entries) == entries[:6]


def test_marks_get_spaces_on_both_sides_and_others_do_not():
    assert found("cat,dog. owl;eel: elk? asp! `ape`", ["cat", "dog", "owl", "eel", "elk", "asp", "ape"]) == [
        "cat", "dog", "owl", "eel", "elk", "asp", "ape"
    ]  # fmt: skip
    assert found('"cat" (dog) owl/eel elk-asp ape\'s', ["cat", "dog", "owl", "eel", "elk", "asp", "ape"]) == []


def test_tabs_and_newlines_are_spaces():
    assert found("red\tcar\nblue\rbus\x00x", ["red car", "car blue", "blue bus", "bus x"]) == [
        "red car",
        "car blue",
        "blue bus",
        "bus x",
    ]


def test_capitals_count_unless_folded():
    assert found("an Apple", ["apple", "Apple"]) == ["Apple"]
    assert found("an APPLE in der STRASSE", ["apple", "straße"], FOLDED) == ["apple", "straße"]


def test_a_query_with_marks_is_written_as_captions_are():
    assert found("in St. Louis", ["St. Louis", "St.", "."]) == ["St. Louis", "St.", "."]
    assert found("made by foo Inc.", ["foo Inc."]) == ["foo Inc."]
    assert found("in St.Louis", ["St. Louis"]) == []
    assert found("in St.Louis", ["St. Louis"], JOINED) == ["St. Louis"]


def test_spaces_are_counted_unless_joined():
    assert found("red  car", ["red car"]) == [] and found("red  car", ["red  car"]) == ["red  car"]
    assert found("red  car", ["red car", "red   car"], JOINED) == ["red car"]


def test_letters_written_without_spaces_need_none():
    assert found("私は東京タワーへ", ["東京", "東京タワー", "京タ", "大阪"]) == ["東京", "東京タワー", "京タ"]
    assert found("ไปเที่ยวไทย", ["เที่ยว", "ไทย"]) == ["เที่ยว", "ไทย"]
    # The other edge of a mixed query needs its space, and so does a Latin word beside such letters.
    assert found("東京 tower塔", ["東京 tower", "tower"]) == []
    assert found("の東京 tower", ["東京 tower", "tower", "東京"]) == ["東京 tower", "tower", "東京"]
    assert found("東京 大阪", ["東京大阪", "東京 大阪"]) == ["東京 大阪"]
    assert found("서울은", ["서울"]) == []  # Korean is written with spaces


def test_queries_that_read_the_same_count_as_the_first():
    entries = ["apple", "Apple", "pear", "APPLE", " pear"]
    assert Matcher(entries, FOLDED).same_as.tolist() == [0, 0, 2, 0, 2]
    assert found("Apple and pear", entries, FOLDED) == ["apple", "pear"]


def test_a_query_counts_once_for_all_texts_of_a_pair():
    matches = Matcher(["cat", "dog"]).match([("cat cat", "a cat"), (), ("dog", "cat"), ("eel",)])
    assert [matches[pair].tolist() for pair in range(len(matches))] == [[0], [], [0, 1], []]
    assert matches.entries.dtype == np.int32


def test_no_queries_and_no_captions_are_no_matches():
    assert Matcher([]).match([("cat",)]).starts.tolist() == [0, 0]
    assert Matcher(["cat"]).match([]).starts.tolist() == [0]


@pytest.mark.parametrize("entry", ["", "  ", "\t"])
def test_a_query_of_nothing_is_refused(entry):
    with pytest.raises(DataError, match="is empty"):
        Matcher(["cat", entry])


ALPHABET = [
    "a",
    "b",
    "A",
    "é",
    " ",
    "  ",
    ",",
    ".",
    "?",
    "`",
    "'",
    "\t",
    "\n",
    "\x00",
    "\x01",
    "\x7f",
    "東",
    "京",
    "あ",
    "ท",
    "한",
    "🙂",
    "longer-than-8",
    "İ",
]
WORDS = st.lists(st.sampled_from(ALPHABET), max_size=9).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(WORDS.filter(lambda entry: entry.strip(" \t\n\x00\x01")), max_size=12),
    pairs=st.lists(st.lists(WORDS | st.text(max_size=12), max_size=3), max_size=5),
    case=st.sampled_from(["kept", "folded"]),
    spaces=st.sampled_from(["kept", "joined"]),
)
def test_the_matcher_finds_what_the_plain_loop_finds(entries, pairs, case, spaces):
    rules = Rules(case=case, spaces=spaces)
    matches = Matcher(entries, rules).match(pairs)
    assert [matches[pair].tolist() for pair in range(len(pairs))] == [match_plain(texts, entries, rules) for texts in pairs]


def test_parts_of_what_is_matched_at_once_make_no_difference():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(50)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(12_000)]
    texts[7] += " w1" * (CHUNK_LETTERS // 2)  # a caption longer than a chunk
    assert sum(map(len, texts)) > 2 * CHUNK_LETTERS
    matcher = Matcher([*words, *(f"{a} {b}" for a in words[:20] for b in words[:20]), "w1 w2 w3"])
    whole = matcher.match_texts(texts)
    apart = [matcher.match_texts(texts[start : start + 100]) for start in range(0, len(texts), 100)]
    assert np.array_equal(whole.entries, np.concatenate([part.entries for part in apart]))
    for row in rng.integers(0, len(texts), 50):
        assert whole[row].tolist() == match_plain(
            [texts[row]], [*words, *(f"{a} {b}" for a in words[:20] for b in words[:20]), "w1 w2 w3"]
        )


def test_hashes_that_fall_into_one_slot_are_all_found(monkeypatch):
    keep = match_table._mixed
    monkeypatch.setattr(match_table, "_mixed", lambda numbers: keep(numbers) >> np.uint64(20) | np.uint64(1) << np.uint64(63))
    entries = [f"word{number}" for number in range(100)] + [f"word{number} word{number + 1}" for number in range(50)]
    texts = [f"word{number} word{number + 1} other{number}" for number in range(120)]
    matches = Matcher(entries).match_texts(texts)
    assert [matches[row].tolist() for row in range(120)] == [match_plain([text], entries) for text in texts]


def test_a_word_with_the_hash_of_another_is_not_it(monkeypatch):
    keep = match_table._mixed
    monkeypatch.setattr(match_table, "_mixed", lambda numbers: keep(numbers) >> np.uint64(48) | np.uint64(1) << np.uint64(63))
    table = Matcher([f"a-long-word-{number}" for number in range(20)])
    texts = [f"another-long-word-{number}" for number in range(20_000)]
    hashes = match_table._words(f" {' '.join(texts)} ".encode()).hashes
    assert (table._table._look_up(hashes) >= 0).any()
    assert len(table.match_texts(texts).entries) == 0
