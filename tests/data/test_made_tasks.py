"""Tasks that are made: attacked by written words, and scenes to be counted."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from labelled_making import write_folder, write_record

from ostension.cli.main import main
from ostension.data.made_tasks import write_attacked, write_counting
from ostension.data.sets.open import open_set
from ostension.data.sets.written import WrittenSet, file_stem, parse_name
from ostension.data.task import read_task
from ostension.data.task_data import open_task
from ostension.errors import ConfigError, DataError
from ostension.image.lettering import WritingConfig

SMALL = WritingConfig(side=64)


@pytest.fixture
def pets(tmp_path):
    train, test = {"cat": 6, "dog": 6, "x_ray": 1}, {"cat": 4, "dog": 4, "x_ray": 2}
    counts = {f"{split}/{name}": count for split, part in (("train", train), ("test", test)) for name, count in part.items()}
    write_folder(tmp_path / "pets", counts)
    return write_record(
        tmp_path / "pets.toml", classes='{ cat = "cat", dog = ["dog", "hound"], x_ray = "X-ray" }',
        splits="{ train = { count = 13 }, test = { count = 10 } }", sources='[{ kind = "folder", path = "pets" }]',
    )  # fmt: skip


def attacked(pets, folder, **options):
    parts = {split: open_task(pets, split=split) for split in ("train", "test")}
    return write_attacked(read_task(pets), parts, folder, config=SMALL, **options)


def test_an_attacked_task_is_a_task_with_another_class_on_each_picture(pets, tmp_path):
    made = attacked(pets, tmp_path / "made" / "attacked")
    found = open_task(tmp_path / "made" / "attacked" / "attacked.toml")
    assert not found.notes and made.splits["test"].count == len(found) == 10 and made.splits["clean"].count == 10
    keys = np.array(found.classes)[found.targets]
    texts = found.groups["text"]
    assert (keys != texts).all() and set(texts) <= {"cat", "dog", "x_ray"}
    assert collections.Counter(keys.tolist()) == {"cat": 4, "dog": 4, "x_ray": 2}
    clean = open_task(tmp_path / "made" / "attacked" / "attacked.toml", split="clean")
    assert not clean.notes and set(clean.groups["text"]) == {""} and clean.targets.tolist() == found.targets.tolist()
    assert clean.samples.image(0) != found.samples.image(0)
    assert found.task.prompt_templates() == read_task(pets).prompt_templates()
    assert found.task.display_names()["dog"] == ("dog", "hound")


def test_the_same_seed_writes_the_same_bytes_and_another_one_other_words(pets, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        attacked(pets, tmp_path / name, seed=seed)
    sets = [WrittenSet(tmp_path / name / "pictures") for name in ("one", "two", "three")]
    assert sets[0].ids == sets[1].ids and all(sets[0].image(i) == sets[1].image(i) for i in range(len(sets[0])))
    assert sets[0].fields["text"] != sets[2].fields["text"]


def test_a_word_is_a_function_of_seed_and_picture_and_not_of_its_company(pets, tmp_path):
    whole = open_task(pets)
    for name, part in (("all", whole), ("few", open_task(write_few(pets, tmp_path)))):
        write_attacked(read_task(pets), {"test": part}, tmp_path / name, config=SMALL)
    words = []
    for name in ("all", "few"):
        found = WrittenSet(tmp_path / name / "pictures" / "test")
        words.append([text for text, label in zip(found.fields["text"], found.labels, strict=True) if label == ("dog",)])
    assert words[0] == words[1] and len(words[0]) == 4


def write_few(pets, tmp_path):
    """The same pictures without those of cats."""
    return write_record(
        tmp_path / "few.toml", classes='{ dog = "dog", x_ray = "X-ray" }', sources='[{ kind = "folder", path = "pets" }]',
        splits="{ test = { count = 6, classes_only = true } }",
    )  # fmt: skip


@pytest.mark.parametrize("label", ["cat", "x_ray", "a_text=b", "and/or", "Mrs. Claus", "50 %", "Å", "label=odd"])
def test_names_of_files_say_label_and_text(label):
    stem = file_stem(label, "x.y")
    assert "/" not in stem and parse_name(f"test/000001_{stem}.jpg") == (label, "x.y")
    assert parse_name(f"{file_stem(label, '')}.png") == (label, "")


def test_published_names_are_read_and_others_are_refused(tmp_path):
    assert parse_name("label=coffee mug_text=pineapple.png") == ("coffee mug", "pineapple")
    write_folder(tmp_path / "set", {"cat": 1})
    with pytest.raises(DataError, match="does not say label and text.*label=X_text=Y.png"):
        open_set(tmp_path / "set", source_of("written"))


def source_of(kind):
    from ostension.data.task_parts import Source

    return Source(kind=kind)


def test_a_counting_task_has_every_number_as_often(tmp_path):
    write_counting({"train": 20, "test": 10}, tmp_path / "counts", side=64)
    found = open_task(tmp_path / "counts" / "counts.toml")
    assert not found.notes and sorted(found.targets.tolist()) == list(range(10))
    assert found.task.display_names()["1"] == ("one object",) and found.task.display_names()["10"] == ("ten objects",)
    train = open_task(tmp_path / "counts" / "counts.toml", split="train")
    assert collections.Counter(train.targets.tolist()) == dict.fromkeys(range(10), 2)
    write_counting({"train": 20, "test": 10}, tmp_path / "again", side=64)
    again = open_task(tmp_path / "again" / "again.toml", split="train")
    assert [again.samples.image(i) for i in range(20)] == [train.samples.image(i) for i in range(20)]
    assert len({train.samples.image(i) for i in range(20)} | {found.samples.image(i) for i in range(10)}) == 30


def test_folders_are_whole_or_not_there(pets, tmp_path):
    (tmp_path / "pets" / "test" / "dog" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        attacked(pets, tmp_path / "attacked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "pets.toml"]
    write_counting({"test": 10}, tmp_path / "counts", side=64)
    with pytest.raises(ConfigError, match="already there"):
        write_counting({"test": 10}, tmp_path / "counts", side=64)


def test_the_commands_write_tasks_and_say_where(pets, tmp_path, capsys):
    assert main(["task", "typographic", str(pets), "--limit", "4", "--side", "64", "-o", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": str(tmp_path / "a" / "a.toml"), "classes": 3, "splits": {"train": 4, "test": 4, "clean": 4}}
    few = ["--train", "0", "--val", "0", "--test", "4", "--largest", "2"]
    assert main(["task", "counting", *few, "-o", str(tmp_path / "c")]) == 0
    assert "2 classes; test 4" in capsys.readouterr().out
    assert main(["task", "validate", told["path"], "--data", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    x = str(tmp_path / "x")
    for arguments in (["counting", "--test", "0", "-o", x], ["counting", "--largest", "11", "-o", x],
                      ["typographic", str(pets), "-o", str(tmp_path / "a")], ["typographic", "flickr8k", "-o", x]):  # fmt: skip
        assert main(["task", *arguments]) in (1, 2)
        captured = capsys.readouterr()
        assert captured.err.startswith("ostension: error: ") and captured.err.count("\n") == 1
