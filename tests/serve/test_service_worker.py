"""The process that computes: it answers, dies, hangs, fails to load, and is replaced; its wire; and what it may not do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from service_making import PATIENCE_S, png, tiny_model, until

from ostension.errors import ConfigError, DataError
from ostension.formats.load import save
from ostension.image.transforms import Transform
from ostension.model.predictor import Predictor
from ostension.serve.backend import BatchFailed
from ostension.serve.batcher import BackendLost
from ostension.serve.compute import IMAGE, TEXT, Computation
from ostension.serve.frames import pack_frame, read_frame
from ostension.serve.logs import Log
from ostension.serve.settings import ServeSettings
from ostension.serve.worker import WorkerBackend

# The real process, with texts that raise and texts that hang.
BAD = """
import sys, time
from ostension.serve import compute, worker_main
plain = compute.Computation.run
def run(self, lane, batch):
    if lane == "text" and [0, 1, 511] in batch:
        raise ValueError("no such luck")
    if lane == "text" and [0, 2, 511] in batch:
        time.sleep(1000)
    return plain(self, lane, batch)
compute.Computation.run = run
sys.exit(worker_main.main(sys.argv[1:]))
"""
GOOD_TEXT, RAISES, HANGS = [0, 1, 2, 511], [0, 1, 511], [0, 2, 511]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    where = tmp_path_factory.mktemp("worker") / "model"
    save(model, where)
    return where


def with_worker(folder, work, *, command=None, **settings):
    """Run a coroutine function of (backend, events) with a process that computes."""

    async def main():
        stream = io.StringIO()
        made = ServeSettings(model=str(folder), dtype="float32", device="cpu", threads=1, max_batch=4, **settings)
        options = {} if command is None else {"command": command}
        backend = WorkerBackend(made, image_side=32, note=Log(stream), **options)
        await backend.start()
        try:
            return await work(backend, lambda: [json.loads(line) for line in stream.getvalue().splitlines()])
        finally:
            await backend.stop()
            pid = backend.pid
            assert pid is None or not alive(pid)

    return asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE_S))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pixels(model, seed=0):
    return Transform(model.config.preprocess).pixels(png(seed)).numpy()


@pytest.mark.slow
def test_it_computes_what_the_model_does_and_is_replaced_when_killed(folder, model):
    async def work(backend, events):
        assert not backend.ready and "loaded" in backend.reason
        with pytest.raises(BackendLost):
            await backend.compute(TEXT, [GOOD_TEXT])
        await until(lambda: backend.ready)
        pictures = [pixels(model, seed) for seed in range(4)]
        images, texts = await asyncio.gather(backend.compute(IMAGE, pictures), backend.compute(TEXT, [GOOD_TEXT, RAISES]))
        first, lost = backend.pid, []
        backend.on_lost = lambda: lost.append(1)
        os.kill(first, signal.SIGTERM)  # that is the service's to answer
        again = await backend.compute(TEXT, [GOOD_TEXT])
        os.kill(first, signal.SIGSTOP)
        flying = asyncio.create_task(backend.compute(TEXT, [GOOD_TEXT]))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(BackendLost):
            await flying
        assert not backend.ready and lost
        await until(lambda: backend.ready)
        assert backend.pid != first and backend.restarts == 1
        after = await backend.compute(TEXT, [GOOD_TEXT])
        return images, texts, again, after, backend.facts, [event["event"] for event in events()]

    images, texts, again, after, facts, events = with_worker(folder, work)
    np.testing.assert_allclose(images.rows, model.embed_images([png(seed) for seed in range(4)]).numpy(), atol=2e-6)
    with torch.no_grad():
        expected = model.encode_text(torch.tensor([GOOD_TEXT]), normalize=True).numpy()
    for found in (texts.rows[:1], again.rows, after.rows):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert images.seconds > 0 and facts.embed_dim == 32 and facts.dtype == "float32" and facts.threads == 1
    assert events.count("worker_ready") == 2 and "worker_ended" in events and "worker_restarts" in events


@pytest.mark.slow
def test_what_raises_costs_its_batch_and_what_hangs_the_process(folder):
    async def work(backend, events):
        await until(lambda: backend.ready)
        with pytest.raises(BatchFailed, match="no such luck"):
            await backend.compute(TEXT, [GOOD_TEXT, RAISES])
        assert backend.ready
        backend.settings = ServeSettings(model=str(folder), hang_s=0.5)
        with pytest.raises(BackendLost):
            await backend.compute(TEXT, [GOOD_TEXT, HANGS])
        backend.settings = ServeSettings(model=str(folder))
        await until(lambda: backend.ready)
        assert (await backend.compute(TEXT, [GOOD_TEXT])).rows.shape == (1, 32)
        return backend.restarts, [event["event"] for event in events()]

    restarts, events = with_worker(folder, work, command=(sys.executable, "-c", BAD))
    assert restarts == 1 and events.count("worker_hung") == events.count("batch_failed") == 1


@pytest.mark.slow
def test_a_replacement_with_other_weights_is_not_used(folder, model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)

    async def work(backend, events):
        await until(lambda: backend.ready)
        other = tiny_model()
        with torch.no_grad():
            other.visual.proj.mul_(-1)
        save(other, copy, overwrite=True)
        os.kill(backend.pid, signal.SIGKILL)
        await until(lambda: "changed" in backend.reason)
        assert not backend.ready
        with pytest.raises(BackendLost):
            await backend.compute(TEXT, [GOOD_TEXT])

    with_worker(copy, work)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told_and_tried_no_more_quickly(tmp_path):
    async def work(backend, events):
        told = []
        backend.on_failed = told.append
        await until(lambda: told)
        return told, backend.reason

    told, reason = with_worker(tmp_path / "nothing", work)
    assert "nothing" in told[0] and reason == "the model cannot be loaded"


def test_frames_go_both_ways_and_pickle_nothing():
    async def work():
        reader = asyncio.StreamReader()
        reader.feed_data(pack_frame({"a": [1, "ä"]}, b"\x00\x01") + pack_frame({}))
        reader.feed_eof()
        assert await read_frame(reader) == ({"a": [1, "ä"]}, b"\x00\x01")
        assert await read_frame(reader) == ({}, b"")
        with pytest.raises(asyncio.IncompleteReadError):
            await read_frame(reader)

    asyncio.run(work())


def test_predictors_that_look_at_others_are_not_served(model):
    weights = torch.nn.functional.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    for attribute, value in (("depends", "batch"), ("depends", "views"), ("takes", "videos")):
        predictor = Predictor(class_names=["a", "b"], weights=weights, scale=1.0, encoder=model)
        setattr(predictor, attribute, value)
        with pytest.raises(ConfigError, match="cannot be served"):
            Computation(model, {"mine": predictor})


def test_numbers_that_are_not_finite_are_a_failure():
    broken = tiny_model()
    with torch.no_grad():
        broken.text.token_embedding.weight[1] = float("nan")
    computation = Computation(broken)
    assert computation.run(TEXT, [[0, 2, 511]]).shape == (1, 32)
    with pytest.raises(DataError, match="finite"):
        computation.run(TEXT, [[0, 2, 511], [0, 1, 511]])


def test_a_row_does_not_depend_on_the_batch_that_it_was_in(model):
    computation = Computation(model)
    ids = [[0, *range(1, length), 511] for length in range(2, 18)]
    pictures = np.stack([pixels(model, seed) for seed in range(16)])
    for lane, batch in ((TEXT, ids), (IMAGE, pictures)):
        alone = np.concatenate([computation.run(lane, batch[index : index + 1]) for index in range(16)])
        for size in (2, 3, 8, 16):
            together = np.concatenate([computation.run(lane, batch[start : start + size]) for start in range(0, 16, size)])
            assert np.abs(together - alone).max() < 1e-6
