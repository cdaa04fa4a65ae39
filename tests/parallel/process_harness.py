"""Several processes that compute together, for tests: one server imports torch once and forks as many as a test wants.

Used through the fixture `processes`; run as a script it is the server. What runs in the processes is a function of
`parallel_jobs.py`, by name. Every wait has an end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from ostension.errors import OstensionError

LIMIT_S = 120.0


class Processes:
    """Starts groups of processes that find each other as under `torchrun`."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, job: str, size: int, **spec) -> Group:
        """Start `size` processes that run `parallel_jobs.<job>(**spec)`."""
        folder = Path(tempfile.mkdtemp(prefix="ostension-processes-"))
        pids = self.ask({"job": job, "size": size, "port": free_port(), "folder": str(folder), "spec": spec})
        return Group(self, pids, folder)

    def run(self, job: str, size: int, **spec) -> list:
        """What the job gives in each process, in order."""
        group = self.start(job, size, **spec)
        codes = group.wait()
        assert codes == [0] * size, f"exit codes {codes}:\n" + "\n".join(group.stderr(rank) for rank in range(size))
        return group.results()

    def ask(self, request):
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        self._server.wait(120)
        self._server.stdout.close()


class Group:
    """Processes under way."""

    def __init__(self, processes: Processes, pids: list[int], folder: Path):
        self.processes, self.pids, self.folder = processes, pids, folder
        self._codes: dict[int, int] = {}

    def code(self, rank: int) -> int | None:
        """The exit code of a process (minus the signal's number), None while it runs."""
        if rank not in self._codes:
            answer = self.processes.ask({"poll": self.pids[rank]})
            if answer is None:
                return None
            self._codes[rank] = answer
        return self._codes[rank]

    def wait(self, limit_s: float = LIMIT_S, ranks=None) -> list[int]:
        """The exit codes; those that do not end in time are killed, and the test fails."""
        ranks = range(len(self.pids)) if ranks is None else ranks
        deadline = time.monotonic() + limit_s
        while any(self.code(rank) is None for rank in ranks):
            if time.monotonic() > deadline:
                self.kill()
                told = "\n".join(f"process {rank}:\n{self.stderr(rank)}" for rank in range(len(self.pids)))
                raise AssertionError(f"still running after {limit_s} s:\n{told}")
            time.sleep(0.01)
        return [self._codes[rank] for rank in ranks]

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """End all that still run."""
        for rank, pid in enumerate(self.pids):
            if self.code(rank) is None:
                os.kill(pid, signal.SIGKILL)
        while any(self.code(rank) is None for rank in range(len(self.pids))):
            time.sleep(0.01)

    def results(self) -> list:
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(len(self.pids))]

    def stderr(self, rank: int) -> str:
        return (self.folder / f"{rank}.stderr").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(request, rank: int) -> int:
    """One process: the environment as torchrun sets it, then the job."""
    import parallel_jobs

    folder = Path(request["folder"])
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(folder / f"{rank}.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(null, 0), os.dup2(errors, 1), os.dup2(errors, 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["size"]),
        "LOCAL_WORLD_SIZE": str(request["size"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]),
    }  # fmt: skip
    try:
        result = getattr(parallel_jobs, request["job"])(**request["spec"])
    except OstensionError as error:
        print(f"ostension: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 70
    (folder / f"{rank}.json").write_text(json.dumps(result))
    return 0


def _serve() -> None:
    import parallel_jobs
    import torch

    parallel_jobs.import_everything()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        else:
            answer = []
            for rank in range(request["size"]):
                answer.append(os.fork())
                if answer[-1] == 0:
                    os._exit(_child(request, rank))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import process_harness

    process_harness._serve()
