"""One function in several processes (or threads), answers in the order of the tasks, and no way to hang.

Processes are started as fresh interpreters, not forked: they inherit no threads and no locks, and a script that trains
needs no `if __name__ == "__main__"`. Each has a socket of its own, so one that is killed takes no common lock with it; its
end is seen at once, and the error says how it ended and on which sample. Workers end by themselves when this process does.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from ostension.errors import ConfigError, DataError, OstensionError

AHEAD = 2  # tasks under way or waiting at each worker, so that none is idle while an answer travels
NOTE_BYTES = 512
TIMEOUT_S = 300.0
T = TypeVar("T")
Note = Callable[[str], None]


class Work(Protocol):
    """What workers do: `task` to answer; `note` is told what is being worked on, for the error message."""

    def __call__(self, task: Any, note: Note) -> Any: ...


def in_line(work: Work, tasks: Iterable[Any]) -> Iterator[Any]:
    """The answers, each worked out here when it is asked for."""
    for task in tasks:
        yield work(task, _no_note)


def in_threads(work: Work, tasks: Iterable[Any], count: int) -> Iterator[Any]:
    """The answers, worked out ahead by `count` threads."""
    pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="ostension-data")
    try:
        futures: deque[concurrent.futures.Future] = deque()
        for task in tasks:
            futures.append(pool.submit(work, task, _no_note))
            if len(futures) >= AHEAD * count:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_processes(work: Work, tasks: Iterable[Any], count: int, timeout_s: float = TIMEOUT_S) -> Iterator[Any]:
    """The answers, worked out ahead by `count` processes.

    Raises:
        ConfigError: if `work` cannot be sent to another process.
        DataError: if a worker ends, or no answer comes for `timeout_s`; names what the worker was working on.
        OstensionError: what `work` raised. Other exceptions arrive as a RuntimeError with their traceback.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(number, work)) for number in range(count)]
        numbered = enumerate(tasks)
        answers: dict[int, Any] = {}
        asked = given = 0
        exhausted = False
        while True:
            while not exhausted and asked - given < AHEAD * count:
                worker = min(workers, key=lambda worker: worker.waiting)
                try:
                    number, task = next(numbered)
                except StopIteration:
                    exhausted = True
                    break
                worker.ask(number, task)
                asked += 1
            if given == asked:
                return
            while given not in answers:
                _receive(workers, answers, timeout_s)
            yield answers.pop(given)
            given += 1


def _receive(workers: list[_Worker], answers: dict[int, Any], timeout_s: float) -> None:
    """Take in at least one answer."""
    ready = wait([worker.connection for worker in workers], timeout_s)
    if not ready:
        busy = max(workers, key=lambda worker: worker.waiting)
        raise DataError(f"no data worker has answered for {timeout_s:g} s; worker {busy.number} is at {busy.note()}")
    for worker in workers:
        if worker.connection in ready:
            number, answer = worker.receive()
            answers[number] = answer


class _Worker:
    """One worker process, as seen from here."""

    def __init__(self, number: int, work: Work):
        self.number, self.waiting = number, 0
        self._work = work

    def __enter__(self) -> _Worker:
        ours, theirs = socket.socketpair()
        self._notes = tempfile.TemporaryFile()
        # One thread each: parallel pictures are faster than parallel pixels.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        files = (theirs.fileno(), self._notes.fileno())
        code = f"from ostension.data.workers import serve; serve({files[0]}, {files[1]})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=files, env=environment, stdin=subprocess.DEVNULL, close_fds=True
            )
        self.connection = Connection(ours.detach())
        try:
            self._send(self._work)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        if self.waiting:
            self._process.kill()  # in the middle of something that nobody wants any more
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._notes.close()

    def ask(self, number: int, task: Any) -> None:
        self.waiting += 1
        self._send((number, task))

    def receive(self) -> tuple[int, Any]:
        try:
            number, answer, error, trace = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        self.waiting -= 1
        if error is not None:
            raise error
        if trace is not None:
            raise RuntimeError(f"a data worker failed at {self.note()}:\n{trace}")
        return number, answer

    def note(self) -> str:
        """What the worker said last that it is working on."""
        return os.pread(self._notes.fileno(), NOTE_BYTES, 0).decode("utf-8", errors="replace").strip() or "its start"

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise self._ended() from None
        except Exception as error:  # serialising fails in as many ways as there are types
            raise _cannot_travel(str(error)) from None

    def _ended(self) -> DataError:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return DataError(
            f"data worker {self.number} ended with {how} at {self.note()}",
            fix="if memory ran out, use fewer workers; the run can be resumed",
        )


def serve(socket_number: int, notes_number: int) -> None:
    """The whole life of a worker process: the work, then tasks, until the other end is closed."""
    # Interrupts are meant for the run, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(socket_number)

    def note(text: str) -> None:
        os.pwrite(notes_number, text.encode("utf-8", errors="replace")[:NOTE_BYTES].ljust(NOTE_BYTES), 0)

    try:
        work: Work | None = None
        failure: OstensionError | None = None
        try:
            work = connection.recv()
        except (EOFError, ConnectionError):
            return
        except OstensionError as error:
            failure = error
        except Exception as error:
            failure = _cannot_travel(f"{type(error).__name__}: {error}")
        while True:
            number, task = connection.recv()
            answer: tuple[int, Any, OstensionError | None, str | None]
            if work is None:
                answer = (number, None, failure, None)
            else:
                try:
                    answer = (number, work(task, note), None, None)
                except OstensionError as error:
                    answer = (number, None, error, None)
                except Exception:
                    answer = (number, None, None, traceback.format_exc())
            connection.send(answer)
    except (EOFError, OSError):
        pass


def _cannot_travel(why: str) -> ConfigError:
    return ConfigError(
        f"what the data workers are to do cannot be sent to them ({why})",
        fix="define it in a module that can be imported, or use workers=0 or threads",
    )


def _no_note(_: str) -> None:
    pass
