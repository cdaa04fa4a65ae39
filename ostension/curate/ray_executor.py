"""One function over the workers of a Ray cluster, through Ray Data; answers in the order of the tasks.

`in_ray` stands beside `ostension.data.workers.in_processes` and takes the same work, so that what is done to a part is the
same code here, in several processes and on a cluster. Only numbers of parts and short answers travel: what is made of a part
is written by the worker that made it, into the folder that all nodes share. Each worker makes expensive things (a model, an
automaton of queries) once.

Without an address an instance is started on this machine and ended with the work; Ray's files go into a folder of their own,
which is removed. No usage statistics are sent. All nodes must see the work folder and the source under the same paths.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import tempfile
import traceback
import uuid
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from ostension.data.workers import Work
from ostension.errors import DataError, OstensionError, ProcessError, require_extra

EXTRA = "ray"
RETRIES = 2  # of a part whose worker ended: one that ends each worker must come to an end
STORE_BYTES = 100_000_000  # nothing large travels; Ray's own default is a third of the memory
# Read by Ray when it is imported or started: what we set only where the user has not.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning at each start
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else errors of its own making, such as a retry, in many lines
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@contextlib.contextmanager
def cluster(count: int = 0, address: str | None = None) -> Iterator[None]:
    """While entered, this process is connected to a cluster, and calls of `in_ray` use it; inside another one, nothing.

    Starting an instance takes ten seconds or more, so a chain of stages does it once.

    Args:
        count: processors of an instance that is started here; 0 for all.
        address: of a cluster ("auto", "HOST:PORT"); by default what RAY_ADDRESS says, and without it an instance is started
            here that ends on leaving.

    Raises:
        ProcessError: if the cluster cannot be reached, or an instance cannot be started.
        MissingExtraError: if Ray is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray = require_extra("ray", EXTRA)
    require_extra("ray.data", EXTRA)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the traceback of what is raised here as well
    if ray.is_initialized():  # the caller's own connection
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # The folder's name is short because sockets lie in it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local", num_cpus=count or os.cpu_count(), include_dashboard=False,
                    object_store_memory=STORE_BYTES, _temp_dir=folder, **quiet,
                )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            what = " ".join(str(error).split())[:300] or type(error).__name__
            raise ProcessError(f"Ray cannot be used: {what}", source=address or "an instance on this machine") from None
        try:
            yield
        finally:
            ray.shutdown()


def in_ray(work: Work, tasks: Iterable[Any], count: int = 0, address: str | None = None) -> Iterator[Any]:
    """The answers, each as soon as it and all before it are there.

    Args:
        work: what to do with a task; it must be importable on every node. Tasks and answers are what JSON can hold.
        count: workers, each with one processor; 0 for as many as there are processors.
        address: of the cluster, as for `cluster`.

    Raises:
        OstensionError: what `work` raised. Other exceptions arrive as a RuntimeError with their traceback.
        DataError: if a part ends its worker each time that it is tried; it is tried three times.
        ProcessError: if the cluster cannot be reached.
        MissingExtraError: if Ray is not installed.
    """
    given = list(tasks)
    if not given:
        return
    with cluster(count, address):
        answers: dict[int, Any] = {}
        at = 0
        for number, answer in _answers(work, given, count):
            answers[number] = answer
            while at in answers:
                yield answers.pop(at)
                at += 1
        if at < len(given):
            raise DataError(f"Ray gave {at} of {len(given)} answers", fix="run the command again: it goes on")


def _answers(work: Work, tasks: list[Any], count: int) -> Iterator[tuple[int, Any]]:
    import ray
    from ray.data import TaskPoolStrategy

    processors = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    workers = min(count or processors, len(tasks))
    if count and count > processors:
        raise ProcessError(
            f"--workers is {count}, but the cluster has {processors} processors",
            expected=f"at most {processors}", fix="leave --workers out to use all",
        )  # fmt: skip
    rows = [{"number": number, "task": json.dumps(task)} for number, task in enumerate(tasks)]
    doing = functools.partial(_on_worker, work=work, name=uuid.uuid4().hex, folder=os.getcwd())
    with warnings.catch_warnings():
        # Ray Data tries without end by default. It wants this to be named otherwise from 2.64 on, but has no other name for it.
        warnings.simplefilter("ignore")
        # Tasks, not actors: a process that has imported everything serves the next stage too.
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            doing, compute=TaskPoolStrategy(size=workers), num_cpus=1, max_retries=RETRIES
        )
    left = set(range(len(tasks)))
    try:
        for row in done.iter_rows():
            found = json.loads(row["answer"])
            if "problem" in found:
                raise _problem(**found["problem"])
            if "trace" in found:
                raise RuntimeError(f"a Ray worker failed at {tasks[row['number']]!r}:\n{found['trace']}")
            left.discard(row["number"])
            yield row["number"], found["answer"]
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        some = ", ".join(map(str, sorted(left)[:3])) + (", ..." if len(left) > 3 else "")
        raise DataError(
            f"a Ray worker ended and was not replaced ({kind}) while {len(left)} parts were left ({some})",
            fix="if memory ran out, use fewer workers; run the command again: it goes on",
        ) from None


# What a worker's process keeps from one task to the next: the work and whatever it has made, under the name of its call.
_held: dict[str, Work] = {}


def _on_worker(row: dict[str, Any], work: Work, name: str, folder: str) -> dict[str, Any]:
    """Do one task. An error is an answer too: one that is raised here would come back wrapped, with Ray's traceback."""
    if name not in _held:
        os.chdir(folder)  # paths of the source are as they were typed
        _held.clear()
        _held[name] = work
    found: dict[str, Any]
    try:
        found = {"answer": _held[name](json.loads(row["task"]), _no_note)}
    except OstensionError as error:
        source = None if error.source is None else str(error.source)
        facts = {"what": error.what, "source": source, "expected": error.expected, "fix": error.fix}
        found = {"problem": {"kind": type(error).__name__, **facts}}
    except Exception:
        found = {"trace": traceback.format_exc()}
    return {"number": row["number"], "answer": json.dumps(found)}


def _problem(kind: str, what: str, **rest: Any) -> OstensionError:
    """An error of a worker, of its own class where that is known here."""
    known: list[type[OstensionError]] = [OstensionError]
    for one in known:
        known += one.__subclasses__()
    return next((one for one in known if one.__name__ == kind), DataError)(what, **rest)


def _no_note(_: str) -> None:
    pass
