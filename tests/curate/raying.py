"""What the test of Ray runs in a process of its own: Ray warns, and leaves threads and signal handlers behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from ostension.cli.main import main
from ostension.curate.ray_executor import cluster, in_ray
from ostension.errors import ConfigError, DataError, ProcessError


class Job:
    """Doubles numbers. At 3 it does what `mode` says."""

    def __init__(self, mode: str, folder: str):
        self.mode, self.folder, self.made = mode, folder, 0

    def __call__(self, task, note):
        self.made += 1
        if task == 3:
            if self.mode == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mode == "killed once" and not Path(self.folder, "killed").exists():
                Path(self.folder, "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mode == "refused":
                raise ConfigError("no such thing", source="a/b.toml", expected="another", fix="write one")
            if self.mode == "bug":
                raise KeyError("a bug")
        time.sleep(0.02)
        return [task * 2, os.getpid(), self.made]


def answers(mode: str, folder: str) -> dict:
    try:
        found = list(in_ray(Job(mode, folder), range(10), 2))
    except (ConfigError, DataError, RuntimeError) as error:
        return {"kind": type(error).__name__, "said": str(error)}
    values, processes, made = zip(*found, strict=True)
    return {"values": values, "processes": len(set(processes)), "most": max(made)}


def everything(folder: str) -> dict:
    """Whole chains and single jobs over one instance."""
    found = {"cpus": os.cpu_count()}
    with cluster(2):
        for command in (
            ["run", "chain.toml", "-o", "ray"],
            ["write", "ray", "-o", "ray-out", "--shuffle", "--shard-size", "40", "--dropped"],
        ):
            found[command[0]] = main(["curate", *command, "--on", "ray", "--workers", "2"])
        for mode in ("well", "killed once", "refused", "bug", "killed", "well again"):
            found[mode] = answers(mode, folder)
        try:
            list(in_ray(Job("well", folder), range(10), 64))
        except ProcessError as error:
            found["many"] = str(error)
    return found


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    try:
        said = everything(sys.argv[1])
    except ProcessError as error:
        said = {"unusable": str(error)}
    Path("answers.json").write_text(json.dumps(said))
