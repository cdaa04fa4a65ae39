"""Filters: what each comparison lets pass, that text and tree say the same, and what a mistake is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_making import key, unit_rows

from ostension.errors import ConfigError, UsageError
from ostension.store import Store
from ostension.store.facts import Facts
from ostension.store.where import Where, parse

ROWS = [
    {"labels": ["cat"], "texts": ["A cat on a mat"], "width": 800, "camera": "c1", "day": "2026-11-02", "exif": {"iso": 100}},
    {"labels": ["dog", "cat"], "texts": ["two friends"], "width": 640, "camera": "c 2", "day": "2026-11-22"},
    {"labels": ["dog"], "texts": [], "width": "320", "camera": "C1", "blurred": True, "tags": ["old", "torn"]},
    {"labels": [], "texts": ["a car"], "camera": None, "blurred": False, "exif": {"iso": 400}},
]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return Facts(made(tmp_path_factory.mktemp("where"), ROWS))


def made(folder, rows):
    fields = [{name: value for name, value in row.items() if name not in ("labels", "texts")} for row in rows]
    with Store(folder).writer(key()) as writer:
        writer.append(
            unit_rows(0, len(rows)),
            id=[f"p{number}" for number in range(len(rows))],
            labels=[json.dumps(row["labels"]) for row in rows],
            texts=[json.dumps(row["texts"]) for row in rows],
            fields=[json.dumps(field) for field in fields],
            sample=np.arange(len(rows)),
        )
    return Store(folder).open(key())


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("label = cat", [0, 1]),
        ("labels == cat", [0, 1]),
        ("label != cat", [2, 3]),
        ("label in (cat, dog)", [0, 1, 2]),
        ("label not in (cat)", [2, 3]),
        ("width >= 640", [0, 1]),
        ("width < 640", [2]),
        ("width = 320", [2]),
        ("width = '320'", [2]),
        ("width != 800", [1, 2, 3]),
        ("width exists", [0, 1, 2]),
        ("not width exists", [3]),
        ("camera = c1", [0]),
        ("camera = 'c 2'", [1]),
        ("camera contains 1", [0, 2]),
        ("camera prefix C", [0, 1, 2]),
        ("text contains 'on a'", [0]),
        ("day > 2026-11-02", [1]),
        ("day <= 2026-11-22", [0, 1]),
        ("blurred = true", [2]),
        ("blurred = false", [3]),
        ("tags = torn", [2]),
        ("exif.iso > 100", [3]),
        ("sample in (0, 3)", [0, 3]),
        ("id = p1 or id = p2", [1, 2]),
        ("label = cat and width >= 640 and not camera = c1", [1]),
        ("label = dog or label = cat and width = 800", [0, 1, 2]),
        ("(label = dog or label = cat) and width = 800", [0]),
        ("NOT label = cat AND width exists", [2]),
        ("width > abc", []),
    ],
)
def test_what_passes(facts, text, passing):
    where = parse(text)
    assert np.flatnonzero(where.mask(facts)).tolist() == passing
    assert parse(str(where)) == where
    assert np.flatnonzero(parse(where.tree()).mask(facts)).tolist() == passing


def test_a_tree_may_be_short(facts):
    assert parse({"label": "cat"}) == parse("label = cat")
    assert parse({"label": ["cat", "dog"]}) == parse("label in (cat, dog)")
    assert parse({"width": {"gte": 600, "lt": 700}}).mask(facts).tolist() == [False, True, False, False]
    assert parse({"or": [{"id": "p1"}, {"not": {"label": "dog"}}]}) == parse("id = p1 or not label = dog")
    assert parse({"camera": {"exists": False}}).mask(facts).tolist() == [False, False, False, True]


def test_an_unknown_field_is_told_with_the_nearest(facts):
    with pytest.raises(ConfigError, match=r"unknown field 'widht'.*nearest: 'width'"):
        parse("widht > 3").mask(facts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "an empty filter"),
        ("label", "it ends too early; expected a comparison after 'label'"),
        ("label = red panda", "'panda' at character 13.*a text of several words needs quotes"),
        ("label = 'red", "cannot be read; expected quotes around texts"),
        ("(label = cat", "expected a closing bracket"),
        ("label = cat)", r"'\)' at character 12"),
        ("label in cat", "expected a list in brackets"),
        ("label in ()", "expected a value"),
        ("label ~ cat", "'~' at character 7; expected a comparison"),
        ("label not cat", "expected 'in' after 'not'"),
        ("= cat", "expected the name of a field"),
        ("not " * 100 + "a = b", "too many levels"),
        ({}, "not empty"),
        ([], "a filter of type list"),
        ({"a": {"like": 1}}, "'like' in the filter; expected a known comparison"),
        ({"a": {"in": 1}}, "expected a list of values"),
        ({"a": None}, "expected a text, a finite number"),
        ({"a": float("nan")}, "expected a text, a finite number"),
        ({"a": {"exists": 1}}, "expected true or false"),
        ({"and": []}, "'and' of nothing"),
    ],
)
def test_a_filter_that_is_none_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        parse(given)


names = st.text(min_size=1, max_size=6) | st.sampled_from(["label", "and", "not", "in", "a.b", "exists"])
values = st.text(max_size=6) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
leaves = st.one_of(
    st.builds(
        Where,
        st.sampled_from(["eq", "ne", "lt", "lte", "gt", "gte", "contains", "prefix"]),
        names,
        values,
    ),
    st.builds(Where, st.sampled_from(["in", "nin"]), names, st.lists(values, min_size=1, max_size=3).map(tuple)),
    st.builds(Where, st.just("exists"), names, st.just(True)),
)


trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda part: Where("not", parts=(part,)), inner),
        st.builds(Where, st.sampled_from(["and", "or"]), parts=st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)  # fmt: skip


@given(trees)
@settings(max_examples=100, deadline=None)
def test_a_filter_written_out_is_read_back(where):
    assert parse(str(where)) == where


@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["a", "=", "(", ")", "not", "and", "in", ",", "'x y'", "3"])).map(" ".join)
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_refused_cleanly(text):
    try:
        where = parse(text)
    except UsageError:
        return
    assert parse(str(where)) == where


def test_values_are_tested_once_each_and_deleted_rows_are_not_seen(tmp_path):
    made(tmp_path, ROWS)
    with Store(tmp_path).writer(key()) as writer:
        writer.delete([0])
    facts = Facts(Store(tmp_path).open(key()))
    seen = []
    facts.rows_where("camera", lambda value: seen.append(value) or True)
    assert sorted(seen) == ["C1", "c 2"]
    assert parse("label = cat").mask(facts).tolist() == [True, False, False]
