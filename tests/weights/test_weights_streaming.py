"""Blocks are made, written and summed by several workers: the files that one worker writes, and no worker is left waiting."""

from __future__ import annotations

import threading

import pytest
import torch
from weight_samples import moved, tiny, weights, written

from ostension.errors import CheckpointError
from ostension.formats import manifest
from ostension.weights import arithmetic, kernel, streaming
from ostension.weights.sink import Sink
from ostension.weights.tensor_file import TensorFile

ALPHAS = (0.25, 0.5, 0.75)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 1 << 12)  # many blocks of a small model
    model = tiny()
    return written(model, tmp_path / "start"), written(moved(model, 1), tmp_path / "end")


def line(pair, folder):
    arithmetic.interpolate(*pair, {alpha: folder / f"{alpha}" for alpha in ALPHAS})
    return [weights(folder / f"{alpha}") for alpha in ALPHAS]


@pytest.mark.parametrize("cores", [2, 7])
def test_any_number_of_workers_writes_the_files_that_one_does(cores, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "available_cores", lambda: 1)
    alone = line(pair, tmp_path / "alone")
    monkeypatch.setattr(streaming, "available_cores", lambda: cores)
    assert line(pair, tmp_path / "together") == alone
    for alpha in ALPHAS:
        manifest.verify(tmp_path / "together" / f"{alpha}")  # SHA-256
        manifest.verify(tmp_path / "together" / f"{alpha}", quick=True)


def test_a_source_is_read_by_one_worker_at_a_time_and_in_order(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "available_cores", lambda: 4)
    inside, places, real = threading.Lock(), {}, TensorFile.read

    def read(self, name, start, stop):
        assert inside.acquire(blocking=False)
        try:
            places.setdefault(self.path, []).append(self._offsets[name] + start * self.dtypes[name].itemsize)
            return real(self, name, start, stop)
        finally:
            inside.release()

    monkeypatch.setattr(TensorFile, "read", read)
    line(pair, tmp_path / "out")
    assert len(places) == 2 and all(found == sorted(found) and len(found) > 100 for found in places.values())


@pytest.mark.parametrize("at", ["read", "write"])
def test_what_goes_wrong_in_one_worker_ends_all_of_them(at, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "available_cores", lambda: 3)
    before, count = threading.active_count(), []
    owner = TensorFile if at == "read" else Sink
    real = getattr(owner, at)

    def fails(self, *arguments):
        count.append(1)
        if len(count) > 40:
            raise CheckpointError("went wrong", source="a block")
        return real(self, *arguments)

    monkeypatch.setattr(owner, at, fails)
    with pytest.raises(CheckpointError, match="went wrong"):
        line(pair, tmp_path / "out")
    assert threading.active_count() == before and not (tmp_path / "out" / "0.5").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_elements_lie_in_memory_where_the_files_words_do(dtype, tmp_path):
    model = tiny().to(dtype)
    folder = written(model, tmp_path / "model")
    with TensorFile(folder / "model.safetensors") as file:
        for name, value in model.state_dict().items():
            found = file.read(name, 0, value.numel())
            assert found.dtype == value.dtype and torch.equal(found, value.reshape(-1)), name
            assert found.data_ptr() % found.element_size() == 0
