"""Rules for captions: length, repetition, words of lists, language, hooks; and captions that many pairs share."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate.captions_language import Identifier
from ostension.curate.captions_repetition import (
    caption_hash,
    count_shared,
    longest_character_run,
    longest_word_run,
    repeated_share,
)
from ostension.curate.captions_rules import Captions, Judge
from ostension.curate.captions_unsafe import Hook
from ostension.curate.captions_words import WordList
from ostension.errors import ConfigError, DataError


def judged(texts, **rules):
    return Judge(Captions(**rules))(texts, [str(place) for place in range(len(texts))])[0]


@pytest.mark.parametrize(
    ("rules", "text", "reason"),
    [
        ({"min_words": 3}, "a red", "too few words"),
        ({"min_words": 3}, "a red bus", None),
        ({"max_words": 3}, "a red bus stops", "too many words"),
        ({"max_words": 3}, "a red bus", None),
        ({"min_characters": 6}, "a bus", "too few characters"),
        ({"min_characters": 6}, "a buss", None),
        ({"max_characters": 5}, "a buss", "too many characters"),
        ({"titles": ("file-name",)}, "IMG_1234", "file name"),
        ({"titles": ("none",), "min_words": 1}, "IMG_1234", None),
        ({"min_words": 1}, " \t\n", "no text"),
        ({"max_character_run": 3}, "sooooo good", "repeated characters"),
        ({"max_character_run": 3}, "what!!!!", "repeated characters"),
        ({"max_character_run": 3}, "1000000 people", None),
        ({"max_word_run": 2}, "Sale sale SALE now", "repeated words"),
        ({"max_word_run": 2}, "a very very old house", None),
        ({"max_repeated": 0.5}, "cheap shoes cheap bags cheap shoes cheap bags", "repeated words"),
        ({"max_repeated": 0.5}, "a man in a red hat and a man in a blue hat", None),
        ({"max_repeated": 0.0}, "go go go", None),
    ],
)
def test_a_rule_finds_what_it_is_for_and_nothing_besides(rules, text, reason):
    assert judged([text], **rules) == [reason]


def test_the_cheapest_rule_that_applies_gives_the_reason():
    assert judged(["IMG_1"], min_words=2, titles=("file-name",)) == ["too few words"]


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_runs_are_those_of_a_plain_count(letters):
    text = "".join(letters)
    best = max((len(list(group)) for _, group in itertools.groupby(letters)), default=0)
    assert longest_character_run(text) == best
    assert longest_word_run(letters) == best


def test_the_share_of_repeated_words_is_one_less_the_distinct_ones():
    assert repeated_share(["a", "b", "c", "d", "e", "f", "g", "h"]) == 0
    assert repeated_share(["a", "a", "a", "a", "b", "b", "b", "b"]) == 0.75
    assert repeated_share(["a", "a", "a"]) == 0, "few words say nothing"


@pytest.mark.parametrize("bad", [{"min_words": -1}, {"max_repeated": 2.0}, {"languages": ("EN!",)}, {"titles": ("file name",)}])
def test_settings_that_cannot_be_meant_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Captions(**bad)


# Languages


LONG = {
    "en": "A black and white dog runs through the tall grass near the river.",
    "de": "Ein schwarzer Hund läuft durch das hohe Gras am Fluss entlang.",
    "fr": "Un chien noir et blanc court dans les hautes herbes près de la rivière.",
    "es": "Un perro blanco y negro corre por la hierba alta cerca del río.",
    "ru": "Чёрно-белая собака бежит по высокой траве у реки.",
    "ja": "黒と白の犬が川の近くの高い草の中を走っている。",
}


def test_languages_of_sentences_are_told():
    names, likely = Identifier()(list(LONG.values()))
    assert names == list(LONG)
    assert likely.dtype == np.float32 and (likely > 0.5).all() and (likely <= 1).all()


def test_a_caption_is_judged_alone_whatever_else_is_in_the_batch():
    texts = [*LONG.values(), "two\nlines of one text", "", "\x00", "1234", "\ud800 broken"]
    identifier = Identifier()
    names, likely = identifier(texts)
    alone = [identifier([text]) for text in texts]
    assert names == [found[0][0] for found in alone]
    assert likely.tolist() == [float(found[1][0]) for found in alone]
    assert identifier([])[0] == []


def test_the_probability_and_what_is_unknown_are_settings():
    texts = [LONG["en"], LONG["de"], "ox"]
    assert judged(texts, languages=("en",))[:2] == [None, "other language"]
    assert judged(texts, languages=("en", "de"), min_language=0.5)[:2] == [None, None]
    assert judged(texts, languages=("en",), min_language=1.0, unknown_language="drop") == ["unknown language"] * 3
    assert judged(texts, languages=("en",), min_language=1.0, unknown_language="keep") == [None] * 3
    assert judged(texts, languages=("any",), min_words=1) == [None] * 3


def test_what_was_judged_stands_beside_what_was_not():
    reasons, found = Judge(Captions(languages=("en",), min_words=3))([LONG["en"], "ox"], ["a", "b"])
    assert reasons == [None, "too few words"]
    assert found["language"] == ["en", None] and found["language_p"][0] > 0.5 and found["language_p"][1] is None


def test_a_missing_and_a_broken_model_of_languages_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Identifier(tmp_path / "lid.bin")
    (tmp_path / "lid.bin").write_bytes(b"no model at all")
    with pytest.raises(DataError, match=r"lid\.bin.*not a fastText model"):
        Identifier(tmp_path / "lid.bin")(["text"])


# Words of lists and hooks


def test_a_list_finds_whole_words_and_phrases_in_any_case(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# comment\nCat\nfire engine  # red\n\nÉTÉ\n", encoding="utf-8-sig")
    words = WordList(path)
    assert len(words) == 3
    assert words.find("a CAT, sleeping") == "cat" and words.find("the Fire-Engine!") == "fire engine"
    assert words.find("été") == "été"
    assert words.find("a catalogue of engines") is None
    assert judged(["a cat", "a dog"], words=str(path)) == [None, "no wanted word"]
    assert Judge(Captions(), str(path))(["a cat", "a dog"], ["", ""])[0] == ["unsafe word", None]


def test_a_list_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        WordList(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no word in it"):
        WordList(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 at byte 0"):
        WordList(tmp_path / "b.txt")


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    """A module of a user's."""
    (tmp_path / "my_hooks.py").write_text(
        "def length(values): return [len(value) for value in values]\n"
        "def fails(values): raise KeyError('no such thing')\n"
        "def short(values): return [1.0]\n"
        "def nan(values): return [float('nan')] * len(values)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_hooks", None)


def test_a_hook_scores_what_is_left_and_its_file_is_hashed(hooks):
    hook = Hook("my_hooks:length", "unsafe.captions")
    reasons, found = Judge(Captions(min_words=2), hook=(hook, 5.0))(["a b", "longer text", "x"], ["1", "2", "3"])
    assert reasons == [None, "unsafe caption", "too few words"]
    assert found["unsafe_caption"] == [3.0, 11.0, None]
    before = hook.sha256()
    (hooks / "my_hooks.py").write_text("def length(values): return [0] * len(values)\n")
    assert hook.sha256() != before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("my_hooks:fails", r"my_hooks:fails at key1 to key2: failed: KeyError: 'no such thing'"),
        ("my_hooks:short", r"gave scores of shape \(1,\); expected one for each of 2"),
        ("my_hooks:nan", "my_hooks:nan at key1: gave a score that is not finite"),
        ("my_hooks:other", "no function 'other' in it"),
        ("my_hooks:number", "'number' is no function"),
        ("no_such_module_here:f", "No module named"),
    ],
)
def test_a_hook_that_fails_is_one_clear_line(hooks, entry, message):
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        Hook(entry, "unsafe.captions")(["a", "b"], ["key1", "key2"])
    assert "\n" not in str(caught.value)


def test_the_name_of_a_hook_has_a_form():
    with pytest.raises(ConfigError, match="package.module:function"):
        Hook("os.system('x')", "unsafe.captions")


# Captions that many pairs share


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=5), st.integers(1, 6))
def test_shared_captions_are_those_of_a_plain_count(tmp_path_factory, batches, most):
    folder = tmp_path_factory.mktemp("shared")
    hashes = [np.array([caption_hash(str(value)) for value in batch], np.uint64) for batch in batches]
    found = count_shared(iter(hashes), most, folder, files=4)
    counts = Counter(value for batch in batches for value in batch)
    assert found.tolist() == sorted(caption_hash(str(value)) for value, count in counts.items() if count > most)
    assert list(folder.iterdir()) == []


def test_case_and_spaces_do_not_make_another_caption():
    assert caption_hash("A  Red\tbus ") == caption_hash("a red bus") != caption_hash("a red bus.")


def test_counting_takes_no_memory_for_each_caption(tmp_path):
    rng = np.random.default_rng(0)

    def peak(batches):
        tracemalloc.start()
        count_shared((rng.integers(0, 2**64, 20_000, dtype=np.uint64) for _ in range(batches)), 3, tmp_path, files=32)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    few, many = peak(2), peak(20)
    assert many < few + 20_000 * 18 * 8 / 20  # a twentieth of what the hashes alone would take
