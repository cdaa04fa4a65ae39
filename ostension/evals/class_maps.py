"""Class maps: from the logits of one class list (ImageNet's 1,000) to those of a task that keeps or pools its classes.

A subset keeps columns. A superclass takes the *largest* logit of its pool, so that it is predicted exactly where one of its
classes would be. A class with an empty pool has minus infinity: a zero there, as in the first release of the published test
bed, is the largest logit wherever all others are negative.

Letters: N samples, S source classes, C classes of the task.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Which source classes each class of a task is made of.

    Attributes:
        source: the task whose classes are pooled.
        source_keys: its S label keys, in the order of its logits.
        keys: the C label keys of the pooled task, in the order of its logits.
        columns: positions in `source_keys` for each of `keys`; empty for a class that no source class means.
    """

    source: str
    source_keys: tuple[str, ...]
    keys: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]

    @property
    def class_of(self) -> Int[np.ndarray, " S"]:
        """The task's class of each source class, -1 for none.

        Raises:
            ConfigError: if a source class is in two pools; then it has no one class.
        """
        found = np.full(len(self.source_keys), -1, dtype=np.int64)
        for place, columns in enumerate(self.columns):
            for column in columns:
                if found[column] >= 0:
                    both = f"{self.keys[found[column]]!r} and {self.keys[place]!r}"
                    raise ConfigError(f"{self.source_keys[column]!r} is in the pools of {both}", expected="one pool")
                found[column] = place
        return found


def class_map(task: Task | str, source: str | None = None) -> ClassMap:
    """The map into `task` from the task that it pools or takes its classes from.

    Args:
        source: the task that the logits are of; by default the one that the record names.

    Raises:
        ConfigError: for a task that names no other, or names another than `source`.
    """
    task = task if isinstance(task, Task) else read_task(task)
    named = task.superclass_of or task.classes_of
    if named is None or (source is not None and source != named):
        what = "is made of no other task's classes" if named is None else f"is made of the classes of {named!r}"
        expected = "superclass_of or classes_of in its record" if source is None else f"classes of {source!r}"
        raise ConfigError(f"the task {task.name or task.title!r} {what}", expected=expected)
    source_keys = tuple(read_task(named).display_names())
    place = {key: index for index, key in enumerate(source_keys)}
    keys = tuple(task.display_names())
    pools = task.superclass_map if task.superclass_of else {key: (key,) for key in keys}
    columns = tuple(tuple(sorted(place[key] for key in pools.get(own, ()))) for own in keys)
    return ClassMap(named, source_keys, keys, columns)


def pool(logits: Float[np.ndarray, "N S"], task: Task | str | ClassMap) -> Float[np.ndarray, "N C"]:
    """The logits of the task's classes from those of its source's: out[n, c] = max over c's pool of logits[n, s].

    Raises:
        DataError: for another number of columns than the source has classes.
    """
    found = task if isinstance(task, ClassMap) else class_map(task)
    if logits.shape[1] != len(found.source_keys):
        raise DataError(f"{logits.shape[1]:,} columns of logits", expected=f"{len(found.source_keys):,}, of {found.source!r}")
    if found.columns == tuple((column,) for column in range(len(found.source_keys))):
        return logits  # all classes in their own order; of 50,000 pictures a copy would be 200 MB
    pooled = np.full((len(logits), len(found.keys)), -np.inf, dtype=logits.dtype)
    single = [(place, columns[0]) for place, columns in enumerate(found.columns) if len(columns) == 1]
    if single:
        places, columns = zip(*single, strict=True)
        pooled[:, list(places)] = logits[:, list(columns)]
    for place, several in enumerate(found.columns):
        if len(several) > 1:
            pooled[:, place] = logits[:, list(several)].max(axis=1)
    return pooled


def partner(
    logits: Float[np.ndarray, "N S"], targets: Int[np.ndarray, " N"], task: Task | str | ClassMap
) -> tuple[Float[np.ndarray, "M C"], Int[np.ndarray, " M"], Bool[np.ndarray, " N"]]:
    """The partner in distribution: the source's own samples of the task's classes, projected as the task is.

    Returns:
        Logits and targets by the task's classes of the M samples that are kept, and which of the N they are. The accuracy
        on them is what a shift's accuracy is compared with.

    Raises:
        DataError: if no sample is of a class of the task.
        ConfigError: if a source class is in two pools.
    """
    found = task if isinstance(task, ClassMap) else class_map(task)
    own = found.class_of[targets]
    kept = own >= 0
    if not kept.any():
        raise DataError("no sample is of a class of the task", source=found.source, expected="one or more")
    chosen = logits if kept.all() else logits[kept]
    return pool(chosen, found), own[kept], kept
