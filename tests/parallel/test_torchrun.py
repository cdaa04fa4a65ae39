"""The command under torchrun, as people start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ostension.runlog import read_records

COMMAND = [
    "train", "--model", "tiny-vit", "--data", "emoji:train", "--batch-size", "16", "--steps", "24", "--precision", "fp32",
    "--checkpoint-every", "4", "--log-every", "1", "--set", "train.timeout_s=60",
]  # fmt: skip


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the children of a process from /proc")
def test_one_of_two_processes_is_killed_and_one_alone_finishes_the_run(tmp_path):
    folder = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(tmp_path / "told", "wb") as told:
        # `--`, because torchrun would take --run for the beginning of its own --run-path.
        command = [*launch, "-m", "ostension", "--", *COMMAND, "--run", str(folder)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, env=environment)
        try:
            deadline = time.monotonic() + 200
            while not (folder / "log.jsonl").exists() or len(read_records(folder, ["step"])) < 7:
                assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "told").read_text()
                time.sleep(0.01)
            facts = json.loads((folder / "run.json").read_text())
            second = next(pid for pid in children(run.pid) if pid != facts["process"])
            os.kill(second, signal.SIGKILL)
            killed = time.monotonic()
            assert run.wait(60) != 0
            assert time.monotonic() - killed < 40
        finally:
            run.kill()
            output = run.stdout.read()
            run.stdout.close()
    lines = (tmp_path / "told").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("ostension: error: ")]
    assert f"process 1 (pid {second} on " in line
    assert line.endswith("has ended; the same command again resumes the run")
    assert output == b""

    alone = [sys.executable, "-m", "ostension", *COMMAND, "--run", str(folder)]
    done = subprocess.run(alone, capture_output=True, timeout=250, env=environment, check=True)
    (resumed,) = read_records(folder, ["resume"])
    assert resumed["step"] >= 4
    assert json.loads(done.stdout)["status"] == "finished"
    assert [record["step"] for record in read_records(folder, ["step"])] == list(range(1, 25))
