"""A safetensors file that is written front to back: the header first, for all sizes are known, then tensor after tensor.

A block is written and summed while it is in a core's cache. Flushing has a thread of its own, so that nobody waits for the
disk.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ostension.formats.manifest import Sums
from ostension.formats.quick_sum import QuickSum
from ostension.weights.tensor_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLUSH = 1 << 26  # bytes after which the disk begins: left to the end, it would be waited for


class Sink:
    """Takes the blocks of tensors in the order of `names`; gives the sums of the file.

    Args:
        dtypes, shapes: of what will be written, by name.
        metadata: texts for the header.
        flushing: a thread, for any number of files.

    Attributes:
        names: in the order of the file: wider types first, as the safetensors library has it, then by name.
    """

    def __init__(
        self,
        path: Path,
        dtypes: Mapping[str, torch.dtype],
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
        flushing: concurrent.futures.Executor,
    ):
        self.names, self._dtypes = order(dtypes), dtypes
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        places, end = {}, 0
        for name in self.names:
            start, end = end, end + torch.Size(shapes[name]).numel() * dtypes[name].itemsize
            header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
            places[name] = start
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, so that they can be mapped
        head = len(text).to_bytes(8, "little") + text
        self._places = {name: len(head) + place for name, place in places.items()}
        self._place, self._size, self._sums = 0, len(head) + end, (hashlib.sha256(), QuickSum())
        self._flushing, self._unflushed, self._flush = flushing, 0, concurrent.futures.Future[None]()
        self._flush.set_result(None)
        self._file = open(path, "wb", buffering=0)  # closed by `close`
        if hasattr(os, "posix_fallocate"):  # the disk finds the place once, and says at once where there is none
            os.posix_fallocate(self._file.fileno(), 0, self._size)
        self._put(memoryview(head))

    def place(self, name: str, start: int) -> int:
        """Where element `start` of a tensor lies in the file."""
        return self._places[name] + start * self._dtypes[name].itemsize

    def write(self, block: Tensor) -> None:
        """The next elements."""
        self._put(block.view(torch.uint8).numpy().data)

    def finish(self) -> Sums:
        """The sums of the whole file, which is then on the disk.

        Raises:
            OSError: if it could not be written.
        """
        assert self._place == self._size, "the blocks are not what the header says"
        self._flush.result()
        os.fsync(self._file.fileno())
        digest, quick = self._sums
        return Sums(digest.hexdigest(), quick.value())

    def close(self) -> None:
        """Leave the file as it is."""
        concurrent.futures.wait([self._flush])
        self._file.close()

    def _put(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.write(self._file.fileno(), data[done:])
        for total in self._sums:
            total.update(data)
        self._place, self._unflushed = self._place + done, self._unflushed + done
        if self._unflushed >= _FLUSH and self._flush.done():
            self._flush.result()  # what went wrong is said once
            self._unflushed, self._flush = 0, self._flushing.submit(os.fdatasync, self._file.fileno())


def order(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Names of tensors in the order of a file."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, _NAMES[dtypes[name]], name))


def flushing() -> concurrent.futures.Executor:
    """The thread that flushes, for all files of a call together."""
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="flushing")
