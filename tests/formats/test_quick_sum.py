"""The quick checksum against its formula, in parts of any length, and what it notices."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.errors import CheckpointError
from ostension.formats import quick_sum
from ostension.formats.manifest import MANIFEST, verify, write_manifest
from ostension.formats.quick_sum import QuickSum, quick_sum_file


def by_formula(data: bytes) -> str:
    words, total = np.frombuffer(data.ljust(-(-len(data) // 8) * 8, b"\0"), "<u8"), 0
    for place, word in enumerate(words):
        block, within = divmod(place, quick_sum._WORDS)
        total += (((block + 1) * quick_sum._BLOCK_STEP) | 1) * (((within + 1) * quick_sum._STEP % 2**64) | 1) * int(word)
    return f"{total % 2**64:016x}"


@given(st.binary(max_size=100), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_sum_is_its_formula_whatever_the_parts(data, step):
    total = QuickSum()
    for start in range(0, len(data), step):
        total.update(data[start : start + step])
    assert total.value() == by_formula(data)


def test_a_sum_that_was_recorded_stays_what_it_was():
    total = QuickSum()
    for part in (bytes(range(256)) * 4999, bytes(range(256)) + b"a", b"bc"):  # two blocks and a bit
        total.update(part)
    assert total.value() == "4249d7a9de30030f"


def test_blocks_count_by_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_sum, "_WORDS", 4)
    data = random.Random(0).randbytes(173)
    (tmp_path / "file").write_bytes(data)
    assert quick_sum_file(tmp_path / "file") == by_formula(data)
    (tmp_path / "swapped").write_bytes(data[32:64] + data[:32] + data[64:])
    assert quick_sum_file(tmp_path / "swapped") != by_formula(data)


@given(st.binary(min_size=1, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_of_a_byte_is_noticed(data, draw):
    place, flip = draw.draw(st.integers(0, len(data) - 1)), draw.draw(st.integers(1, 255))
    other = bytearray(data)
    other[place] ^= flip
    assert by_formula(bytes(other)) != by_formula(data)


def test_a_manifest_is_compared_by_either_sum_and_without_the_quick_one(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    write_manifest(tmp_path)
    assert verify(tmp_path) == verify(tmp_path, quick=True)
    (tmp_path / "file").write_bytes(b"abd")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        verify(tmp_path)
    with pytest.raises(CheckpointError, match="checksum differs"):
        verify(tmp_path, quick=True)
    tree = json.loads((tmp_path / MANIFEST).read_text())
    del tree["files"]["file"]["quick"]  # as earlier versions wrote it
    (tmp_path / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        verify(tmp_path, quick=True)
