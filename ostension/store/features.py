"""`Features`: rows with labels, groups and ids, which is all that a protocol needs; from a store or from anybody's arrays.

Letters: N rows, E embedding or width, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.errors import DataError, unknown_name
from ostension.store.rows import Rows
from ostension.store.sets import EmbeddingSet

if TYPE_CHECKING:
    from ostension.data.task_data import TaskData

ROW_ARRAYS = ("embeddings", "features", "feats", "rows", "x")
LABEL_ARRAYS = ("labels", "targets", "label", "y")
NAME_ARRAYS = ("names", "class_names", "classes")
ID_ARRAYS = ("ids", "files", "keys")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Rows and what is known of them, checked on construction.

    Attributes:
        rows: (N, E), an array or the rows of a set, which are read as needed.
        targets: (N,) positions in `classes`, (N, C) of 0 and 1 where samples have several labels, or None.
        classes: label keys in the order of the targets.
        groups: (N,) values by name.
        ids: of each row; row numbers if not given.
        texts: captions of each row, or None.
        facts: what the rows are of, for the records: a set's key, or the file.

    Raises:
        DataError: for rows that are no finite (N, E) numbers, lengths that differ, targets that are no class, ids or classes
            that come twice.
    """

    rows: np.ndarray | Rows
    targets: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ids: tuple[str, ...] = ()
    texts: tuple[tuple[str, ...], ...] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        source = self.facts.get("source", "features")
        shape, dtype = self.rows.shape, self.rows.dtype
        if len(shape) != 2 or dtype.kind != "f":
            raise DataError(f"rows of shape {shape} and type {dtype}", source=source, expected="floating point (N, E)")
        if not isinstance(self.rows, Rows) and not np.isfinite(self.rows).all():  # a store has checked its own
            row = int((~np.isfinite(self.rows).all(axis=1)).argmax())
            raise DataError(f"row {row} has a number that is not finite", source=source)
        if not self.ids:
            object.__setattr__(self, "ids", tuple(map(str, range(shape[0]))))
        parts: dict[str, Any] = {"ids": self.ids, "targets": self.targets, "texts": self.texts, **self.groups}
        for name, values in parts.items():
            if values is not None and len(values) != shape[0]:
                raise DataError(f"{len(values)} {name}", source=source, expected=f"{shape[0]}, one a row")
        for name, names in (("id", self.ids), ("class", self.classes)):
            if len(set(names)) != len(names):
                seen: set[str] = set()
                twice = next(value for value in names if value in seen or seen.add(value))  # type: ignore[func-returns-value]
                raise DataError(f"the {name} {twice!r} comes twice", source=source, expected="each once")
        if self.targets is not None:
            self._check_targets(self.targets, source)

    def _check_targets(self, targets: np.ndarray, source: object) -> None:
        count = len(self.classes)
        several = targets.ndim == 2
        if targets.dtype.kind not in "iu" or targets.ndim not in (1, 2) or (several and targets.shape[1] != count):
            what = f"targets of shape {targets.shape} and type {targets.dtype}"
            raise DataError(what, source=source, expected=f"whole numbers (N,), or (N, {count})")
        if targets.size and not 0 <= targets.min() <= targets.max() < (2 if several else count):
            what = f"targets from {targets.min()} to {targets.max()}"
            raise DataError(
                what, source=source, expected="0 and 1" if several else f"0 to {count - 1}, as there are {count} classes"
            )

    def __len__(self) -> int:
        return self.rows.shape[0]

    def array(self) -> np.ndarray:
        """(N, E) all rows in memory, float32 (float64 if they are)."""
        found = np.asarray(self.rows)
        return found if found.dtype == np.float64 else found.astype(np.float32)

    def unit(self) -> np.ndarray:
        """(N, E) float32 rows of unit length.

        Raises:
            DataError: for a row of zeros.
        """
        rows = self.array().astype(np.float64)
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        if not lengths.all():
            row = int((lengths[:, 0] == 0).argmax())
            raise DataError(f"row {row} ({self.ids[row]}) is all zeros, which has no direction")
        return (rows / lengths).astype(np.float32)

    def take(self, chosen: Sequence[int] | np.ndarray) -> Features:
        """Some rows, by number or by a mask, with all that is known of them."""
        index = np.asarray(chosen)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return dataclasses.replace(
            self,
            rows=self.rows[index],
            targets=None if self.targets is None else self.targets[index],
            groups={name: np.asarray(values)[index] for name, values in self.groups.items()},
            ids=tuple(self.ids[row] for row in index),
            texts=None if self.texts is None else tuple(self.texts[row] for row in index),
        )

    @staticmethod
    def of_set(
        opened: EmbeddingSet,
        task: TaskData | None = None,
        *,
        label: str | None = None,
        classes: Sequence[str] | None = None,
        groups: Sequence[str] = (),
    ) -> Features:
        """The features of a set.

        Args:
            task: the split that was embedded, which says targets, classes and groups.
            label: without a task, the field that holds the label; by default the source's own labels.
            classes: without a task, the label keys in the order wanted; by default those that occur, sorted.
            groups: without a task, the fields that hold groups.

        Raises:
            DataError: if the set is not complete, is of other samples than the task, or has a label that is no class.
        """
        if not opened.complete:
            raise DataError(f"{opened.position:,} samples are done", source=opened.folder, expected="a set that is complete")
        ids = tuple(opened.ids) if "id" in opened.columns else ()
        facts = {"source": str(opened.folder), "key": opened.key.tree()}
        if task is not None:
            if list(ids) != task.ids:
                what = f"{len(ids):,} samples, which are not the {len(task):,} of the task's split {task.split!r} in order"
                raise DataError(what, source=opened.folder, fix="embed that split")
            texts = None if task.samples.texts is None else tuple(task.captions)
            return Features(
                rows=opened.rows,
                targets=task.targets,
                classes=task.classes,
                groups=task.groups,
                ids=ids,
                texts=texts,
                facts=facts,
            )
        fields = [json.loads(text) for text in opened.column("fields")] if "fields" in opened.columns else [{}] * len(ids)
        labels = [json.loads(text) for text in opened.column("labels")] if "labels" in opened.columns else [[]] * len(ids)
        if label is not None:
            labels = [[value] for value in _field(fields, label, ids, opened.folder)]
        targets, keys = _targets(labels, classes, ids, opened.folder)
        spoken = [tuple(json.loads(text)) for text in opened.column("texts")] if "texts" in opened.columns else []
        return Features(
            rows=opened.rows,
            targets=targets,
            classes=keys,
            groups={name: np.array(_field(fields, name, ids, opened.folder)) for name in groups},
            ids=ids,
            texts=tuple(spoken) if any(spoken) else None,
            facts=facts,
        )

    @staticmethod
    def of_task(task: TaskData) -> Features:
        """The features of a task whose data are ready embeddings.

        Raises:
            DataError: if they are pictures.
        """
        samples = task.samples
        if samples.embeddings is None:
            raise DataError("holds pictures and no embeddings", source=samples.location, fix="embed them into a store")
        facts = {"source": str(samples.location), "data": samples.fingerprint(), "split": task.split}
        return Features(
            rows=samples.embeddings,
            targets=task.targets,
            classes=task.classes,
            groups=task.groups,
            ids=tuple(task.ids),
            facts=facts,
        )

    @staticmethod
    def of_npz(
        path: str | Path,
        *,
        rows: str | None = None,
        labels: str | None = None,
        classes: Sequence[str] | None = None,
        ids: str | None = None,
    ) -> Features:
        """The features in the arrays of an npz file; arrays that are not named are looked for under usual names.

        Labels are positions in `classes`, in an array of names, or among the numbers that occur; or texts.

        Raises:
            DataError: for a file that is no npz of plain arrays, or arrays that do not belong together.
            ConfigError: for a name that is no array.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"not an npz of plain arrays: {str(error).splitlines()[0]}", source=path) from None
        found = _array(arrays, rows, ROW_ARRAYS, path)
        if found is None:
            raise DataError(
                f"no array of rows among {', '.join(arrays)}", source=path, expected=f"one of {', '.join(ROW_ARRAYS)}"
            )
        named = _array(arrays, ids, ID_ARRAYS, path)
        # Files are not always known: a column of ids that repeats itself is no column of ids.
        texts = () if named is None else tuple(map(str, named.tolist()))
        marks = _array(arrays, labels, LABEL_ARRAYS, path)
        names = _array(arrays, None, NAME_ARRAYS, path) if classes is None else None
        keys = tuple(classes) if classes is not None else tuple(map(str, names.tolist())) if names is not None else None
        targets = None
        if marks is not None and (marks.ndim == 2 or marks.dtype.kind in "iu") and keys is not None:
            targets = marks.astype(np.int64)
        elif marks is not None and marks.ndim == 2:
            raise DataError("several labels a row, and no names of classes", source=path, expected="classes")
        elif marks is not None:
            targets, keys = _targets([[str(mark)] for mark in marks.tolist()], classes, texts, path)
        return Features(
            rows=found, targets=targets, classes=(keys or ()) if targets is not None else (),
            ids=texts if ids is not None or len(set(texts)) == len(texts) else (), facts={"source": str(path)},
        )  # fmt: skip


def _targets(
    labels: Sequence[Sequence[str]], classes: Sequence[str] | None, ids: Sequence[str], source: object
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Positions of labels among the classes; 0 and 1 of each class where a sample has none or several."""
    if not any(labels):
        return None, ()
    keys = tuple(classes) if classes is not None else tuple(sorted({label for several in labels for label in several}))
    places = {key: place for place, key in enumerate(keys)}
    for row, several in enumerate(labels):
        for label in several:
            if label not in places:
                where = f"{source} ({ids[row] if ids else row})"
                raise DataError(unknown_name("label", label, keys).what, source=where, expected=f"one of {len(keys)} classes")
    if all(len(several) == 1 for several in labels):
        return np.array([places[several[0]] for several in labels], dtype=np.int64), keys
    targets = np.zeros((len(labels), len(keys)), dtype=np.int64)
    for row, several in enumerate(labels):
        targets[row, [places[label] for label in several]] = 1
    return targets, keys


def _field(fields: Sequence[Mapping[str, Any]], name: str, ids: Sequence[str], source: object) -> list[str]:
    for row, known in enumerate(fields):
        if name not in known:
            error = unknown_name("field", name, known)
            raise DataError(error.what, source=f"{source} ({ids[row]})", expected=error.expected)
    return [str(known[name]) for known in fields]


def _array(arrays: Mapping[str, np.ndarray], name: str | None, usual: Sequence[str], path: Path) -> np.ndarray | None:
    if name is None:
        return next((arrays[known] for known in usual if known in arrays), None)
    if name not in arrays:
        raise unknown_name("array", name, arrays, source=path)
    return arrays[name]
