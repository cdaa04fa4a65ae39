"""Tensors that are read in blocks: of a model in any layout, or of a task vector.

A model in our layout is read with `pread` into one buffer, so that the memory is a block's and not the file's: the pages of a
mapped file count as a process's own. A model in another layout is mapped, and each tensor is converted when it is its turn.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.files import sha256_file
from ostension.formats import containers, manifest, ours
from ostension.formats.load import provenance
from ostension.formats.reader import Opened, open_weights
from ostension.formats.source import public_name
from ostension.model.config import ModelConfig
from ostension.model.fingerprint import fingerprint_of

VECTOR_KEY = "ostension"  # of the JSON text among a task vector's metadata
VECTOR_KIND = "task vector"
BLOCK = 1 << 18  # elements: 2 MiB in float64, so that sums stay in the cache of a core
# safetensors' names of types; what is not here is refused.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class TensorFile:
    """A safetensors file whose tensors are read in parts.

    Attributes:
        dtypes, shapes: by name.
        metadata: the texts of the header.
    """

    def __init__(self, path: Path):
        if containers.identify(path) != "safetensors":  # looks at the header and the size, too
            raise CheckpointError("is no safetensors file", source=path)
        self.path = path
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.dtypes: dict[str, torch.dtype] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._offsets: dict[str, int] = {}
        for name, entry in header.items():
            kind, shape, (start, end) = entry.get("dtype"), tuple(entry.get("shape", ())), entry["data_offsets"]
            if kind not in DTYPES:
                raise CheckpointError(f"the tensor {name!r} holds {kind}", source=path, expected=", ".join(DTYPES))
            if end - start != torch.Size(shape).numel() * DTYPES[kind].itemsize:
                raise CheckpointError(f"the tensor {name!r} is of another size than its shape", source=path)
            self.dtypes[name], self.shapes[name], self._offsets[name] = DTYPES[kind], shape, 8 + length + start
        self._buffer = bytearray()
        self._file = open(path, "rb", buffering=0)  # closed by `close`

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened tensor, valid until the next call.

        Raises:
            CheckpointError: if the file has become shorter since it was opened, or cannot be read.
        """
        dtype = self.dtypes[name]
        size = (stop - start) * dtype.itemsize
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view, offset = memoryview(self._buffer)[:size], self._offsets[name] + start * dtype.itemsize
        done = 0
        while done < size:
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"cannot be read: {error.strerror}", source=self.path) from None
            if count == 0:
                raise CheckpointError(f"ends in the middle of the tensor {name!r}", source=self.path, fix="copy it again")
            done += count
        return torch.frombuffer(self._buffer, dtype=dtype, count=stop - start) if size else torch.empty(0, dtype=dtype)

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Write other numbers in the place of some tensors', in the types that the file has them in."""
        with open(self.path, "r+b") as handle:
            for name, tensor in tensors.items():
                assert tuple(tensor.shape) == self.shapes[name]
                handle.seek(self._offsets[name])
                handle.write(tensor.to(self.dtypes[name]).contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


class ModelWeights:
    """The weights of a model, with what is known about it.

    Attributes:
        opened: what the readers of formats found.
        name: the model's name without the folders of this machine.
        digest: a SHA-256 of the weights' files, by which models are put in order.
        shapes, dtypes: by our names.
        plain: the file, where it is in our layout.
        check: the comparison of its files with their manifest, which another thread makes.
    """

    def __init__(self, opened: Opened, file: TensorFile | None, digest: str):
        self.opened, self.plain, self.digest = opened, file, digest
        self.name, self.path = public_name(opened.source.name), opened.source.path
        if file is not None:
            names = list(opened.state(lambda _, tensor: tensor))  # says what is missing or misshapen; touches no page
            self.shapes = {name: file.shapes[name] for name in names if name in file.shapes}
            self.dtypes = {name: file.dtypes[name] for name in self.shapes}
        else:
            # The conversion checks names and shapes; nothing is kept.
            made = opened.state(lambda _, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
            self.shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
            self.dtypes = {name: tensor.dtype for name, tensor in made.items()}
        self.check: concurrent.futures.Future[Any] | None = None
        self._current: tuple[str, Tensor] | None = None
        self._fingerprint: str | None = None

    @property
    def config(self) -> ModelConfig:
        return self.opened.config

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened tensor, valid until the next call."""
        if self.plain is not None:
            return self.plain.read(name, start, stop)
        if self._current is None or self._current[0] != name:
            self._current = (name, self._converted(name).contiguous().view(-1))
        return self._current[1][start:stop]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, its own copy."""
        found = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        flat = found.view(-1)
        for start in range(0, len(flat), BLOCK):
            stop = min(start + BLOCK, len(flat))
            flat[start:stop] = self.read(name, start, stop)
        return found

    def _converted(self, name: str) -> Tensor:
        entry, tensors = self.opened.entry(name), self.opened.tensors
        if not all(theirs in tensors for theirs in entry.theirs):  # only a batch counter may be missing
            return torch.zeros((), dtype=torch.int64)
        found = entry.read([tensors[theirs] for theirs in entry.theirs])
        return found.reshape(self.shapes[name])

    def fingerprint(self) -> str:
        """`model.fingerprint` of this model; costs a pass over the weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.config, _Tensors(self))
        return self._fingerprint

    def record(self) -> dict[str, Any]:
        """Where the weights come from, for the provenance of what is made of them."""
        return {**provenance(self.opened), "source": self.name}

    def close(self) -> None:
        if self.plain is not None:
            self.plain.close()


class _Tensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, weights: ModelWeights):
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.shapes)

    def __len__(self) -> int:
        return len(self._weights.shapes)


class VectorFile(TensorFile):
    """A task vector: differences of two models' tensors, with the record of both.

    Attributes:
        record: what `arithmetic.diff` wrote: "from", "to" (records of the two models), "shared" (hashes of its lineage).
        digest: the SHA-256 of the file.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            self.record: dict[str, Any] = json.loads(self.metadata[VECTOR_KEY])
            kind = self.record["kind"]
        except (KeyError, ValueError, TypeError):
            kind = None
        if kind != VECTOR_KIND:
            self.close()
            raise CheckpointError("is no task vector", source=path, expected="what `ostension weights diff` wrote")
        self.name, self.digest = path.name, sha256_file(path)


@contextlib.contextmanager
def open_models(names: Sequence[str | os.PathLike], *, thorough: bool = False) -> Iterator[list[ModelWeights]]:
    """Models opened for reading in blocks.

    Folders of our layout are compared with their manifests by other threads while the caller works: call `verified` before
    what was made of them takes its name.

    Args:
        thorough: compare SHA-256 where a manifest also has quicker sums.

    Raises:
        CheckpointError: for a model that cannot be found, understood or trusted.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="verify"))
        stack.callback(lambda: pool.shutdown(cancel_futures=True))
        models: list[ModelWeights] = []
        for name in names:
            models.append(_open(name, pool, thorough))
            stack.callback(models[-1].close)
        yield models


def verified(models: Sequence[ModelWeights]) -> None:
    """Wait until the files of all models are compared with their manifests.

    Raises:
        CheckpointError: naming the first file that is not as it was saved.
    """
    for model in models:
        if model.check is not None:
            model.check.result()


def _open(name: str | os.PathLike, pool: concurrent.futures.Executor, thorough: bool) -> ModelWeights:
    opened = open_weights(name, verify=False)
    folder = opened.source.folder
    if opened.layout != ours.NAME:
        opened = open_weights(name)  # with the hashes of its files
        return ModelWeights(opened, None, "".join(opened.hashes[name] for name in sorted(opened.hashes)))
    opened.hashes = {file: sums.sha256 for file, sums in manifest.recorded(folder).items()}
    if ours.WEIGHTS not in opened.hashes:
        raise CheckpointError(f"the manifest does not name {ours.WEIGHTS}", source=folder)
    file = TensorFile(folder / ours.WEIGHTS)
    try:
        model = ModelWeights(opened, file, opened.hashes[ours.WEIGHTS])
    except BaseException:
        file.close()
        raise
    model.check = pool.submit(manifest.verify, folder, quick=not thorough)
    return model
