"""The splits of a task as a run measures them: opened once, cut to a sample if asked, with official folds.

A record's splits have names; protocols know "train", "val" and "test". A task without a split called "test" is measured on
each split that is neither of the other two (a style, a domain), which then stands for "test".

Letters: N samples, n of them chosen, C classes.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from ostension.data.sets.base import LabelledSet, SelectedSet
from ostension.data.task import Task, read_task
from ostension.data.task_data import TaskData, open_data, select, split_of
from ostension.errors import ConfigError, DataError, OstensionError
from ostension.runtime import numpy_generator
from ostension.shapes import Int

NOT_MEASURED = ("train", "val")


def measured_splits(task: Task) -> tuple[str, ...]:
    """The splits of a record that are measured: "test", or each that is neither "train" nor "val"."""
    return ("test",) if "test" in task.splits else tuple(name for name in task.splits if name not in NOT_MEASURED)


class TaskSplits:
    """The data of a task, read when it is asked for.

    Args:
        task: a record, its name, or a TOML file (whose folder is then looked through for its data, too).
        data: as for `open_task`.
        measured: the split that stands for "test"; by default the first that is measured.
        limit: measure this many samples of each split (see `sample_of`).
        seed: of that choice.
        itself: as for `open_data`.

    """

    def __init__(
        self,
        task: Task | str | Path,
        data: str | os.PathLike | None = None,
        *,
        measured: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        download: bool = False,
        itself: bool = True,
    ):
        path = task if isinstance(task, Task) else Path(task)
        self.task = task if isinstance(task, Task) else read_task(task)
        if data is None and isinstance(path, Path) and path.suffix == ".toml" and any(s.path for s in self.task.sources):
            data = path.parent
        splits = measured_splits(self.task)
        if not splits:
            raise ConfigError(f"the task {self.task.name!r} has no split to measure", expected="one that is no train or val")
        self.measured = splits[0] if measured is None else measured
        self.task.split(self.measured)
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}", expected="1 or more samples")
        self.data, self.limit, self.seed = data, limit, seed
        self.options = {"download": download, "itself": itself}
        self._read: list[LabelledSet | OstensionError] = []
        self._opened: dict[str, TaskData] = {}
        self._parts: dict[str, SelectedSet | str] = {}
        self._fingerprints: dict[str, str] = {}

    def of(self, measured: str) -> TaskSplits:
        """The same data with another split standing for "test"; what is read is shared."""
        other = TaskSplits(
            self.task, self.data, measured=measured, limit=self.limit, seed=self.seed, **self.options
        )  # fmt: skip
        other._read, other._parts = self._read, self._parts
        return other

    @property
    def found(self) -> LabelledSet:
        """All samples, whatever their split.

        Raises:
            ConfigError, DataError: if the data is not to be found, or cannot be read.
        """
        if not self._read:  # looking for it once is enough, also where it is not found
            try:
                self._read.append(open_data(self.task, self.data, **self.options))
            except OstensionError as error:
                self._read.append(error)
        if isinstance(self._read[0], OstensionError):
            raise self._read[0]
        return self._read[0]

    def name_of(self, split: str) -> str:
        """The record's name of a split: "test" is the one that is measured."""
        return self.measured if split == "test" else split

    def missing(self, split: str) -> str | None:
        """Why there are no samples of a split; None if there are.

        Raises:
            ConfigError, DataError: if there is no data at all, or it cannot be read.
        """
        name = self.name_of(split)
        if name not in self.task.splits:
            return f"the record of {self.task.name!r} has no split {name!r}"
        if name not in self._parts:
            found = self.found
            try:
                self._parts[name] = select(self.task, found, name)
            except (ConfigError, DataError) as error:
                self._parts[name] = str(error)
        part = self._parts[name]
        return part if isinstance(part, str) else None

    def split(self, split: str) -> TaskData:
        """A split with its targets.

        Raises:
            DataError: if there is none, or it cannot be used.
        """
        name = self.name_of(split)
        if name not in self._opened:
            if (reason := self.missing(split)) is not None:
                raise DataError(reason)
            part = self._parts[name]
            assert isinstance(part, SelectedSet)
            whole = split_of(self.task, self.found, name, part)
            self._opened[name] = self._limited(whole)
        return self._opened[name]

    def fingerprint(self, split: str) -> str | None:
        """The hash of a split's data, None where it has no samples."""
        if self.missing(split) is not None:
            return None
        name = self.name_of(split)
        if name not in self._fingerprints:  # it may read all files
            self._fingerprints[name] = self.split(split).samples.fingerprint()
        return self._fingerprints[name]

    def _limited(self, whole: TaskData) -> TaskData:
        if self.limit is None or self.limit >= len(whole):
            return whole
        chosen = sample_of(whole.targets, len(whole), self.limit, self.seed)
        return TaskData(
            task=whole.task,
            split=whole.split,
            samples=SelectedSet(whole.samples, chosen),
            classes=whole.classes,
            targets=None if whole.targets is None else whole.targets[chosen],
            groups={name: values[chosen] for name, values in whole.groups.items()},
            notes=whole.notes,
        )

    def notes_of(self, names: Container[str]) -> list[str]:
        """What differs from the record, one line each, in those of these splits ("task/split") that are this task's."""
        found: list[str] = []
        for name, opened in self._opened.items():
            if f"{self.task.name}/{name}" in names:
                found += [note for note in opened.notes if note not in found]
        if self.task.folds is not None and self._opened and not self.folds:
            field = self.task.folds.field
            found.append(
                f"{self.found.location}: no field {field!r}, so its {self.task.folds.count} official folds are not used"
            )
        return found

    @functools.cached_property
    def folds(self) -> tuple[str, ...]:
        """The names of the official folds, as the data writes them; none where the record has none or the data does not say.

        Raises:
            DataError: for another number of folds than the record says.
        """
        folds = self.task.folds
        if folds is None:
            return ()
        if folds.field not in self.found.fields:
            return ()
        names = Counter(fold for text in self.found.fields[folds.field] for fold in _folds(text))
        if len(names) != folds.count:
            what = f"{len(names)} folds in the field {folds.field!r}"
            raise DataError(what, source=self.found.location, expected=f"{folds.count}")
        return tuple(sorted(names, key=lambda name: (len(name), name)))

    def in_fold(self, split: str, fold: str) -> np.ndarray:
        """Which samples of a split are of a fold, as a mask: by the field, those that train (`folds.split` "train") or that
        are tested ("both") in it."""
        assert self.task.folds is not None
        values: Sequence[str] = self.split(split).samples.fields[self.task.folds.field]
        return np.array([fold in _folds(text) for text in values])


def _folds(text: str) -> list[str]:
    return [fold for fold in re.split(r"[|,;\s]+", text) if fold]


def sample_of(targets: np.ndarray | None, count: int, limit: int, seed: int) -> Int[np.ndarray, " n"]:
    """Numbers of `limit` of `count` samples, ascending: every class has its share of them, to one sample.

    Samples are put in a random order, then sorted by class, and every (count / limit)-th one is taken. The first `limit`
    samples would be of one class wherever data lies in a folder a class. Without one label a sample (captions, several
    labels) the choice is plainly random.
    """
    generator = numpy_generator(seed, "limit")
    order = generator.permutation(count)
    if targets is not None and targets.ndim == 1:
        order = order[np.argsort(targets[order], kind="stable")]
    places = ((np.arange(limit) + generator.random()) * (count / limit)).astype(np.int64)
    return np.sort(order[np.minimum(places, count - 1)])
