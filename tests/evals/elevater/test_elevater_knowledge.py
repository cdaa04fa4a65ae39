"""Knowledge in prompts: the files, the text rule, what survives, what is an item, and the clear lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ostension.data.task import Task
from ostension.errors import ConfigError, DataError
from ostension.evals.elevater.knowledge import (
    KnowledgeConfig,
    find_files,
    knowledge_classifier,
    prompts_of,
    read_dictionary,
    read_gpt3,
    read_items,
)
from ostension.evals.inputs import ArrayInputs
from ostension.store import Features

NAMES = {"c": ("crane", "large bird"), "d": ("dog",), "e": ("emu",)}
DICTIONARY = [
    {"classname": "crane", "def_wiki": "A large bird.", "def_wn": "", "path_wn": ["crane", "bird", "animal", "entity"]},
    {"classname": "dog", "def_wiki": None, "def_wn": "a mammal", "path_wn": ""},
    {"classname": "emu", "def_wiki": "", "def_wn": "", "path_wn": ""},
]
GPT3 = [
    {"classname": "crane", "gpt3": [" It can't swim.", " ", " Tall."]},
    {"classname": "dog", "gpt3": [" A pet.", " Barks.", " Loyal."]},
    {"classname": "emu", "gpt3": [" Runs.", "", " Fast."]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tree in (("external/birds_knowledge.tsv", DICTIONARY), ("gpt3/GPT3_birds.tsv", GPT3)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(tree))
    return tmp_path


def items(folder: Path, **settings) -> dict[str, tuple[str | None, ...]]:
    return dict(read_items(KnowledgeConfig(folder=str(folder), **settings), "birds", NAMES))


def test_a_prompt_is_the_template_and_the_item_as_words():
    assert prompts_of("crane", ["a {}.", "the {}."], [' It can\'t "swim".']) == [
        "a crane. ; crane , It ca n't `` swim '' .", "the crane. ; crane , It ca n't `` swim '' .",
    ]  # fmt: skip
    assert prompts_of("crane", ["a {}."], ["", None]) == ["a crane. ; crane ,", "a crane."]
    assert prompts_of("crane", ["a {}."], []) == ["a crane."]


def test_faithful_keeps_empty_texts_as_items_and_honest_does_not(folder):
    faithful = items(folder, dictionaries=("wiktionary",), mode="faithful")
    assert faithful == {"c": ("A large bird.",), "d": (None,), "e": ("",)}
    assert items(folder, dictionaries=("wiktionary",)) == {"c": ("A large bird.",), "d": (), "e": ()}


def test_of_several_dictionaries_one_survives_in_faithful_mode_and_all_in_honest(folder):
    asked = ("wiktionary", "wordnet", "hierarchy")
    faithful = items(folder, dictionaries=asked, mode="faithful")
    assert faithful["c"] == ("crane bird animal",)  # three steps of the path
    assert items(folder, dictionaries=("wiktionary", "wordnet"), mode="faithful")["d"] == ("a mammal",)
    assert items(folder, dictionaries=asked)["c"] == ("A large bird.", "crane bird animal")


def test_the_first_texts_of_gpt3_stand_beside_the_dictionary_or_in_its_place(folder):
    beside = items(folder, dictionaries=("wiktionary",), num_gpt3=2, mode="faithful")
    assert beside["c"] == ("A large bird.", " It can't swim.", " ")
    assert beside["d"] == (None, " A pet.", " Barks.")
    instead = items(folder, dictionaries=("wiktionary",), num_gpt3=2, rule="then")
    assert instead == {"c": ("A large bird.",), "d": (" A pet.", " Barks."), "e": (" Runs.", " Fast.")}
    # In the released code a text that is there but empty still counts, so that GPT-3 is never asked.
    assert items(folder, dictionaries=("wiktionary",), num_gpt3=2, rule="then", mode="faithful")["e"] == ("",)


def test_a_class_is_the_mean_of_its_prompts_with_knowledge(folder):
    templates = ("a {}.", "the {}.")
    task = Task(title="Birds", name="birds", version=1, classes=NAMES, templates=templates, licence="none", citation="")
    spoken = items(folder, dictionaries=("wiktionary",), num_gpt3=1)
    prompts = [prompt for key, names in NAMES.items() for prompt in prompts_of(names[0], templates, spoken[key])]
    generator = np.random.default_rng(0)
    rows = {prompt: generator.normal(size=4) for prompt in prompts}
    features = Features(rows=np.ones((1, 4), np.float32), targets=np.array([0]), classes=tuple(NAMES))
    inputs = ArrayInputs(task, {"test": features}, prompt_rows=rows)
    found = knowledge_classifier(inputs, spoken)
    cranes = np.stack([rows[prompt] for prompt in prompts[:4]])  # two templates with two items; "large bird" is not used
    mean = (cranes / np.linalg.norm(cranes, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-5)


def test_a_class_that_the_file_lacks_is_named(folder):
    with pytest.raises(DataError, match="nothing about 'owl'; expected an entry for every class \\(3 are there\\)"):
        read_items(KnowledgeConfig(folder=str(folder), num_gpt3=1), "birds", {**NAMES, "o": ("owl",)})


def test_files_are_found_under_the_leaderboards_names_too(tmp_path):
    (tmp_path / "gpt3").mkdir()
    (tmp_path / "gpt3" / "GPT3_eurosat_clip.tsv").write_text("[]")
    (tmp_path / "eurosat_knowledge.tsv").write_text("[]")
    dictionary, gpt3 = find_files(tmp_path, "eurosat")
    assert (dictionary.name, gpt3.parent.name) == ("eurosat_knowledge.tsv", "gpt3")
    with pytest.raises(ConfigError, match="no such folder"):
        find_files(tmp_path / "none", "eurosat")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}", "not a list of entries"),
        ("[]", "not a list of entries"),
        ("[1]", "entry 0 lacks classname, gpt3"),
        ('[{"classname": 3, "gpt3": []}]', "entry 0 lacks a name"),
        ('[{"classname": "a", "gpt3": "text"}]', r"gpt3 of entry 0 \('a'\) is 'text'"),
        ('[{"classname": "a", "gpt3": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_hostile_files_give_one_line(tmp_path, text, line):
    path = tmp_path / "file.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=line) as caught:
        read_gpt3(path)
    assert "\n" not in str(caught.value)


def test_a_definition_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "file.tsv"
    path.write_text(json.dumps([{**DICTIONARY[0], "path_wn": ["a", 3]}]))
    with pytest.raises(DataError, match="path_wn of entry 0"):
        read_dictionary(path)
    with pytest.raises(DataError, match="no such file"):
        read_dictionary(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"folder": "files"}, "folder is 'files'"),
        ({"num_gpt3": 2}, "folder is ''"),
        ({"folder": "files", "num_gpt3": 6}, "num_gpt3 is 6"),
        ({"folder": "files", "num_gpt3": 2, "rule": "then"}, "rule is 'then'"),
    ],
)
def test_settings_without_effect_are_refused(settings, line):
    with pytest.raises(ConfigError, match=line):
        KnowledgeConfig(**settings)
