"""Inputs that a model computes on the first use and a store keeps: splits of pictures at both levels, prompts by string.

One pass of the tower gives the rows before and after the projection, so both are kept as soon as one is asked for. What a
task wants done to its pictures (`task.preprocess`) is done, and stands in the key of its rows.

Letters: N samples, M prompts, C classes, E embedding, D width before the projection.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.config import to_tree
from ostension.data.task import Task, read_task
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError, DataError, LimitError, OstensionError
from ostension.evals.inputs import Names
from ostension.evals.run_inputs import RunInputs
from ostension.evals.task_splits import TaskSplits
from ostension.files import sha256_json
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float
from ostension.store import Features, Store, embed, text_embeddings
from ostension.store.fill import Progress, image_key
from ostension.store.key import Level, ModelKey
from ostension.store.manifest import NAME, read_manifest

LEVELS: tuple[Level, ...] = ("pre", "post")
MAX_PROJECTION = 16_384  # rows of a projection that are found by probing: at 1,024 numbers each, 64 MB
Told = Callable[[str, Progress], None]


class Embedder:
    """A model with the store of its embeddings, for any number of tasks.

    Args:
        name: under which results of this model are put side by side; by default the model's own.
        batch_size, workers, processes: as for `store.embed`.
        progress: told the name of what is embedded, and how far it is.

    Attributes:
        made: the model's key.
    """

    def __init__(
        self,
        model: CLIP,
        store: Store,
        *,
        name: str | None = None,
        batch_size: int = 64,
        workers: int = 0,
        processes: int = 1,
        progress: Told | None = None,
    ):
        self.model, self.store = model, store
        self.name = name or model.config.name or "model"
        self.options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "processes": processes}
        self.progress = progress
        self.made = ModelKey.of(model)
        self.scale = float(model.scale().detach())

    def transform(self, task: Task) -> Transform:
        """The model's preprocessing with the task's changes."""
        if not task.preprocess:
            return self.model.transform
        changes = dict(task.preprocess)
        if changes.get("resize", "shortest") != "shortest":
            changes.setdefault("short_side", None)  # which means nothing to the other ways
        return Transform(dataclasses.replace(self.model.transform.config, **changes))

    def inputs(self, splits: TaskSplits, others: Callable[[Task], TaskSplits] | None = None) -> StoreInputs:
        """What protocols see of a task."""
        return StoreInputs(self, splits, others=others)

    def hashes(self, task: Task) -> dict[str, str]:
        """Hashes of what makes rows: weights with their dtype, preprocessing, tokenizer."""
        return {
            "weights": f"{self.made.weights}-{self.made.computed}",
            "preprocess": sha256_json(to_tree(self.transform(task).config)),
            "tokenizer": sha256_json(dict(self.made.tokenizer)),
        }

    def rows(self, data: TaskData, level: Level) -> Features:
        """The rows of a split, embedded if they are not there."""
        if data.samples.embeddings is not None:
            found = Features.of_task(data)
            return dataclasses.replace(found, rows=found.unit()) if level == "post" else found
        transform, split = self.transform(data.task), data.split
        made = self._with(transform.config)
        key = image_key(made, data.samples, split=split, level=level)
        folder = self.store.folder(key)
        if not ((folder / NAME).is_file() and read_manifest(folder).complete):
            told = self.progress

            def progress(now: Progress) -> None:
                if told is not None:
                    told(f"{data.task.name}/{split}", now)

            embed(
                self.store, self.model, data.samples, split=split, levels=LEVELS, transform=transform, made=made,
                progress=progress, **self.options,
            )  # fmt: skip
        return Features.of_set(self.store.open(key), data)

    def _with(self, preprocess: PreprocessConfig) -> ModelKey:
        return dataclasses.replace(self.made, preprocess=to_tree(preprocess))

    def texts(self, prompts: Sequence[str], truncate: bool) -> np.ndarray:
        return text_embeddings(self.store, self.model, prompts, made=self.made, truncate=truncate)

    def too_long(self, text: str) -> bool:
        """Whether the tokenizer would have to cut a text."""
        if len(text.encode()) <= self.model.tokenizer.context_length - 2:
            return False  # a token is a byte or more
        try:
            self.model.tokenizer.ragged([text])
        except LimitError:
            return True
        return False


class StoreInputs(RunInputs):
    """A task and a model with its store.

    Args:
        splits: the task's data.
        others: the data of other tasks, for `other`.
        fold: the official fold that "train" (and "test", where that changes) is of.
    """

    def __init__(
        self,
        embedder: Embedder,
        splits: TaskSplits,
        *,
        others: Callable[[Task], TaskSplits] | None = None,
        fold: str | None = None,
    ):
        self.embedder, self.splits, self.fold, self._others = embedder, splits, fold, others
        self.task, self.model_name, self.scale = splits.task, embedder.name, embedder.scale
        self.measured = splits.measured
        self.used, self.notes = {}, []
        self._rows: dict[tuple[str, Level], Features] = {}
        self._broken: dict[str, OstensionError] = {}
        self._texts: dict[tuple[str, bool], np.ndarray] = {}
        self._classifiers: dict[str, np.ndarray] = {}

    @classmethod
    def open(
        cls, model: CLIP, task: Task | str | Path, *, store: Store | str | Path, data: str | Path | None = None,
        split: str | None = None, limit: int | None = None, **options: Any,
    ) -> StoreInputs:  # fmt: skip
        """The inputs of one model and one task, in one line.

        Args:
            split: the split that is measured, where the record has none called "test".
            options: of `Embedder`.
        """
        kept = store if isinstance(store, Store) else Store(store)
        return cls(Embedder(model, kept, **options), TaskSplits(task, data, measured=split, limit=limit))

    def fresh(self, fold: str | None = None) -> StoreInputs:
        made = copy.copy(self)
        made.used, made.notes, made.fold = {}, [], fold
        return made

    def missing(self, split: str) -> str | None:
        return self.splits.missing(split)

    def identity(self) -> dict[str, str]:
        return self.embedder.hashes(self.task)

    def fingerprint(self, name: str) -> str:
        task, _, split = name.rpartition("/")
        splits = self.splits if task == self.task.name else self._others(read_task(task)) if self._others else None
        if splits is None:
            return ""
        return splits.fingerprint("test" if split == splits.measured else split) or ""

    def data_notes(self) -> list[str]:
        return self.splits.notes_of(self.used)

    def folds(self) -> tuple[str, ...]:
        return self.splits.folds

    def targets(self, split: str) -> np.ndarray | None:
        return self.splits.split(split).targets

    def name_of(self, split: str) -> str:
        return self.splits.name_of(split)

    def has(self, split: str) -> bool:
        try:
            found = self.splits.fingerprint(split)
        except ConfigError:  # there is no data at all
            found = None
        self.used[f"{self.task.name}/{self.splits.name_of(split)}"] = found or ""
        return found is not None

    def features(self, split: str = "test", level: Level = "post") -> Features:
        if not self.has(split):
            raise DataError(self.splits.missing(split) or f"no samples of {split!r}")
        parts = [
            self._whole(name, level) if chosen is None else self._whole(name, level).take(chosen)
            for name, chosen in self._parts(split)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _parts(self, split: str) -> list[tuple[str, np.ndarray | None]]:
        """Where the samples of a split lie: in which, and which of that one's (None for all); a fold moves them."""
        folds = self.task.folds
        if self.fold is None or folds is None:
            return [(split, None)]
        if folds.split == "both" and split in ("train", "test"):
            tested = {name: self.splits.in_fold(name, self.fold) for name in ("train", "test")}
            return [(name, chosen if split == "test" else ~chosen) for name, chosen in tested.items()]
        return [(split, self.splits.in_fold(split, self.fold) if split == "train" else None)]

    def _whole(self, split: str, level: Level) -> Features:
        if split in self._broken:
            raise self._broken[split]  # a picture that stopped one protocol would cost the next as long
        if (split, level) not in self._rows:
            try:
                self._rows[split, level] = self.embedder.rows(self.splits.split(split), level)
            except OstensionError as error:
                self._broken[split] = error
                raise
        return self._rows[split, level]

    def texts(self, prompts: Sequence[str], *, truncate: bool = False) -> Float[np.ndarray, "M E"]:
        known, wanted = self._texts, list(dict.fromkeys(prompts))
        new = [prompt for prompt in wanted if (prompt, truncate) not in known]
        cut = {prompt for prompt in new if self.embedder.too_long(prompt)}
        if cut and not truncate:
            self.embedder.model.tokenizer.ragged(sorted(cut, key=new.index))  # says which, before anything is computed
        for group, cutting in (([prompt for prompt in new if prompt not in cut], False), (sorted(cut), True)):
            if group:
                rows = self.embedder.texts(group, cutting)
                known.update({(prompt, truncate): row for prompt, row in zip(group, rows, strict=True)})
        if cut:
            self.notes.append(f"{len(cut):,} of {len(wanted):,} texts are too long for the text tower and were cut")
        if not prompts:
            return self.embedder.texts([], False)
        return np.stack([known[prompt, truncate] for prompt in prompts])

    def classifier(self, names: Names | None = None, templates: Sequence[str] | None = None) -> Float[np.ndarray, "C E"]:
        asked = [list((self.names() if names is None else names).items()), list(templates or self.task.prompt_templates())]
        place = sha256_json(asked)
        if place not in self._classifiers:
            self._classifiers[place] = super().classifier(names, templates)
        return self._classifiers[place]

    def hashes(self) -> dict[str, str]:
        data = {f"data/{name}": found for name, found in sorted(self.used.items()) if found}
        return {**self.embedder.hashes(self.task), "class_list": self.task.class_list_sha256, **data}

    def other(self, task: Task) -> StoreInputs | None:
        if self._others is None:
            return None
        splits = self._others(task)
        try:
            missing = splits.missing("test")
        except ConfigError:  # no data is given for it
            missing = "no data"
        if missing is not None:
            self.used[f"{task.name}/{splits.measured}"] = ""
            return None
        made = self.embedder.inputs(splits, self._others)
        made.used, made.notes = self.used, self.notes  # what it looks at is looked at by whoever asked for it
        return made

    @torch.no_grad()
    def projection(self) -> tuple[Float[np.ndarray, "D E"], Float[np.ndarray, " E"]] | None:
        model = self.embedder.model
        size = model.transform.config.image_size
        width = model.image_features(torch.zeros(1, 3, size, size))["pooled"].shape[1]
        if width > MAX_PROJECTION:
            return None
        offset = model.project_image(torch.zeros(1, width)).float().cpu().numpy()
        matrix = model.project_image(torch.eye(width)).float().cpu().numpy() - offset
        # Whether it is a linear map at all is seen where it would not be.
        probe = numpy_generator(0, "projection").normal(size=(1, width)).astype(np.float32)
        error = np.abs(probe @ matrix + offset - model.project_image(torch.from_numpy(probe)).float().cpu().numpy()).max()
        return (matrix, offset[0]) if error <= 0.02 * np.abs(probe @ matrix).max() else None

    def parameters(self) -> dict[str, int]:
        model = self.embedder.model
        count = {name: sum(part.numel() for part in module.parameters()) for name, module in model.named_children()}
        return {"visual": count["visual"], "backbone": sum(part.numel() for part in model.parameters())}


def _joined(parts: Sequence[Features]) -> Features:
    """Samples of two splits as one."""
    first, second = parts
    return dataclasses.replace(
        first,
        rows=np.concatenate([np.asarray(part.rows) for part in parts]),
        targets=None if first.targets is None else np.concatenate([part.targets for part in parts]),  # type: ignore[misc]
        groups={name: np.concatenate([values, second.groups[name]]) for name, values in first.groups.items()},
        ids=first.ids + second.ids,
        texts=None if first.texts is None else first.texts + (second.texts or ()),
    )
