"""A collection in a real PostgreSQL with pgvector: the answers are those of the files, and only what changed is sent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from database_making import binaries, server
from store_making import key, names, unit_rows

from ostension.errors import ConfigError, DataError
from ostension.store import Store
from ostension.store.searcher import Searcher
from ostension.store.where import parse

pytest.importorskip("psycopg")

FILTERS = (
    "label = cat",
    "label != cat",
    "label in (cat, dog) and width >= 640",
    "not (width < 300 or camera prefix C)",
    "width = 200 or width = '300'",
    "camera contains 1",
    "blurred = true",
    "blurred = false or day > 2026-11-15",
    "exif.iso > 150",
    "exif.iso exists and not label = dog",
    "id in (id1, id2, id30)",
    "sample < 5",
    'text contains "o\'clock %s"',
)


@pytest.fixture(scope="module")
def url():
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL with pgvector is installed")
    with server(programs) as running:
        yield running


def filled(folder, stored="float32", count=60):
    fields = []
    for n in range(count):
        entry = {"width": 100 * (n % 10) if n % 3 else str(100 * (n % 10)), "day": f"2026-11-{n % 28 + 1:02d}"}
        entry |= {"camera": f"{'cC'[n % 2]}{n % 3}"} if n % 4 else {}
        entry |= {"blurred": n % 2 == 0} if n % 5 else {}
        entry |= {"exif": {"iso": 100 + 10 * n}} if n % 2 else {}
        fields.append(json.dumps(entry))
    with Store(folder).writer(key(stored=stored)) as writer:
        writer.append(
            unit_rows(0, count),
            id=names(0, count),
            labels=[json.dumps([["cat"], ["dog"], ["cat", "dog"], []][n % 4]) for n in range(count)],
            texts=[json.dumps(["five o'clock %s tea"] if n % 7 == 0 else []) for n in range(count)],
            fields=fields,
            sample=np.arange(count),
        )
    return Store(folder).open(key(stored=stored))


def database(url):
    from ostension.store.pgvector import Database

    return Database(url)


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_answers_and_filters_are_those_of_the_files(tmp_path, url, stored):
    opened = filled(tmp_path, stored)
    pushed = database(url).push(opened)
    assert (pushed.sent, pushed.removed, pushed.rows) == (60, 0, 60)
    there, here = database(url).searcher(opened), Searcher(opened)
    asked = unit_rows(1, 3)
    for text in (None, *FILTERS):
        where = None if text is None else parse(text)
        for theirs, ours in zip(there.find(asked, 9, where), here.find(asked, 9, where), strict=True):
            tolerance = 2e-3 if stored == "float16" else 1e-6  # there the query is rounded, too
            np.testing.assert_allclose([hit.score for hit in theirs], [hit.score for hit in ours], atol=tolerance)
            if stored == "float32":
                assert [hit.id for hit in theirs] == [hit.id for hit in ours], text
                assert [(hit.row, hit.fields) for hit in theirs] == [(hit.row, hit.fields) for hit in ours]
    assert there.note == "" and there.find(asked, 0) == [[], [], []]


def test_a_push_sends_what_changed_and_a_change_is_refused_until_then(tmp_path, url):
    opened = filled(tmp_path)
    database(url).push(opened)
    assert database(url).push(opened).sent == 0
    with Store(tmp_path).writer(key()) as writer:
        writer.delete([3, 4])
    now = Store(tmp_path).open(key())
    with pytest.raises(DataError, match="in another state; push it again"):
        database(url).searcher(now)
    pushed = database(url).push(now)
    assert (pushed.sent, pushed.removed, pushed.rows) == (0, 2, 58)
    hits = database(url).searcher(now).find(opened.rows[3:4], 58)[0]
    assert len(hits) == 58 and "id3" not in [hit.id for hit in hits]
    assert sorted(hit.row for hit in hits) == list(range(58))


def test_an_index_is_measured_and_says_so(tmp_path, url):
    opened = filled(tmp_path, count=400)
    pushed = database(url).push(opened, hnsw=True)
    assert pushed.recall >= 0.95
    there = database(url).searcher(opened)
    assert "approximate: HNSW index in PostgreSQL, measured recall@10" in there.note
    hits = there.find(opened.rows[:1], 5, parse("label = cat"))[0]
    assert len(hits) == 5 and all("cat" in hit.fields["labels"] for hit in hits)


def test_what_cannot_be_asked_is_refused_cleanly(tmp_path, url):
    opened = filled(tmp_path / "one")
    other = Store(tmp_path / "other")
    with other.writer(key(weights="b" * 64)) as writer:
        writer.append(unit_rows(0, 3), id=names(0, 3))
    with pytest.raises(DataError, match="does not have this collection"):
        database(url).searcher(other.open(key(weights="b" * 64)))
    database(url).push(opened)
    there = database(url).searcher(opened)
    with pytest.raises(ConfigError, match="unknown field 'widht'.*nearest: 'width'"):
        there.find(unit_rows(0, 1), 3, parse("widht > 3"))
    with pytest.raises(DataError, match=r"queries of shape \(1, 9\)"):
        there.find(np.ones((1, 9), np.float32))
    with pytest.raises(DataError, match="the database says") as caught:
        database("postgresql://tester:secret@127.0.0.1:1/none").push(opened)
    assert "secret" not in str(caught.value)
