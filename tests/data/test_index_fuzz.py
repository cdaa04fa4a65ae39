"""The index and the tables are files that anybody may have written: damaged ones are refused, or give pairs or data errors."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_making import members, write_tar

from ostension.data.open import open_pairs
from ostension.data.tar_shards import TarShards
from ostension.errors import ConfigError, DataError, LimitError

CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


@functools.cache
def shard_and_index() -> tuple[Path, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="ostension-fuzz-"))
    path = write_tar(folder / "a.tar", members(12))
    TarShards([path])
    return path, path.with_name("a.tar.idx").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def cleaned():
    yield
    shutil.rmtree(shard_and_index()[0].parent)


def read_all(path: Path) -> int:
    """Pairs that could be read; nothing but our own errors comes out."""
    count = 0
    try:
        source = open_pairs(path)
        source.fingerprint(), source.summary()
    except (DataError, ConfigError):
        return 0
    for index in range(min(len(source), 20)):
        try:
            source.key(index)
            count += len(source.read(index).texts) > 0
        except (DataError, LimitError):
            continue
    return count


@settings(max_examples=150, deadline=None, derandomize=True)
@given(changes=CHANGES, cut=st.one_of(st.just(0), st.integers(0, 4000)), tail=st.booleans())
def test_a_damaged_index_gives_pairs_or_data_errors(changes, cut, tail):
    path, good = shard_and_index()
    data = bytearray(good)
    for position, value in changes:
        # Half of the damage in the numbers at the end, half in the header.
        data[-1 - position % 700 if tail else position % len(data)] = value
    path.with_name("a.tar.idx").write_bytes(bytes(data[: len(data) - cut % len(data)]))
    assert 0 <= read_all(path) <= 20


@settings(max_examples=100, deadline=None, derandomize=True)
@given(changes=CHANGES)
def test_a_damaged_shard_gives_pairs_or_data_errors(changes):
    path, _ = shard_and_index()
    damaged = path.with_name("b.tar")
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % (12 * 3 * 1024)] = value
    damaged.write_bytes(data)
    damaged.with_name("b.tar.idx").unlink(missing_ok=True)
    assert 0 <= read_all(damaged) <= 12


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet='ab,"\n\t\r .png', max_size=120).map(str.encode)))
def test_any_bytes_as_a_table_give_pairs_or_data_errors(content):
    path = shard_and_index()[0].with_name("t.csv")
    path.write_bytes(b"filepath,title\n" + content)
    assert read_all(path) == 0


def test_any_bytes_as_parquet_give_data_errors():
    pytest.importorskip("pyarrow")
    path = shard_and_index()[0].with_name("p.parquet")
    random = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 12, 100, 3000):
        path.write_bytes(b"PAR1" + random.bytes(size) + b"PAR1")
        assert read_all(path) == 0
