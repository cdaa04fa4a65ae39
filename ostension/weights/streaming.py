"""From sources to sinks: blocks that are made one after another, while what was made is written and summed.

Reading, its quick sum and the arithmetic make a block; writing, SHA-256 and its quick sum end it, and take about as long. Each
worker does what waits: the end of a block first, which has to be in order for each file, then another block. Only one block is
made at a time: its steps are many calls of well under a millisecond, and two threads with such calls wait for the interpreter
more than they compute (measured here: 8 microseconds a call, half the speed of one thread).
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ostension.runtime import available_cores
from ostension.weights.kernel import Output, Source, block_of, of_tensor, spans, used
from ostension.weights.sink import Sink
from ostension.weights.tensor_file import word_shift

WORKERS = 4  # at most: one that makes a block, and others that end blocks of different files
WAITING = 6  # blocks that may be made before they can be ended, besides one for each worker: waits are then few
Job = tuple[str, int, int]  # a tensor, and where a block of it starts and stops


def combine(sources: Sequence[Source], outputs: Sequence[Output], sinks: Sequence[Sink], dtypes: Sequence[Mapping]) -> None:
    """Write each output to its sink, reading every source once for outputs that share the order of their tensors.

    Raises:
        CheckpointError: for a number that is not finite in a source or, after narrowing, in a result; a variance below 0.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, sink in enumerate(sinks):
        groups.setdefault(tuple(sink.names), []).append(index)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a block is too little for several
    try:
        for names, members in groups.items():
            files = [(outputs[index], sinks[index], dtypes[index]) for index in members]
            _Stream(sources, files, names).run(min(WORKERS, available_cores(), 1 + len(files)))
    finally:
        torch.set_num_threads(threads)


class _Room:
    """Memory for one block of each file; `users` still want what is in it."""

    def __init__(self, files: int):
        self.users, self._memory = files, [torch.empty(0, dtype=torch.uint8)] * files

    def of(self, file: int, count: int, dtype: torch.dtype, place: int) -> Tensor:
        """For elements that belong at a place of a file, the same memory each time: fresh pages cost as much as the sums."""
        size, shift = count * dtype.itemsize, word_shift(place, dtype)
        if self._memory[file].numel() < size + 8:
            self._memory[file] = torch.empty(size + 8, dtype=torch.uint8)
        return self._memory[file][shift : shift + size].view(dtype)


class _Stream:
    """One pass over the sources, for files with the same order of tensors."""

    def __init__(self, sources: Sequence[Source], files: Sequence[tuple[Output, Sink, Mapping]], names: Sequence[str]):
        self._sources, self._files = sources, files
        # All below is looked at and changed by who holds this.
        self._changed = threading.Condition()
        self._jobs = (
            (name, *span) for name in names for span in spans(torch.Size(sources[0].shapes[name]).numel(), len(sources))
        )
        self._job = next(self._jobs, None)
        self._free: list[_Room] = []
        self._unfinished, self._making = 0, False
        self._made: list[collections.deque[tuple[Tensor, _Room]]] = [collections.deque() for _ in files]
        self._ending = [False] * len(files)
        self._failed: BaseException | None = None

    def run(self, workers: int) -> None:
        """Until all is written.

        Raises:
            Exception: what went wrong first.
        """
        self._free = [_Room(len(self._files)) for _ in range(workers + WAITING)]
        with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="blocks") as pool:
            try:
                for worker in [pool.submit(self._work) for _ in range(workers)]:
                    worker.result()
            except BaseException as error:  # an interruption of this thread
                self._fail(error)
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over() or self._waiting() is not None or self._can_make())
                if self._over():
                    return
                if (file := self._waiting()) is not None:
                    self._ending[file] = True
                    block, room = self._made[file].popleft()
                else:
                    assert self._job is not None
                    job, room = self._job, self._free.pop()
                    self._job, self._unfinished, self._making = next(self._jobs, None), self._unfinished + 1, True
                    room.users = len(self._files)
            try:
                if file is not None:
                    self._end(file, block, room)
                else:
                    self._make(job, room)
            except BaseException as error:
                self._fail(error)

    def _over(self) -> bool:
        return self._failed is not None or (self._job is None and not self._unfinished)

    def _can_make(self) -> bool:
        return self._job is not None and bool(self._free) and not self._making

    def _waiting(self) -> int | None:
        """A file of which a block waits, and that nobody is writing to."""
        return next((file for file, made in enumerate(self._made) if made and not self._ending[file]), None)

    def _make(self, job: Job, room: _Room) -> None:
        name, start, stop = job
        wanted = {index for output, _, _ in self._files for index in used(self._sources, of_tensor(output, name))}
        blocks = {index: self._sources[index].read(name, start, stop) for index in sorted(wanted)
                  if name in self._sources[index].dtypes}  # fmt: skip
        for file, (output, sink, dtypes) in enumerate(self._files):
            memory = room.of(file, stop - start, dtypes[name], sink.place(name, start))
            block = block_of(self._sources, of_tensor(output, name), name, blocks, dtypes[name], memory)
            with self._changed:
                self._made[file].append((block, room))
                self._making = file + 1 < len(self._files)
                self._changed.notify_all()

    def _end(self, file: int, block: Tensor, room: _Room) -> None:
        self._files[file][1].write(block)
        with self._changed:
            self._ending[file] = False
            room.users -= 1
            if not room.users:
                self._free.append(room)
                self._unfinished -= 1
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failed = self._failed or error
            self._changed.notify_all()
