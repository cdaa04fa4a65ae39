from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from shard_making import decode, members, write_tar

from ostension.data.loader import InOrder, Loader
from ostension.data.rejects import Rejects
from ostension.data.sampler import Sampler
from ostension.data.tar_shards import TarShards
from ostension.data.workers import in_processes, in_threads
from ostension.errors import ConfigError, DataError

BROKEN = [("00003.png", b"not a png"), ("00003.txt", b"broken"), ("00007.png", b""), ("00007.txt", b"\xff")]


@pytest.fixture
def source(tmp_path):
    return TarShards([write_tar(tmp_path / "a.tar", members(60)), write_tar(tmp_path / "b.tar", members(40, 60))])


@pytest.fixture
def broken(tmp_path):
    good = [member for member in members(20) if member[0][:5] not in ("00003", "00007")]
    return TarShards([write_tar(tmp_path / "c.tar", good + BROKEN)])


def flat(batches):
    return [(batch.ids.tolist(), batch.keys, batch.images.tolist(), batch.texts, batch.rejects) for batch in batches]


def test_batches_hold_what_the_sampler_says(source):
    sampler = Sampler(100, 40, 5)
    for step, batch in enumerate(Loader(source, sampler, decode).batches(0, 4)):
        assert batch.ids.tolist() == sampler.batch(step).tolist() == batch.images[:, 0].tolist()
        assert batch.texts == tuple(f"picture {number}" for number in batch.ids)
        assert batch.keys[0] == source.key(int(batch.ids[0])) and len(batch) == 40


@pytest.mark.parametrize(("workers", "kind"), [(1, "threads"), (3, "threads"), (1, "processes"), (2, "processes")])
def test_batches_are_the_same_for_any_number_of_workers(source, broken, workers, kind):
    for pairs, size in ((source, 40), (broken, 7)):
        order = Sampler(len(pairs), size, 5)
        plain = Loader(pairs, order, decode, seed=3)
        parallel = Loader(pairs, order, decode, seed=3, workers=workers, kind=kind)
        assert flat(parallel.batches(1, 6)) == flat(plain.batches(1, 6)) == flat(plain.load(step) for step in range(1, 6))


def test_resuming_at_any_step_gives_the_batches_that_were_left(source):
    loader = Loader(source, Sampler(100, 30, 1), decode, seed=9)
    assert flat(loader.batches(0, 8))[5:] == flat(loader.batches(5, 8))


def test_parts_of_two_ranks_make_the_global_batch(source):
    loader = Loader(source, Sampler(100, 20, 1), decode)
    whole = loader.load(3)
    parts = [loader.load(3, rank=rank, world_size=2) for rank in range(2)]
    assert np.concatenate([part.images for part in parts]).tolist() == whole.images.tolist()


def test_random_choices_depend_on_seed_epoch_and_sample_only(source):
    def draws(seed, step):
        batch = Loader(source, Sampler(100, 50, 1), decode, seed=seed).load(step)
        return dict(zip(batch.ids.tolist(), batch.images[:, 1].tolist(), strict=True))

    other_batches = Loader(source, Sampler(100, 10, 8), decode, seed=1).load(0)
    first = {**draws(1, 0), **draws(1, 1)}
    assert all(first[sample] == drawn for sample, drawn in zip(other_batches.ids, other_batches.images[:, 1], strict=True))
    second = {**draws(1, 2), **draws(1, 3)}
    assert all(first[sample] != second[sample] for sample in first)
    assert all(drawn != first[sample] for sample, drawn in draws(2, 0).items())


def test_bad_samples_are_replaced_counted_and_logged(broken, tmp_path):
    rejects = Rejects(tmp_path / "rejects.jsonl")
    loader = Loader(broken, Sampler(20, 10, 0), decode, rejects=rejects)
    batches = list(loader.batches(0, 2))
    assert [len(batch) for batch in batches] == [10, 10]
    assert all(len(set(batch.ids.tolist())) == 10 for batch in batches)
    assert {18, 19}.isdisjoint(np.concatenate([batch.ids for batch in batches]).tolist())
    assert rejects.counts["not an image of … bytes"] >= 1
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert {(line["key"], line["reason"]) for line in lines} == {
        ("c/00003", "not an image of 9 bytes"),
        ("c/00007", "text is not UTF-8 at byte 0"),
    }
    assert all(line["step"] in (0, 1) for line in lines)


def test_evaluation_never_drops_a_sample(broken):
    loader = Loader(broken, InOrder(20, 8), decode, strict=True)
    with pytest.raises(DataError, match="^c/00003: not an image of 9 bytes"):
        list(loader.batches(0, 3))


def test_evaluation_visits_every_sample_once_and_keeps_the_small_last_batch(source):
    order = InOrder(100, 48)
    for workers in (0, 1):
        batches = list(Loader(source, order, decode, strict=True, workers=workers).batches(0, order.num_steps))
        assert [len(batch) for batch in batches] == [48, 48, 4]
        assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(100))


def test_too_many_bad_samples_stop_the_run():
    rejects = Rejects(limit=0.1, window=100)
    for step in range(10):
        rejects.add(step, 10, [("a/1", "broken")])
    with pytest.raises(DataError, match=r"11 of the last 100 samples could not be used, the last a/2 \(broken 8\)"):
        rejects.add(10, 10, [("a/2", "broken 7"), ("a/2", "broken 8")])
    assert rejects.counts == {"broken": 10, "broken …": 2}


def test_bad_samples_that_lie_far_back_do_not_stop_the_run():
    rejects = Rejects(limit=0.1, window=100)
    for step in range(60):
        rejects.add(step, 20, [("a/1", "broken")] if step % 2 else [])
    assert rejects.counts["broken"] == 30


def test_rejects_go_on_from_their_state_as_if_they_had_not_stopped():
    def run(stops):
        rejects = Rejects(limit=0.1, window=100)
        for step in range(60):
            if step in stops:
                state = json.loads(json.dumps(rejects.state()))
                rejects = Rejects(limit=0.1, window=100)
                rejects.load(state)
            try:
                rejects.add(step, 10, [("a/1", "broken")] * (2 if step > 20 else step % 3 == 0))
            except DataError as error:
                return step, str(error), rejects.counts
        return None

    assert run(()) == run((3, 22, 24)) == run(range(60)) and run(())[0] in range(21, 30)


def test_a_source_without_any_good_sample_ends_at_once(tmp_path):
    content = [(f"{number}.{suffix}", b"no") for number in range(9) for suffix in ("png", "txt")]
    source = TarShards([write_tar(tmp_path / "bad.tar", content)])
    with pytest.raises(DataError, match="9 samples in a row could not be used"):
        list(Loader(source, Sampler(9, 4), decode).batches(0, 1))


def test_an_error_in_decoding_comes_back_with_its_traceback(source):
    with pytest.raises(RuntimeError, match=r"failed at sample [ab]/\d{5} .*\n(.*\n)*.*ZeroDivisionError"):
        list(Loader(source, Sampler(100, 10), divide, workers=1).batches(0, 1))


def divide(pair, generator):
    return np.array(1 // 0), ""


def test_what_cannot_be_sent_to_workers_is_refused(source):
    with pytest.raises(ConfigError, match="cannot be sent to them"):
        list(Loader(source, Sampler(100, 10), lambda pair, generator: None, workers=1).batches(0, 1))


@dataclasses.dataclass
class KilledAt:
    """Decodes, and kills its own process at one sample."""

    text: str
    how: int = signal.SIGKILL

    def __call__(self, pair, generator):
        if pair.texts[0] == self.text:
            os.kill(os.getpid(), self.how)
        return decode(pair, generator)


def test_a_killed_worker_ends_the_run_with_its_signal_and_last_sample(source):
    start = time.monotonic()
    with pytest.raises(DataError, match=r"data worker [01] ended with signal SIGKILL at sample a/00042 \(number 42\)"):
        list(Loader(source, InOrder(100, 10), KilledAt("picture 42"), workers=2).batches(0, 10))
    assert time.monotonic() - start < 30


def test_a_worker_that_leaves_ends_the_run_with_its_exit_status(source):
    with pytest.raises(DataError, match=r"ended with exit status 3 at sample a/00011"):
        list(Loader(source, InOrder(100, 10), leave, workers=1).batches(0, 10))


def leave(pair, generator):
    if pair.texts[0] == "picture 11":
        os._exit(3)
    return decode(pair, generator)


def sleep_for_ever(task, note):
    note(f"sample {task}")
    time.sleep(600)


def test_a_worker_that_hangs_is_an_error_after_the_time_out():
    with pytest.raises(DataError, match=r"no data worker has answered for 2 s; worker 0 is at (sample 0|its start)"):
        list(in_processes(sleep_for_ever, iter([0]), 1, timeout_s=2))


def square(task, note):
    time.sleep(0.002 * (task % 3))
    return task * task


def test_answers_keep_the_order_of_the_tasks():
    expected = [number * number for number in range(40)]
    assert list(in_threads(square, iter(range(40)), 3)) == expected
    assert list(in_processes(square, iter(range(40)), 2)) == expected
    assert list(in_threads(square, iter([]), 2)) == []


def test_leaving_early_ends_the_workers(source):
    batches = Loader(source, InOrder(100, 10), decode, workers=2).batches(0, 10)
    next(batches)
    assert sum("ostension.data.workers" in command for command in commands_of_children()) == 2
    batches.close()
    assert not any("ostension.data.workers" in command for command in commands_of_children())


def commands_of_children() -> list[str]:
    """The command lines of this process's children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue  # it ended meanwhile
    return found


def test_a_plain_script_needs_no_main_guard_and_its_workers_die_with_it(tmp_path):
    write_tar(tmp_path / "a.tar", members(30))
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from shard_making import decode\n"
        "from ostension.data.loader import InOrder, Loader\n"
        "from ostension.data.open import open_pairs\n"
        f"batches = Loader(open_pairs({str(tmp_path / 'a.tar')!r}), InOrder(30, 10), decode, workers=1).batches(0, 3)\n"
        "print(next(batches).texts[3], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    # The worker holds our end of these pipes: had it stayed, this call would not have returned.
    assert done.stdout == "picture 3\n" and done.returncode == -9
