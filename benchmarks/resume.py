"""From `kill -9` to training again: seconds until the first new step, and the steps that were lost.

A run is started, killed without warning some steps after a checkpoint, and started again by the same command. Wall time and
processor time run from the start of the second process to its first record of a step; the start of the interpreter, the
imports, the verified reading of the checkpoint, the data and one step are all in it. The last row is the first start of the
same run, without anything to read.

    python benchmarks/resume.py [--model ViT-B-32] [--batch 32] [--record FILE]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _measure

from ostension.runlog import read_records

EVERY, KILLED_AFTER, PATIENCE_S = 3, 5, 600.0


def started(options, folder: Path) -> subprocess.Popen:
    """The command that trains in `folder`, or goes on there."""
    settings = {
        "--model": options.model, "--data": "emoji:train", "--batch-size": options.batch, "--steps": 1000, "--run": folder,
        "--checkpoint-every": EVERY, "--log-every": 1, "--threads": options.threads, "--precision": "bf16",
    }  # fmt: skip
    arguments = [str(part) for pair in settings.items() for part in pair]
    return subprocess.Popen(
        [sys.executable, "-m", "ostension", "train", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip


def until_step(process: subprocess.Popen, folder: Path, step: int, sitting: int) -> float:
    """Wait until a sitting has logged `step`, then kill the process; the seconds of wall time until that record."""
    begin = time.time()
    while time.time() - begin < PATIENCE_S:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with status {process.returncode}")
        if (folder / "log.jsonl").exists():
            records = read_records(folder)
            sittings = [index for index, record in enumerate(records) if record["kind"] in ("start", "resume")]
            if len(sittings) > sitting:
                mine = [record for record in records[sittings[sitting]:] if record["kind"] == "step" and record["step"] >= step]
                if mine:
                    process.kill()
                    process.wait()
                    return mine[0]["time"] - begin
        time.sleep(0.01)
    process.kill()
    raise SystemExit(f"no step was logged in {PATIENCE_S:g} s")


def processor_s() -> float:
    """Processor time of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    options = _measure.arguments(__doc__, model=("ViT-B-32", "a preset"), batch=(32, "pairs in a batch"))
    figures: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            used = processor_s()
            fresh = {"wall s": until_step(started(options, folder), folder, 1, 0), "processor s": processor_s() - used}
            until_step(started(options, folder), folder, KILLED_AFTER, 1)
            newest = max((folder / "checkpoints").glob("step_????????"))
            last = max(record["step"] for record in read_records(folder, ["step"]))
            saved = int(newest.name.removeprefix("step_"))
            used = processor_s()
            again = {
                "wall s": until_step(started(options, folder), folder, saved + 1, 2), "processor s": processor_s() - used,
                "steps lost": float(last - saved),
                "checkpoint MB": sum(file.stat().st_size for file in newest.iterdir()) / 1e6,
            }  # fmt: skip
        for row, found in {"first start": fresh, "after kill -9": again}.items():
            best = figures.setdefault(row, found)
            if found["wall s"] < best["wall s"]:
                figures[row] = found
    _measure.table(f"{options.model}, batch {options.batch}: until the first step is logged", figures)
    settings = {"model": options.model, "batch": options.batch, "rounds": options.rounds}
    _measure.write_record(options.record, "resume", settings, figures)


if __name__ == "__main__":
    main()
