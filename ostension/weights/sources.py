"""Tensors that are read in blocks: of a model in any layout, of a predictor with towers of its own, or of a task vector.

A model in our layout is read with `pread` into one buffer, so that the memory is a block's and not the file's: the pages of a
mapped file count as a process's own. A model in another layout is mapped, and each tensor is converted when it is its turn.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, MissingExtraError
from ostension.files import read_json, sha256_file, write_json
from ostension.formats import manifest, ours
from ostension.formats.load import attach_tokenizer, load, provenance
from ostension.formats.reader import Opened, open_weights
from ostension.formats.source import public_name
from ostension.model._predictor_files import RECORD, TENSORS, read_record
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.fingerprint import fingerprint, fingerprint_of
from ostension.model.predictor import METHODS, Predictor
from ostension.runtime import versions
from ostension.weights.tensor_file import TensorFile

VECTOR_KEY = "ostension"  # of the JSON text among a task vector's metadata
VECTOR_KIND = "task vector"
BLOCK = 1 << 17  # elements: half a MB in float32, so that few calls move much and what they work on lies in a cache


class Weights(abc.ABC):
    """Weights that can be averaged, and the folder that an average of them is written to.

    Attributes:
        name: without the folders of this machine.
        folder: where they lie.
        digest: a SHA-256, by which sources are put in order.
        shapes, dtypes: by our names.
        plain: the file, where its tensors have our names and can be copied as they are.
        file: what the weight file of an average is called.
    """

    name: str
    folder: Path
    digest: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    plain: TensorFile | None = None
    file: str = ours.WEIGHTS

    @abc.abstractmethod
    def check(self) -> None:
        """Compare the files with what was recorded of them.

        Raises:
            CheckpointError: for a file that is not as it was saved.
        """

    @abc.abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened tensor, valid until the next call."""

    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """Where the weights come from, for the provenance of what is made of them."""

    @abc.abstractmethod
    def write_rest(self, folder: Path, sums: manifest.Sums) -> list[str]:
        """Write what belongs to an average besides its weights and provenance; gives notes."""

    def close(self) -> None:
        if self.plain is not None:
            self.plain.close()


class ModelWeights(Weights):
    """The weights of a model, with what is known about it; see `Weights`.

    Attributes:
        opened: what the readers of formats found.
        thorough: `check` compares SHA-256 where a manifest also has quicker sums.
    """

    thorough = False

    def __init__(self, opened: Opened, file: TensorFile | None, digest: str):
        self.opened, self.plain, self.digest = opened, file, digest
        self.name, self.folder = public_name(opened.source.name), Path(opened.source.folder)
        if file is not None:
            names = list(opened.state(lambda _, tensor: tensor))  # says what is missing or misshapen; touches no page
            self.shapes = {name: file.shapes[name] for name in names if name in file.shapes}
            self.dtypes = {name: file.dtypes[name] for name in self.shapes}
        else:
            # The conversion checks names and shapes; nothing is kept.
            made = opened.state(lambda _, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
            self.shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
            self.dtypes = {name: tensor.dtype for name, tensor in made.items()}
        self._current: tuple[str, Tensor] | None = None
        self._fingerprint: str | None = None

    def check(self) -> None:
        if self.plain is not None:  # files of other layouts were checked when they were opened
            found = None if self.thorough else self.plain.followed()
            manifest.verify(self.folder, quick=not self.thorough, summed={} if found is None else {self.file: found})

    @property
    def config(self) -> ModelConfig:
        return self.opened.config

    def read(self, name: str, start: int, stop: int) -> Tensor:
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
        return {**provenance(self.opened), "source": self.name}

    def write_rest(self, folder: Path, sums: manifest.Sums) -> list[str]:
        write_json(folder / ours.CONFIG, to_tree(self.config))
        with torch.device("meta"):
            carrier = CLIP(self.config, seed=None)
        try:
            attach_tokenizer(carrier, self.opened)
            carrier.tokenizer.save(folder)
        except (CheckpointError, ConfigError, MissingExtraError) as error:
            return [f"written without a tokenizer ({error})"]
        return []


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


class PredictorWeights(Weights):
    """The tensors of a predictor with towers of its own.

    Attributes:
        tree: its record.

    Raises:
        ConfigError: for a predictor of another kind, whose tensors are not to be averaged.
    """

    file = TENSORS

    def __init__(self, folder: Path, pool: concurrent.futures.Executor):
        self.folder, self.name = folder, folder.name
        self.tree = read_record(folder, {*Predictor._kinds, *METHODS.names()})
        self.digest = str(self.tree["tensors_sha256"])
        self.plain = TensorFile(folder / TENSORS)
        self.shapes, self.dtypes = self.plain.shapes, self.plain.dtypes
        if not any(name.startswith(("visual.", "text.")) for name in self.shapes):
            self.close()
            raise ConfigError(f"{self.name} is a predictor of {self.tree['kind']}, which tunes no tower",
                              expected="models, or what finetune, flyp, ... gave")  # fmt: skip
        self._check = pool.submit(self._verify)  # SHA-256 takes its time

    def check(self) -> None:
        self._check.result()

    def _verify(self) -> None:
        if sha256_file(self.folder / TENSORS) != self.digest:
            raise CheckpointError("is not the file that was saved (its SHA-256 differs)", source=self.folder / TENSORS)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        assert self.plain is not None
        return self.plain.read(name, start, stop)

    def record(self) -> dict[str, Any]:
        path = self.folder / ours.PROVENANCE
        before = {"before": read_json(path, CheckpointError)} if path.is_file() else {}
        kept = {key: self.tree[key] for key in ("kind", "class_list_sha256", "prompts_sha256", "encoder")}
        return {"source": self.name, "sha256": {TENSORS: self.digest}, **kept, **before}

    def write_rest(self, folder: Path, sums: manifest.Sums) -> list[str]:
        write_json(folder / RECORD, {**self.tree, "tensors_sha256": sums.sha256, "versions": versions()})
        return []


class BeforeWeights(Weights):
    """A model as the start of a predictor: the predictor's method before its first step.

    Raises:
        CheckpointError: for another model than the one that the predictor was made with.
        ConfigError: for a method whose start is not known.
    """

    file = TENSORS

    def __init__(self, predictor: Path, model: str | os.PathLike):
        made = Predictor.load(predictor, load(model, device="cpu", dtype="float32"))
        start = getattr(getattr(made, "module", None), "untrained", None)
        if start is None:
            raise ConfigError(f"what {made.kind} is before its first step is not known", fix="interpolate two predictors")
        self._state = {name: value.detach() for name, value in start().state_dict().items()}
        self._encoder, self.folder, self.name = made.encoder, Path(model), public_name(os.fspath(model))
        self.digest = fingerprint(made.encoder)
        self.shapes = {name: tuple(value.shape) for name, value in self._state.items()}
        self.dtypes = {name: value.dtype for name, value in self._state.items()}
        self.tree = read_json(predictor / RECORD, CheckpointError)

    def check(self) -> None:
        """Both were checked when they were loaded."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._state[name].reshape(-1)[start:stop]

    def record(self) -> dict[str, Any]:
        return {**self._encoder.provenance, "source": self.name, "fingerprint": self.digest}

    def write_rest(self, folder: Path, sums: manifest.Sums) -> list[str]:
        write_json(folder / RECORD, {**self.tree, "tensors_sha256": sums.sha256, "versions": versions()})
        return []


def is_predictor(folder: Path) -> bool:
    """Whether a folder holds a predictor's own tensors and no model."""
    return (folder / RECORD).is_file() and (folder / TENSORS).is_file() and not (folder / ours.CONFIG).is_file()


def weight_file(folder: Path) -> str:
    """The name of the weight file in a folder of ours, a model's or a predictor's."""
    return TENSORS if is_predictor(folder) else ours.WEIGHTS


def live_model(folder: Path) -> CLIP:
    """The model of a folder that was just written, in float32: its own, or a predictor's with what was tuned in it."""
    if not is_predictor(folder):
        return load(folder, dtype="float32", verify=False)
    return Predictor.load(folder).module.live  # type: ignore[attr-defined]


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
def open_models(
    names: Sequence[str | os.PathLike], *, thorough: bool = False, predictors: bool = True
) -> Iterator[list[Weights]]:
    """Models opened for reading in blocks; folders of predictors with towers of their own, too.

    Files are compared with what was recorded of them by `verified`: call it before what was made of them takes its name. A file
    that was read from front to back until then was summed in passing. A model among predictors stands for the predictor before
    its first step.

    Args:
        thorough: compare SHA-256 where a manifest also has quicker sums.
        predictors: whether these are of use.

    Raises:
        CheckpointError: for a model that cannot be found, understood or trusted.
        ConfigError: for a predictor without towers of its own, or where none is of use.
    """
    tuned = [index for index, name in enumerate(names) if is_predictor(Path(name))]
    if tuned and not predictors:
        raise ConfigError(
            f"{Path(names[tuned[0]]).name} is a predictor", expected="a model; interpolate, mix and soup read both"
        )
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="verify"))
        stack.callback(lambda: pool.shutdown(cancel_futures=True))
        opened: dict[int, Weights] = {}
        for index in tuned:
            opened[index] = PredictorWeights(Path(names[index]), pool)
            stack.callback(opened[index].close)
        for index, name in enumerate(names):
            if index not in opened:
                opened[index] = BeforeWeights(Path(names[tuned[0]]), name) if tuned else _open(name, thorough)
                stack.callback(opened[index].close)
        yield [opened[index] for index in range(len(names))]


def verified(models: Sequence[Weights]) -> None:
    """Compare the files of all models with what was recorded of them, two models at a time.

    Raises:
        CheckpointError: naming the first file that is not as it was saved.
    """
    with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="verify") as pool:
        for found in [pool.submit(model.check) for model in models]:
            found.result()


def _open(name: str | os.PathLike, thorough: bool) -> ModelWeights:
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
    model.thorough = thorough
    if not thorough:
        file.follow()
    return model
