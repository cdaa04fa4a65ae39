"""The processes of a run and what they say to each other: who am I, the few collectives, one clear line when one is gone.

`torchrun` starts N equal processes; each enters `joined(...)` and is then one of a `World`. Whatever works on a part of
something asks `current()`. Outside, and in a program that was started alone, that is `ALONE`, whose collectives cost
nothing and change nothing, so that the code for one process and for many is the same.

All processes call the same collectives in the same order. What only one does (writing files, telling the user) is guarded by
`world.first` and followed by something that all do.

Plain facts travel as JSON, never pickled. On GPUs tensors go through NCCL and facts through gloo; without, all goes through
gloo. Nothing else differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ostension.errors import ConfigError, OstensionError, ProcessError

if TYPE_CHECKING:
    import torch
    import torch.distributed
    from torch import Tensor

TIMEOUT_S = 600.0
# How long a process that lost the others waits for them to say that they are well: they fail within moments of each other.
ROLL_CALL_S = 2.0
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """The processes of a run, as seen from one of them.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        local_rank, local_size: the same among those on this machine.
        timeout_s: how long a collective waits for the others.
        device: where tensors for `sum` and the like must be: "cpu" or a GPU.
        places: of every process, "process 1 (pid 4711 on hostname)".
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    timeout_s: float = TIMEOUT_S
    device: str = "cpu"
    places: tuple[str, ...] = ("process 0",)
    store: torch.distributed.Store | None = dataclasses.field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def rows(self, local: Tensor) -> Tensor:
        """The rows of all processes below each other, (B, ...) from (B / size, ...); no gradients."""
        if self.size == 1:
            return local
        import torch
        import torch.distributed as dist

        everything = local.new_empty((self.size * len(local), *local.shape[1:]))
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with torch.no_grad(), self.watched():
            gather(everything, local.contiguous())
        return everything

    def sum_to_rows(self, everything: Tensor) -> Tensor:
        """The sum over all processes, of which each gets its rows: (B / size, ...) from (B, ...)."""
        if self.size == 1:
            return everything
        import torch
        import torch.distributed as dist

        assert len(everything) % self.size == 0
        local = everything.new_empty((len(everything) // self.size, *everything.shape[1:]))
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        with torch.no_grad(), self.watched():
            scatter(local, everything.contiguous())
        return local

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each."""
        return self._reduced(values, "SUM")

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return values if self.size == 1 else self._reduced(values, "SUM") / self.size

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of all processes, for every element."""
        return self._reduced(values, "MAX")

    def minimum(self, values: Tensor) -> Tensor:
        """The smallest of all processes, for every element."""
        return self._reduced(values, "MIN")

    def from_first(self, values: Tensor) -> None:
        """Overwrite a tensor with that of process 0."""
        if self.size > 1:
            import torch.distributed as dist

            with self.watched():
                dist.broadcast(values, 0)

    def all_facts(self, fact: T) -> list[T]:
        """What each process said, in order; a fact is anything that JSON can hold."""
        if self.size == 1:
            return [fact]
        import torch
        import torch.distributed as dist

        text = json.dumps(fact).encode("utf-8")
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(lengths, torch.tensor([len(text)]))
            longest = int(max(lengths))
            mine = torch.zeros(max(1, longest), dtype=torch.uint8)
            mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            everyone = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(everyone, mine)
        return [
            json.loads(bytes(row[: int(length)].numpy())) for row, length in zip(everyone, lengths, strict=True)
        ]  # fmt: skip

    def agree(self, problem: OstensionError | None = None) -> None:
        """Go on if nobody has a problem, else end together.

        Raises:
            OstensionError: the problem of this process; or, where it has none, a `ProcessError` that tells another's.
        """
        told = self.all_facts(("", 0) if problem is None else (str(problem), problem.exit_code))
        if problem is not None:
            raise problem
        for place, (trouble, exit_code) in zip(self.places, told, strict=True):
            if exit_code:
                raise ProcessError(f"{place} stopped: {trouble}", exit_code=exit_code)

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives here; if it fails in any process, all end (see `agree`)."""
        problem = result = None
        try:
            result = work()
        except OstensionError as error:
            problem = error
        self.agree(problem)
        return result  # type: ignore[return-value]

    def by_first(self, work: Callable[[], T]) -> T:
        """What `work`, done by process 0 alone, gives: a fact that JSON can hold. If it fails, all end (see `agree`)."""
        result = self.together(lambda: work() if self.first else None)
        return self.all_facts(result if self.first else None)[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the end or the silence of another process becomes a `ProcessError` of one line."""
        try:
            yield
        except RuntimeError as problem:
            if self.size == 1 or not _is_loss(problem):
                raise
            silent = "Timed out" in str(problem) or "timeout" in str(problem).lower()
            raise ProcessError(self._whats_wrong(silent), fix="the same command again resumes the run") from None

    def _whats_wrong(self, silent: bool) -> str:
        missing = self._missing()
        who = ", ".join(self.places[rank] for rank in missing) or "another process of the run"
        return f"{who} did not answer for {self.timeout_s:g} s" if silent else f"{who} has ended"

    def _missing(self) -> list[int]:
        """The processes that do not say within moments that they, too, have lost somebody."""
        missing = [rank for rank in range(self.size) if rank != self.rank]
        if self.size == 2 or self.store is None:
            return missing if self.size == 2 else []
        with contextlib.suppress(RuntimeError):
            self.store.set(f"lost/{self.rank}", "1")
            deadline = time.monotonic() + ROLL_CALL_S
            while missing and time.monotonic() < deadline:
                time.sleep(0.1)
                if not _store_lives():  # asking it would fill the screen with torch's own words
                    return [] if "TORCHELASTIC_USE_AGENT_STORE" in os.environ else [0]
                missing = [rank for rank in missing if not self.store.check([f"lost/{rank}"])]
            return missing
        return []

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        values = values.detach().clone(memory_format=torch.contiguous_format)
        with self.watched():
            dist.all_reduce(values, getattr(dist.ReduceOp, operation))
        return values


ALONE = World()
_current: World = ALONE
# The store in which the processes of this program meet, with rank and size, and how often they have: each time needs names
# of its own, as what was written the last time is still there.
_meeting: tuple[torch.distributed.Store, int, int] | None = None
_joined = 0


def current() -> World:
    """The world that this process is part of."""
    return _current


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works for itself: `current()` is `ALONE`."""
    global _current
    before, _current = _current, ALONE
    try:
        yield
    finally:
        _current = before


def is_first() -> bool:
    """Whether this process was started alone or as the first of several, known before they have joined."""
    return not _started_by_torchrun() or int(os.environ["RANK"]) == 0


def processes_here() -> int:
    """How many processes were started on this machine together with this one, itself included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _started_by_torchrun() else 1


@contextlib.contextmanager
def joined(device: str = "cpu", timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Inside, this process is one of those that `torchrun` started with it; by itself if there are none.

    Args:
        device: "cpu", or "cuda" for the GPU of the local rank.

    Raises:
        ConfigError: if there are fewer GPUs here than processes.
        ProcessError: if the others do not come within `timeout_s`.
    """
    global _current, _meeting, _joined
    if _current.size > 1 or not _started_by_torchrun():
        yield _current
        return
    import torch
    import torch.distributed as dist

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device.startswith("cuda")
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            what = f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}"
            raise ConfigError(what, expected="a process for each GPU", fix="lower --nproc-per-node")
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    waiting = datetime.timedelta(seconds=timeout_s)
    try:
        if _meeting is None:
            _meeting = next(iter(dist.rendezvous("env://", timeout=waiting)))
        _joined += 1
        found, rank, size = _meeting
        store = dist.PrefixStore(f"ostension/{_joined}", found)
        store.set_timeout(waiting)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waiting)
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise ProcessError(f"the processes of the run did not find each other: {reason}") from None
    world = World(
        rank=rank, size=size, local_rank=local_rank, local_size=processes_here(), timeout_s=timeout_s, device=device,
        store=store,
    )  # fmt: skip
    try:
        places = world.all_facts(f"(pid {os.getpid()} on {socket.gethostname()})")
        world = dataclasses.replace(world, places=tuple(f"process {at} {place}" for at, place in enumerate(places)))
        _current = world
        yield world
    finally:
        _current = ALONE
        dist.destroy_process_group()


def _started_by_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")) and (
        int(os.environ["WORLD_SIZE"]) > 1
    )


def _store_lives() -> bool:
    """Whether somebody listens where the processes met: process 0, or torchrun itself."""
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=1).close()
    except OSError:
        return False
    return True


def _is_loss(problem: RuntimeError) -> bool:
    """Whether an error of torch says that another process is gone or silent."""
    import torch.distributed as dist

    errors = tuple(getattr(dist, name) for name in ("DistNetworkError", "DistStoreError", "DistBackendError"))
    return isinstance(problem, errors) or "gloo/" in str(problem)  # gloo says in which of its files it failed
