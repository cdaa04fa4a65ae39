"""Hostile task files: whatever they hold, the answer is a task or one line that names the file."""

from __future__ import annotations

import string
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_making import write_record

from ostension.data.task import MAX_RECORD_BYTES, Task, read_task
from ostension.data.task_toml import to_toml
from ostension.errors import ConfigError, LimitError, OstensionError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": '"red"'}, "unknown setting 'colour'"),
        ({"version": "0"}, "version is 0"),
        ({"version": '"1"'}, "version is '1'"),
        ({"classes": "3"}, "classes is 3"),
        ({"classes": "{ cat = 3 }"}, "classes.cat is 3"),
        ({"classes": '{ cat = "cat" }'}, "classes is"),
        ({"classes": '{ cat = "cat", dog = "cat" }'}, "'cat', as is"),
        ({"classes": '{ cat = "cat", dog = "" }'}, "not empty"),
        ({"classes": '{ cat = "cat", "cat" = "dog" }'}, "not TOML"),
        ({"templates": "[]"}, "there are no templates"),
        ({"templates": '["a photo."]'}, "no {}"),
        ({"templates": '["{} and {}"]'}, "2 times"),
        ({"templates": '["{}", "{}"]'}, "as is templates"),
        ({"template_set": '"photo"'}, "templates and template_set are both given"),
        ({"texts": '{ cat = "a cat" }', "templates": "[]"}, "templates and texts are both given"),
        ({"metric": '"pm_k"'}, "metric is 'pm_k'"),
        ({"metric": '"map_11_point"'}, "metric is 'map_11_point'"),
        ({"kind": '"group"', "metric": '"worst_group"'}, "groups is"),
        ({"kind": '"retrieval"', "metric": '"recall_at_k"'}, "classes is"),
        ({"name": '"other"'}, "name is 'other'; expected 'my'"),
        ({"splits": "{ test = { count = -1 } }"}, "count is -1"),
        ({"splits": "{ test = { count = 1, ids_sha256 = 'x' } }"}, "64 hexadecimal"),
        ({"splits": "{ test = { count = 1, select = { split = [] } } }"}, "select is"),
        ({"sources": '[{ kind = "folder", path = "../.." }]'}, "outside the data"),
        ({"sources": '[{ kind = "folder", path = "/etc" }]'}, "outside the data"),
        ({"sources": r'[{ kind = "folder", path = "C:\\x" }]'}, "outside the data"),
        ({"sources": '[{ kind = "folder", path = "x", label = "y" }]'}, "label has no effect"),
        ({"sources": '[{ kind = "folder", path = "x", levels = ["split"] }]'}, "levels is"),
        ({"sources": '[{ kind = "npz", path = "x", url = "https://x.org/y" }]'}, "all three or none"),
        ({"sources": '[{ kind = "npz", path = "x", url = "file:///etc/passwd", sha256 = "%s", num_bytes = 1 }]' % ("0" * 64)},
         "an http address"),
        ({"oracles": '[{ protocol = "p", values = { RN50 = 300 }, tolerance = 1, source = "s", evidence = "read" }]'}, "300"),
        ({"oracles": '[{ protocol = "p", values = { RN50 = nan }, tolerance = 1, source = "s", evidence = "read" }]'}, "nan"),
        ({"oracles": '[{ protocol = "", values = { x = 1 }, tolerance = 1, source = "", evidence = "remembered", gate=true}]'},
         "gate is True"),
        ({"preprocess": '{ crop = "no" }'}, "unknown setting 'crop'"),
        ({"preprocess": "{ image_size = 3 }"}, "unknown setting 'image_size'"),
        ({"preprocess": '{ resize = "no" }'}, "resize is 'no'"),
        ({"cut_px": "-1"}, "cut_px is -1"),
        ({"superclass_map": '{ cat = ["n1"] }'}, "need each other"),
        ({"superclass_of": '"imagenet"', "superclass_map": '{ cat = ["n1"] }'}, "unknown class of 'imagenet'"),
        ({"superclass_of": '"imagenot"', "superclass_map": '{ cat = ["n1"] }'}, "superclass_of: unknown task 'imagenot'"),
        ({"subset": '["cat"]'}, "nothing without classes_of"),
        ({"match": '"letters"', "classes": '{ a-b = "x", ab = "y" }'}, "same letters"),
        ({"folds": '{ count = 1, split = "train" }'}, "folds.count is 1"),
    ],
)
def test_a_hostile_record_is_refused_in_one_line_that_names_it(tmp_path, changes, message):
    with pytest.raises(ConfigError) as caught:
        read_task(write_record(tmp_path / "my.toml", **changes))
    assert message in str(caught.value) and "my.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_classes_of_another_task_can_be_cut_but_not_invented(tmp_path):
    path = tmp_path / "my.toml"
    text = write_record(path).read_text()
    base = "".join(line for line in text.splitlines(True) if not line.startswith("classes")) + 'classes_of = "cifar10"\n'
    path.write_text(base + 'subset = ["dog", "cat"]\n')
    assert list(read_task(path).label_names()) == ["cat", "dog"]
    path.write_text(base + 'subset = ["dog", "cow"]\n')
    with pytest.raises(ConfigError, match="unknown class of 'cifar10' in subset 'cow'"):
        read_task(path)
    path.write_text(base.replace("cifar10", "my"))
    with pytest.raises(ConfigError, match="classes_of: unknown task 'my'"):
        read_task(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "my.toml"
    with open(path, "wb") as handle:
        handle.truncate(MAX_RECORD_BYTES + 1)
    with pytest.raises(LimitError, match=r"my\.toml: is too large"):
        read_task(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "{b=" * 5000, "\x00", "a = 'unfinished"])
def test_what_is_no_toml_is_one_line(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"my\.toml: not TOML"):
        read_task(path)


def test_a_folder_or_a_file_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "my.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_task(tmp_path / "my.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        read_task(tmp_path / "bad.toml")


NAMES = st.text(string.printable + "äß漢\x7f", min_size=1, max_size=12)
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), NAMES), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
SETTINGS = st.sampled_from([
    "title", "version", "kind", "classes", "class_set", "keys", "match", "templates", "metric", "splits", "folds", "groups",
    "preprocess", "sources", "notes", "oracles", "superclass_of", "superclass_map", "numbers_from", "texts", "name", "x",
])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(SETTINGS, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=3))
def test_any_values_give_a_task_or_one_line(tmp_path, changes):
    def toml(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
        return str(value).lower() if isinstance(value, bool) else str(value)

    path = write_record(tmp_path / "my.toml", **{key: toml(value) for key, value in changes.items()})
    tomllib.loads(path.read_text())
    try:
        assert isinstance(read_task(path), Task)
    except OstensionError as error:
        assert "my.toml" in str(error) and "\n" not in str(error)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.lists(NAMES.filter(str.strip), min_size=1, max_size=3), min_size=2, max_size=5), NAMES)
def test_what_is_written_is_read_again(tmp_path, classes, title):
    try:
        task = Task(
            title=title, name="my", version=1, classes={key: tuple(names) for key, names in classes.items()},
            templates=("{}",), licence="", citation="",
        )  # fmt: skip
    except ConfigError:
        return  # names that two classes share
    (tmp_path / "my.toml").write_text(to_toml(task), encoding="utf-8")
    assert read_task(tmp_path / "my.toml") == task
