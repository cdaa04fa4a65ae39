"""The reader of large JSON: values in pieces, limits, and hostile files."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostension.errors import DataError, LimitError, OstensionError
from ostension.evals.elevater import json_stream
from ostension.evals.elevater.json_stream import JsonStream


def stream(text: str | bytes, **limits) -> JsonStream:
    return JsonStream(io.BytesIO(text.encode() if isinstance(text, str) else text), "file", **limits)


def whole(text: str) -> dict:
    reader = stream(text)
    found: dict = {}
    for name in reader.fields():
        found[name] = [reader.value() for _ in reader.items()] if name == "rows" else reader.value()
    reader.end()
    return found


NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def depth(tree) -> int:
    if isinstance(tree, dict | list):
        return 1 + max((depth(part) for part in (tree.values() if isinstance(tree, dict) else tree)), default=0)
    return 0


@given(tree=TREES, rows=st.lists(TREES, max_size=3), chunk=st.integers(1, 40), indent=st.sampled_from([None, 2]))
def test_values_come_back_whatever_the_pieces(tree, rows, chunk, indent):
    if max(map(depth, [tree, *rows])) > json_stream.MAX_DEPTH:
        return
    before, json_stream.READ_BYTES = json_stream.READ_BYTES, chunk
    try:
        document = {"a": tree, "rows": rows, "z": 1}
        assert whole(json.dumps(document, indent=indent, ensure_ascii=False)) == document
    finally:
        json_stream.READ_BYTES = before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ends too early"),
        ("[]", r"'\[' where '\{' was expected"),
        ('{"a": 1', "ends too early"),
        ('{"a": 1]', r"'\]' where ',' or '\}' was expected"),
        ('{"a" 1}', "'1' where ':' was expected"),
        ('{"a": 1, "a": 2}', "the field 'a' comes twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": }', "not JSON"),
        ('{"a": 01}', "not JSON"),
        ('{"a": "x}', "ends too early"),
        ('{"a": 1} {}', "something follows"),
        ('{3 : 1}', "a name of a field is no text"),
        ('{"a": ' + "9" * 5_000 + "}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_one_line_with_its_place(text, line):
    reader = stream(text)
    with pytest.raises(DataError, match=line) as caught:
        for _ in reader.fields():
            reader.value()
        reader.end()
    assert "\n" not in str(caught.value)


def test_depth_length_names_and_bytes_are_limited():
    for text, limits, line in (
        ('{"a": ' + "[" * 50_000, {}, "nested deeper than 8"),
        ('{"' + "n" * 5_000 + '": 1}', {}, "more than 200 letters"),
        ('{"a": 1' + " " * 5_000 + "}", {"max_bytes": 1_000}, "holds more than 1,000 bytes"),
        ('{"a": "' + "x" * 5_000, {"max_bytes": 1_000}, "holds more than 1,000 bytes"),
    ):
        reader = stream(text, **limits)
        with pytest.raises(LimitError, match=line):
            for _ in reader.fields():
                reader.value()
    with pytest.raises(LimitError, match="a value of more than 10 letters"):
        stream("1" * 40).value(limit=10)


def test_where_numbers_are_wanted_texts_and_objects_are_refused():
    assert stream("[[1, 2.5], []]").value(numbers=True) == [[1, 2.5], []]
    for text in ('["a"]', '[{"a": 1}]'):
        with pytest.raises(DataError, match="among numbers"):
            stream(text).value(numbers=True)


@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_value_or_one_line(data):
    reader = stream(b'{"data": ' + data)
    try:
        for _ in reader.fields():
            reader.value()
    except OstensionError as error:
        assert "\n" not in str(error)
