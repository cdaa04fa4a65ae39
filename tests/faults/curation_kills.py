"""Runs commands in forked processes that are killed at random moments: everything is imported once, so that many fit.

python curation_kills.py SEED KILLS COMMANDS.json     commands are run in order until each has ended
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time


def run(command: list[str]) -> int:
    """A command in a process of its own; its exit status. The parent goes on at once."""
    process = os.fork()
    if process:
        return process
    from ostension.cli.main import main

    status = 70
    try:
        status = main(command)
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(process: int, patience_s: float | None) -> int | None:
    """Its exit status; None if it was killed because it took longer than that."""
    begun = time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if patience_s is not None and time.monotonic() - begun > patience_s:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.002)


def main() -> None:
    import PIL.Image  # noqa: F401
    import pyarrow.compute
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    import ostension.cli.curate
    import ostension.curate.run
    import ostension.curate.write
    import ostension.data.open  # noqa: F401

    chance, kills = random.Random(int(sys.argv[1])), int(sys.argv[2])
    whole, commands = json.loads(open(sys.argv[3]).read())
    times = []
    for command in whole:
        begun = time.monotonic()
        assert ended(run(command), None) == 0, command
        times.append(time.monotonic() - begun)
    for command, took in zip(commands, times, strict=True):
        left = kills
        while left and ended(run(command), chance.random() * took * 0.7) is None:
            left -= 1
        status = ended(run(command), None)
        print(json.dumps({"kills": kills - left, "status": status, "seconds": took}))


if __name__ == "__main__":
    main()
