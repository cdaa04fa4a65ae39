"""Task records: the shipped ones, a user's own, and every way in which one can be wrong."""

from __future__ import annotations

import pytest

from ostension.data.embedded import open_emoji
from ostension.data.task import read_task
from ostension.errors import ConfigError

RECORD = """
title = "Pets"
version = 1
templates = ["a photo of a {}.", "a drawing of a {}."]
metric = "mean_per_class"
licence = "mine"
citation = "nobody"

[splits.test]
count = 20

[classes]
n01 = "cat"
n02 = ["dog", "hound"]
"""


def write(tmp_path, text):
    path = tmp_path / "pets.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_emoji_record_is_the_embedded_set():
    task, pairs = read_task("emoji"), open_emoji("new-style-seen-names")
    assert {name: split.count for name, split in task.splits.items()} == {name: len(open_emoji(name)) for name in task.splits}
    metas = [one.read(index).meta for one in (pairs, open_emoji("new-style-new-names")) for index in range(len(one))]
    assert task.label_names() == {meta["concept"]: (meta["name"],) for meta in metas}
    assert list(task.label_names()) == sorted(task.label_names())


def test_a_users_own_record_keeps_its_keys_names_and_order(tmp_path):
    task = read_task(write(tmp_path, RECORD))
    assert task.label_names() == {"n01": ("cat",), "n02": ("dog", "hound")}
    assert task.prompt_templates() == ("a photo of a {}.", "a drawing of a {}.")
    assert task.metric == "mean_per_class" and task.splits["test"].count == 20 and task.chance == 0.5


def test_whole_prompts_may_stand_in_place_of_templates(tmp_path):
    text = RECORD.replace('templates = ["a photo of a {}.", "a drawing of a {}."]\n', "")
    text += '\n[texts]\nn02 = ["a dog at play", "a hound"]\nn01 = "a sleeping cat"\n'
    task = read_task(write(tmp_path, text))
    assert task.label_names() == {"n01": ("a sleeping cat",), "n02": ("a dog at play", "a hound")}
    assert task.prompt_templates() == ("{}",) and task.display_names()["n01"] == ("cat",)
    with pytest.raises(ConfigError, match="texts and classes differ"):
        read_task(write(tmp_path, text.replace('n02 = ["a dog', 'n03 = ["a dog')))


def test_the_class_list_hash_sees_names_keys_and_order(tmp_path):
    hashes = {
        read_task(write(tmp_path, text)).class_list_sha256
        for text in (RECORD, RECORD.replace('"cat"', '"kitten"'), RECORD.replace("n01", "n00"),
                     RECORD.replace('n01 = "cat"\n', "") + 'n01 = "cat"\n')
    }  # fmt: skip
    assert len(hashes) == 4


def test_classes_may_be_numbers_of_a_published_set(tmp_path):
    text = 'title = "F"\nversion = 1\nclass_set = "fer2013"\ntemplate_set = "photo"\nlicence = ""\ncitation = ""\n'
    task = read_task(write(tmp_path, text))
    assert task.label_names()["3"] == ("happy", "smiling")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("metric", "metrik"), "unknown setting 'metrik'"),
        (lambda text: text.replace('"mean_per_class"', '"f2"'), "metric is 'f2'"),
        (lambda text: text.replace("version = 1\n", ""), "'version' is missing"),
        (lambda text: text.replace("a drawing of a {}.", "a drawing"), "a drawing"),
        (lambda text: text.replace("a drawing of a {}.", "{} and {}"), "2 times"),
        (lambda text: text.replace("count = 20", "count = 0"), "count is 0"),
        (lambda text: text.replace('n01 = "cat"', 'n01 = " "'), "not empty"),
        (lambda text: text.replace('["dog", "hound"]', '["cat"]'), "'cat', as is"),
        (lambda text: text.replace('["dog", "hound"]', "[]"), "no name"),
        (lambda text: text.replace("templates =", 'template_set = "x" #'), "unknown set of templates 'x'"),
        (lambda text: 'class_set = "mnist"\n' + text, "classes and class_set are both given"),
        (lambda text: text[: text.index("[classes]")], "classes and class_set .* both missing"),
        (lambda text: text + "= oops", "not TOML"),
    ],
)
def test_a_wrong_record_is_one_line_that_names_the_file_and_the_fault(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_task(write(tmp_path, change(RECORD)))
    assert "pets.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_list_the_nearest_and_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown task 'cifar11'.*'cifar10'"):
        read_task("cifar11")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        read_task(tmp_path / "nowhere.toml")
