"""Curation on a Ray instance of two workers: the bytes of one process; workers that die; errors that stay one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from curating import tar_of

from ostension.cli.main import main
from ostension.curate.run import connected
from ostension.errors import MissingExtraError, ProcessError, UsageError

CAPTIONS = [f"{'red' if number % 4 else 'blue'} thing {number} on a {('box', 'table')[number % 2]}" for number in range(200)]
CHAIN = """
source = "a.tar"
part_size = 25

[[stages]]
name = "match"
queries = "queries.txt"

[[stages]]
name = "balance"
limit = 60
"""


def contents(folder):
    """The bytes of all files that do not hold times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("done.json", ".lock") and path.suffix != ".idx"
    }


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray takes half a minute to start where the processors are busy
def test_a_ray_instance_gives_the_bytes_of_one_process_and_survives_its_workers(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    tar_of(tmp_path / "a.tar", CAPTIONS)
    (tmp_path / "queries.txt").write_text("red\nblue\nbox\n")
    (tmp_path / "chain.toml").write_text(CHAIN)
    assert main(["curate", "run", "chain.toml", "-o", "one"]) == 0
    assert main(["curate", "write", "one", "-o", "one-out", "--shuffle", "--shard-size", "40", "--dropped"]) == 0
    script = Path(__file__).with_name("raying.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "answers.json").read_text())
    if "unusable" in found:
        pytest.skip(f"Ray does not start here: {found['unusable']}")
    assert (found["run"], found["write"]) == (0, 0), done.stderr[-3000:]
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert contents(tmp_path / "ray-out") == contents(tmp_path / "one-out")
    assert len(contents(tmp_path / "one")) > 30 and len(contents(tmp_path / "one-out")) > 12
    doubles = [2 * number for number in range(10)]
    assert found["well"]["values"] == doubles and found["well"]["most"] > 2  # what a process made stays with it
    assert found["killed once"]["values"] == doubles == found["well again"]["values"]
    assert found["refused"] == {"kind": "ConfigError", "said": "a/b.toml: no such thing; expected another; write one"}
    assert found["bug"]["kind"] == "RuntimeError" and "KeyError: 'a bug'" in found["bug"]["said"]
    assert found["killed"]["kind"] == "DataError" and "left (" in found["killed"]["said"]
    assert "--workers is 64, but the cluster has 2 processors" in found["many"]


def test_without_ray_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ostension\[ray\]'"), connected("ray"):
        pass


def test_an_address_is_for_ray(monkeypatch):
    with pytest.raises(UsageError, match="all runs here"), connected("local", 0, "auto"):
        pass
    with connected("local"):
        pass


def test_a_cluster_that_cannot_be_reached_is_one_line(monkeypatch):
    class Module:
        @staticmethod
        def is_initialized():
            return False

        @staticmethod
        def init(**options):
            raise ConnectionError("no\nnode at " + options["address"])

    monkeypatch.setitem(sys.modules, "ray", Module)
    monkeypatch.setitem(sys.modules, "ray.data", Module)
    with pytest.raises(ProcessError, match="host:1: Ray cannot be used: no node at host:1"), connected("ray", 0, "host:1"):
        pass
