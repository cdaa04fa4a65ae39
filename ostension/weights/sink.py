"""A safetensors file that is written front to back: the header first, for all sizes are known, then tensor after tensor."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ostension.weights.sources import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Blocks that wait for their hash: two keep the other processor busy, more would be memory without use.
_IN_FLIGHT = 2


class Sink:
    """Takes the blocks of tensors in the order of `names`; gives the SHA-256 of the file.

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
        pool: concurrent.futures.Executor,
    ):
        self.names = order(dtypes)
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name in self.names:
            start, end = end, end + torch.Size(shapes[name]).numel() * dtypes[name].itemsize
            header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, so that they can be mapped
        self._left, self._digest, self._pool = end, hashlib.sha256(), pool
        self._waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._file = open(path, "wb", buffering=0)  # closed by `close`
        try:
            self._put(memoryview(len(text).to_bytes(8, "little") + text))
        except BaseException:
            self._file.close()
            raise

    def write(self, block: Tensor) -> None:
        """The next elements; `block` is not to be changed afterwards."""
        data = block.contiguous().view(-1).view(torch.uint8).numpy().data
        self._left -= len(data)
        self._put(data)

    def _put(self, data: memoryview) -> None:
        while len(self._waiting) >= _IN_FLIGHT:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._digest.update, data))
        done = 0
        while done < len(data):
            done += os.write(self._file.fileno(), data[done:])

    def finish(self) -> str:
        """The SHA-256, after the last block."""
        assert self._left == 0, "the blocks are not what the header says"
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def order(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Names of tensors in the order of a file."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, _NAMES[dtypes[name]], name))


@contextlib.contextmanager
def hashing() -> Iterator[concurrent.futures.Executor]:
    """The one thread that hashes what is written, block after block."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        yield pool
