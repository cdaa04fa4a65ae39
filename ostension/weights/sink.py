"""A safetensors file that is written front to back: the header first, for all sizes are known, then tensor after tensor.

Summing, writing and flushing have a thread each, so that the blocks' arithmetic does not wait for them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ostension.formats.manifest import Sums
from ostension.formats.quick_sum import QuickSum
from ostension.weights.tensor_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Blocks that wait to be summed and written: a few keep the other processor busy, more would be memory without use.
_IN_FLIGHT = 4
_FLUSH = 1 << 26  # bytes after which the disk begins: left to the end, it would be waited for


@dataclasses.dataclass(frozen=True)
class Workers:
    """Threads of one worker each, so that what is given to one of them is done in order."""

    summing: concurrent.futures.Executor
    writing: concurrent.futures.Executor
    flushing: concurrent.futures.Executor


class Sink:
    """Takes the blocks of tensors in the order of `names`; gives the sums of the file.

    Args:
        dtypes, shapes: of what will be written, by name.
        metadata: texts for the header.

    Attributes:
        names: in the order of the file: wider types first, as the safetensors library has it, then by name.
    """

    def __init__(
        self,
        path: Path,
        dtypes: Mapping[str, torch.dtype],
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
        workers: Workers,
    ):
        self.names = order(dtypes)
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name in self.names:
            start, end = end, end + torch.Size(shapes[name]).numel() * dtypes[name].itemsize
            header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, so that they can be mapped
        self._left, self._workers, self._sums = end, workers, (hashlib.sha256(), QuickSum())
        self._waiting: collections.deque[tuple[concurrent.futures.Future[None], ...]] = collections.deque()
        self._written, self._flush = 0, concurrent.futures.Future[None]()
        self._flush.set_result(None)
        self._file = open(path, "wb", buffering=0)  # closed by `close`
        if hasattr(os, "posix_fallocate") and end:  # the disk finds the place once, and says at once where there is none
            os.posix_fallocate(self._file.fileno(), 0, 8 + len(text) + end)
        self._put(memoryview(len(text).to_bytes(8, "little") + text))

    def write(self, block: Tensor) -> None:
        """The next elements; `block` is not to be changed afterwards."""
        data = block.contiguous().view(-1).view(torch.uint8).numpy().data
        self._left -= len(data)
        self._put(data)

    def finish(self) -> Sums:
        """The sums of the whole file, which is then on the disk.

        Raises:
            OSError: if it could not be written.
        """
        assert self._left == 0, "the blocks are not what the header says"
        self._wait(0)
        self._flush.result()
        os.fsync(self._file.fileno())
        digest, quick = self._sums
        return Sums(digest.hexdigest(), quick.value())

    def close(self) -> None:
        """Leave the file as it is."""
        with contextlib.suppress(OSError):
            self._wait(0)
        concurrent.futures.wait([self._flush])
        self._file.close()

    def _put(self, data: memoryview) -> None:
        self._wait(_IN_FLIGHT - 1)
        workers = self._workers
        self._waiting.append((workers.summing.submit(self._sum, data), workers.writing.submit(self._store, data)))

    def _wait(self, most: int) -> None:
        """Until at most so many blocks wait; what went wrong with a block is raised here."""
        while len(self._waiting) > most:
            for future in self._waiting.popleft():
                future.result()

    def _sum(self, data: memoryview) -> None:
        for total in self._sums:
            total.update(data)

    def _store(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.write(self._file.fileno(), data[done:])
        self._written += done
        if self._written >= _FLUSH and self._flush.done():
            self._written, self._flush = 0, self._workers.flushing.submit(os.fdatasync, self._file.fileno())


def order(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Names of tensors in the order of a file."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, _NAMES[dtypes[name]], name))


@contextlib.contextmanager
def working() -> Iterator[Workers]:
    """The threads of what is written, for all sinks of a call together."""
    with contextlib.ExitStack() as stack:
        names = [field.name for field in dataclasses.fields(Workers)]
        yield Workers(**{
            name: stack.enter_context(concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=name)) for name in names
        })  # fmt: skip
