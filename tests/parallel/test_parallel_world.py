"""The processes of a run: what they say to each other, and what they say when one is gone."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ostension import world as worlds
from ostension.errors import ProcessError


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_give_every_process_what_it_asked_for(processes, size):
    found = processes.run("exchanges", size)
    for rank, answer in enumerate(found):
        assert answer["rows"] == [value for other in range(size) for value in (10.0 * other, 10.0 * other + 1)]
        times = size * (size + 1) / 2
        assert answer["sum_to_rows"] == [times * 2 * rank, times * (2 * rank + 1)]
        total = 10.0 * size * (size - 1) / 2
        assert answer["sum"] == [total, total + size]
        assert answer["mean"] == pytest.approx([total / size, total / size + 1])
        assert answer["most"] == [[0.0, 1.0], [10.0 * (size - 1), 10.0 * (size - 1) + 1]]
        assert answer["first"] == [7.0, 7.0]
        assert answer["facts"] == [{"rank": other, "name": "é" * other} for other in range(size)]
        assert answer["by_first"] == ["only", 0]
        assert answer["current"] == [True, 1]
        assert answer["rank"] == [rank, rank, size, size]


def test_a_problem_of_one_ends_all_with_its_exit_status(processes):
    group = processes.start("one_has_a_problem", 2)
    assert group.wait() == [2, 2]
    assert group.stderr(1).strip() == "ostension: error: this cannot be"
    told = group.stderr(0).strip().splitlines()
    assert len(told) == 1
    assert f"process 1 (pid {group.pids[1]} on " in told[0]
    assert told[0].endswith("stopped: this cannot be")


def test_a_program_can_come_together_again(processes):
    assert processes.run("again_and_again", 2) == [[1.0, 1.0, 1.0]] * 2


@pytest.mark.parametrize("size", [2, 3])
def test_the_end_of_one_ends_the_others_with_one_line(processes, size):
    started = time.monotonic()
    group = processes.start("one_is_lost", size, how="SIGKILL", timeout_s=30)
    assert group.wait(limit_s=20) == [1, -signal.SIGKILL, 1][:size]
    assert time.monotonic() - started < 15
    for rank in {0, 2} & set(range(size)):
        (line,) = group.stderr(rank).strip().splitlines()
        assert f"process 1 (pid {group.pids[1]}" in line
        assert line.endswith("has ended; the same command again resumes the run")


def test_the_silence_of_one_ends_the_others_after_the_time_limit(processes):
    group = processes.start("one_is_lost", 2, how="SIGSTOP", timeout_s=2)
    try:
        assert group.wait(limit_s=20, ranks=[0]) == [1]
    finally:
        os.kill(group.pids[1], signal.SIGKILL)
    (line,) = group.stderr(0).strip().splitlines()
    assert f"process 1 (pid {group.pids[1]}" in line
    assert "did not answer for 2 s" in line
    assert group.wait(ranks=[1]) == [-signal.SIGKILL]


def test_one_that_never_comes_is_not_waited_for_without_end(processes):
    group = processes.start("one_never_comes", 2, timeout_s=2)
    assert group.wait(limit_s=30, ranks=[0]) == [1]
    (line,) = group.stderr(0).strip().splitlines()
    assert "the processes of the run did not find each other" in line
    group.wait()


def test_a_program_started_alone_is_its_own_world(monkeypatch):
    assert worlds.current() is worlds.ALONE
    with worlds.joined() as world:
        assert world is worlds.ALONE
        assert world.all_facts(3) == [3]
        assert world.by_first(lambda: 4) == 4
    assert worlds.is_first()
    monkeypatch.setenv("RANK", "1")
    assert worlds.is_first()  # not what torchrun sets
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not worlds.is_first()
    assert worlds.processes_here() == 2


def test_an_error_that_is_nobodys_loss_stays_what_it_is():
    world = worlds.World(size=2, places=("process 0", "process 1"))
    for what in ("shapes do not fit", "the download timed out: timeout"):
        with pytest.raises(RuntimeError, match=what), world.watched():
            raise RuntimeError(what)
    with pytest.raises(ProcessError, match="has ended"), world.watched():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7")
