"""`open_task`: a split of a task with its data: pictures, targets by class, groups, ids, and what differs from the record.

Counts and hashes that differ from the record are said at once, in one line with both values. A label that is no class is an
error: no sample is ever left out.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ostension.data.sets.base import CutSet, LabelledSet, SelectedSet, ids_sha256, is_split
from ostension.data.sets.fetch import fetch
from ostension.data.sets.open import open_set
from ostension.data.task import Source, Task, read_task
from ostension.errors import ConfigError, DataError, unknown_name

DATA_VARIABLE = "OSTENSION_DATA"
_LOG = logging.getLogger("ostension.data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """One split of a task, ready to be measured.

    Attributes:
        task: the record.
        split: its name.
        samples: the pictures (or embeddings, or captions) of the split, in order; a `PairSource`.
        classes: label keys in the order of the targets.
        targets: (N,) positions in `classes`; (N, C) of 0 and 1 where samples have several labels; None for retrieval.
        groups: (N,) values by the name of each of the task's groups that the data has, of its folds, and of what is written.
        notes: what differs from the record, one line each.
    """

    task: Task
    split: str
    samples: LabelledSet
    classes: tuple[str, ...]
    targets: np.ndarray | None
    groups: dict[str, np.ndarray]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> list[str]:
        return list(self.samples.ids)

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """The captions of each picture of a retrieval task, as many as the record says."""
        assert self.samples.texts is not None
        return [texts[: self.task.captions_per_image] for texts in self.samples.texts]


def open_task(
    task: Task | str | Path, data: str | os.PathLike | None = None, *, split: str = "test", download: bool = False
) -> TaskData:
    """A split of a task with its data.

    Args:
        task: a record, its name, or a TOML file.
        data: the data itself, or a folder below which the record's sources lie; by default the folder of a TOML file that
            says where its data lies, or the folder that the environment variable OSTENSION_DATA names.
        split: the split's name.
        download: whether a source with a URL may be fetched.

    Raises:
        ConfigError: for an unknown task or split, or data that is not to be found.
        DataError: for data that cannot be read, and for a label that is no class.
    """
    if not isinstance(task, Task):
        path, task = Path(task), read_task(task)
        if data is None and path.suffix == ".toml" and any(source.path for source in task.sources):
            data = path.parent
    task.split(split)
    made = split_of(task, open_data(task, data, download=download), split)
    for note in made.notes:
        _LOG.warning(note)
    return made


def split_of(task: Task, found: LabelledSet, split: str, part: SelectedSet | None = None) -> TaskData:
    """A split of a task from all samples of its data (`open_data`).

    Args:
        part: the samples of the split, if they were selected before.

    Raises:
        ConfigError, DataError: as `open_task`.
    """
    part = select(task, found, split) if part is None else part
    notes = [*count_notes(task, part, split), *(f"{found.location}: {count:,} x {why}" for why, count in found.rejects.items())]
    classes = tuple(task.display_names())
    if task.cut_px:
        part = CutSet(found, part.indices, task.cut_px)
    fields = [*task.groups, *filter(None, (task.folds and task.folds.field, task.written))]
    return TaskData(
        task=task,
        split=split,
        samples=part,
        classes=classes,
        targets=_targets(task, part, classes),
        groups={name: np.array(part.fields[name]) for name in fields if name in part.fields},
        notes=tuple(notes),
    )


def open_data(task: Task, data: str | os.PathLike | None = None, *, download: bool = False, itself: bool = True) -> LabelledSet:
    """All samples of a task's data, whatever their split.

    Args:
        itself: whether `data` may be the data itself, and not only a folder in which it lies under the name of a source or of
            the task. Not so where several tasks share the folder: one that is missing must not be given another's files.

    Raises:
        ConfigError: if it is not to be found.
        DataError: if it cannot be read.
    """
    location, source = _locate(task, data, download, itself)
    found = open_set(location, source, several=task.takes_several, videos=task.kind == "video")
    if source is not None and source.holds is not None and found.splits is None:
        found.splits = [source.holds] * len(found)
    if task.kind == "video":
        from ostension.data.sets.videos import files_as_videos

        found = files_as_videos(found)
    return found


def select(task: Task, found: LabelledSet, split: str) -> SelectedSet:
    """The samples of a split: by the record's selectors, else by the split that the data states, else all of them.

    Raises:
        ConfigError, DataError: if the data lacks what selects, or has no sample of the split.
    """
    wanted = task.split(split)
    columns = {**found.fields, **({} if found.splits is None else {"split": found.splits})}
    rules = {field: set(values) for field, values in wanted.select.items() if field != "split" or found.splits is not None}
    for field in rules:
        if field not in columns:
            raise unknown_name(f"field (which selects the split {split!r})", field, columns, source=found.location)
    if not wanted.select and found.splits is not None:
        rules = {"split": {word for word in found.splits if is_split(word, split)}}
    chosen = np.ones(len(found), dtype=bool)
    for field, values in rules.items():
        chosen &= np.fromiter((value in values for value in columns[field]), dtype=bool, count=len(found))
    if wanted.classes_only:
        chosen &= np.fromiter((any(map(task.key_of, labels)) for labels in found.labels), dtype=bool, count=len(found))
    if not chosen.any():
        known = "; ".join(f"{field}: {', '.join(sorted(set(columns[field]))[:8])}" for field in rules or columns)
        raise DataError(f"no sample of the split {split!r}", source=found.location, expected=f"one of {known}")
    return SelectedSet(found, np.flatnonzero(chosen))


def count_notes(task: Task, part: LabelledSet, split: str) -> list[str]:
    """What differs from the record: one line each, with both values."""
    wanted, notes = task.split(split), []
    where = f"{part.location}: {task.name or task.title}/{split}"
    if len(part) != wanted.count:
        remembered = ", from memory" if wanted.evidence == "remembered" else ""
        notes.append(f"{where} has {len(part):,} samples, the record says {wanted.count:,}{remembered}")
    if wanted.ids_sha256 is not None and (found := ids_sha256(part.ids)) != wanted.ids_sha256:
        notes.append(f"{where} has the ids {found[:12]}, the record says {wanted.ids_sha256[:12]}")
    if task.captions_per_image is not None and part.texts is not None:
        odd = Counter(len(texts) for texts in part.texts if len(texts) != task.captions_per_image)
        for captions, images in sorted(odd.items()):
            notes.append(f"{where} has {images:,} pictures with {captions} captions, the record says {task.captions_per_image}")
    return notes


def _targets(task: Task, part: LabelledSet, classes: tuple[str, ...]) -> np.ndarray | None:
    if task.kind == "retrieval":
        if part.texts is None:
            raise DataError("no captions", source=part.location, expected="captions, for a retrieval task")
        for name, texts in zip(part.ids, part.texts, strict=True):
            if len(texts) < (task.captions_per_image or 1):
                expected = f"{task.captions_per_image} or more"
                raise DataError(f"{len(texts)} captions", source=f"{part.location} ({name})", expected=expected)
        return None
    places = {key: place for place, key in enumerate(classes)}
    several = task.takes_several
    targets = np.zeros((len(part), len(classes)) if several else len(part), dtype=np.int64)
    for index, labels in enumerate(part.labels):
        if not several and len(labels) != 1:
            raise DataError(f"{len(labels)} labels", source=f"{part.location} ({part.ids[index]})", expected="one")
        for label in labels:
            key = task.key_of(label)
            if key is None:
                raise unknown_label(task, label, f"{part.location} ({part.ids[index]})")
            if several:
                targets[index, places[key]] = 1
            else:
                targets[index] = places[key]
    return targets


def unknown_label(task: Task, label: str, source: str) -> DataError:
    """A `DataError` for a label that is no class of the task."""
    error = unknown_name(f"label (of the task {task.name!r})", label, task.display_names())
    fix = None
    if label.isdigit() and task.numbers_from is None:
        fix = "the data numbers its classes: say which number is which in the record, its order is not known"
    return DataError(error.what, source=source, expected=error.expected, fix=fix)


def _locate(task: Task, data: str | os.PathLike | None, download: bool, itself: bool) -> tuple[Path, Source | None]:
    """Where the data lies, and the record's source that describes it, if one does."""
    for source in task.sources:
        if source.kind == "embedded" and (data is None or str(data) == source.path):
            return Path(source.path), source
    given = data if data is not None else os.environ.get(DATA_VARIABLE)
    if given is None:
        raise ConfigError(
            f"no data is given for the task {task.name!r}",
            expected="a folder or a file",
            fix=f"give it with --data, or name the folder of all data in {DATA_VARIABLE}",
        )
    root = Path(given)
    for source in task.sources:
        place = root / source.path
        if source.path and (place.exists() or (source.kind == "shards" and any(root.glob(source.path)))):
            return place, source
        if source.path and root.name == Path(source.path).name and root.exists():
            return root, source
    for source in task.sources:
        if source.url is not None and (download or not root.exists() or (root.is_dir() and not any(root.iterdir()))):
            return fetch(source, root, allowed=download), source
    if task.name and (root / task.name).exists():
        return root / task.name, None
    for source in task.sources:
        if source.kind == "embedded" and root.name != task.name:  # the folder of all data need not hold what ships with us
            return Path(source.path), source
    if data is None or not itself:
        expected = " or ".join(source.path for source in task.sources if source.path) or task.name
        raise ConfigError(f"no data of the task {task.name!r} in {root}", expected=expected, fix="give it with --data")
    return root, None
