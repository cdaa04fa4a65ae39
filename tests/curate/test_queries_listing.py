"""Query lists as files: the same list in every form, and one clear line for what can be no query."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ostension.curate.queries import Queries, read_queries
from ostension.errors import DataError

TEXTS = ["dog", "New York", "Beyoncé", "7"]


def written(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_a_saved_list_is_read_back_with_everything_in_it(tmp_path):
    made = Queries(
        TEXTS, ["words", "bigrams", "titles", "integers"], np.array([12, 3, 900, -1]), np.array([np.nan, 4.5, np.nan, np.nan]),
        facts={"thresholds": {"words": 12}, "note": "é"},
    )  # fmt: skip
    made.save(tmp_path / "q.parquet")
    found = read_queries(tmp_path / "q.parquet")
    assert (found.texts, found.origins, found.facts) == (made.texts, made.origins, made.facts)
    np.testing.assert_array_equal(found.counts, made.counts)
    np.testing.assert_array_equal(found.scores, made.scores)
    assert found.ranks.tolist() == [1, 1, 1, 1]
    assert found.fingerprint() == made.fingerprint()


def test_every_form_of_a_list_gives_the_same_queries(tmp_path):
    paths = [
        written(tmp_path / "a.txt", "\ufeff" + "\r\n".join(TEXTS) + "\r\n"),
        written(tmp_path / "b.txt", "\n".join(TEXTS)),
        written(tmp_path / "c.json", json.dumps(TEXTS)),
        written(tmp_path / "d.json", json.dumps(dict(zip(TEXTS, ("u", "b", "t", ""), strict=True)))),
        written(tmp_path / "e.csv", "count,query\n" + "".join(f'1,"{text}"\n' for text in TEXTS)),
        written(tmp_path / "f.tsv", "query\torigin\n" + "".join(f"{text}\tx\n" for text in TEXTS)),
    ]
    found = [read_queries(path) for path in paths]
    assert [queries.texts for queries in found] == [TEXTS] * len(paths)
    assert len({queries.fingerprint() for queries in found}) == 1
    assert found[3].origins == ["words", "bigrams", "titles", "integers"]
    assert found[5].by_origin() == {"x": 4}


def test_the_fingerprint_changes_with_the_order():
    one, other = Queries(["a", "b"], ["x", "x"]), Queries(["b", "a"], ["x", "x"])
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", "", "b"], "1 empty queries; the first is number 2, ''"),
        (["a", "b", "a", "b"], "2 repeated queries; the first is number 3, 'a', which is number 1 too"),
        (["a", " b"], "1 queries with white space at the ends or twice; the first is number 2, ' b'"),
        (["a", "new  york"], "with white space at the ends or twice"),
        (["a", "b\u00a0c"], "with white space at the ends or twice"),
        (["a", "b\x07"], "1 queries with control characters; the first is number 2, 'b\\x07'"),
        (["a" * 1001], "1 queries of more than 1000 letters"),
        ([], "no queries"),
        (["a", 3], "query number 2 is '3', not a text"),
    ],
)
def test_what_can_be_no_query_is_one_clear_line(tmp_path, texts, said):
    with pytest.raises(DataError) as caught:
        read_queries(written(tmp_path / "q.json", json.dumps(texts)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cleaning_mends_white_space_and_leaves_the_rest_out(tmp_path):
    path = written(tmp_path / "q.json", json.dumps([" dog", "", "new\u00a0 york", "dog", "b\x07", "cat"]))
    assert read_queries(path, clean=True).texts == ["dog", "new york", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.xlsx", b"", "ending in '.xlsx'"),
        ("q.txt", b"caf\xe9\n", "not UTF-8 at byte 3"),
        ("q.json", b'"dog"', "a JSON str"),
        ("q.json", b"[", "not JSON"),
        ("q.csv", b"a,b\n1,2\n", "no column of queries among 'a', 'b'"),
        ("q.csv", b"query,b\n1\n", "row 2 has 1 fields"),
        ("q.csv", b"", "no column of queries among none"),
        ("q.parquet", b"PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_list_is_one_clear_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_queries(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_queries(tmp_path / "q.txt")
