"""Features in npz files as a task of their own: rows and labels by split, rows of the classes' texts.

    inputs = open_features(["train.npz", "test.npz"], texts="rows.npz")

A file's split is the word at the beginning of its name (train.npz, val_b32.npz); one file alone is "test". Arrays have the
names of `Features.of_npz`: rows ("embeddings", "features", ...), "labels", "names", "ids". The texts' file has rows and
"names", which are the class names, or prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ostension.data.sets.base import split_word
from ostension.data.task import Task, read_task
from ostension.data.task_parts import Split
from ostension.errors import ConfigError, DataError
from ostension.evals.inputs import ArrayInputs
from ostension.evals.run_inputs import RunInputs
from ostension.store import Features

OWN_TEMPLATE = "{}"


class FeatureInputs(ArrayInputs, RunInputs):
    """`ArrayInputs` that a run can resume on."""

    measured = "test"

    def missing(self, split: str) -> str | None:
        return None if self.has(split) else f"no file of the split {split!r}"

    def fresh(self, fold: str | None = None) -> FeatureInputs:
        made = copy.copy(self)
        made.used, made.notes = {}, []
        return made

    def identity(self) -> dict[str, str]:
        return self.hashes()  # of everything: the files are at hand

    def fingerprint(self, name: str) -> str:
        return ""

    def data_notes(self) -> list[str]:
        return []

    def folds(self) -> tuple[str, ...]:
        return ()

    def targets(self, split: str) -> np.ndarray | None:
        return self.features(split).targets


def open_features(
    files: Sequence[str | Path],
    *,
    texts: str | Path | None = None,
    task: Task | str | None = None,
    scale: float = 100.0,
    name: str = "features",
) -> FeatureInputs:
    """The inputs of files with ready features.

    Args:
        texts: rows of class names or prompts; without them nothing that needs words can be measured.
        task: what the labels are of; by default a task of the names in the files, scored by accuracy.
        scale: the multiplier of the cosines; OpenAI's models have 100.
        name: of the model that made them.

    Raises:
        ConfigError: for files whose split is not clear, or two of one split.
        DataError: for files that cannot be used, or do not belong together.
    """
    splits = _splits([Path(file) for file in files])
    record = read_task(task) if isinstance(task, str) else task
    classes = None if record is None else tuple(record.display_names())
    features = {split: Features.of_npz(path, classes=classes) for split, path in splits.items()}
    if record is None:
        record = _task({split: (splits[split], rows) for split, rows in features.items()})
    class_rows, prompt_rows = (None, None) if texts is None else _texts(Path(texts), record)
    made = FeatureInputs(
        record, features, class_rows=class_rows, prompt_rows=prompt_rows, scale=scale, model_name=name
    )  # fmt: skip
    made.used, made.notes = {}, []
    return made


def _splits(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        split = split_word(path.name) or ("test" if len(files) == 1 else None)
        if split is None:
            expected = "a name that begins with train, val or test"
            raise ConfigError("the split is not clear", source=path, expected=expected)
        if split in found:
            raise ConfigError(f"{found[split]} and {path} are both of the split {split!r}", expected="one file a split")
        found[split] = path
    return found


def _task(features: dict[str, tuple[Path, Features]]) -> Task:
    """A task of the classes in the files."""
    path, first = features.get("test", next(iter(features.values())))
    for other, rows in features.values():
        if rows.targets is None:
            raise DataError("has no labels", source=other, expected="an array called labels")
        if rows.classes != first.classes:
            what = f"has the classes {', '.join(rows.classes[:5])} ({len(rows.classes)})"
            raise DataError(
                what, source=other, expected=f"those of {path}: {', '.join(first.classes[:5])} ({len(first.classes)})"
            )
    several = first.targets is not None and first.targets.ndim == 2
    return Task(
        title="features from files", name="features", version=1, kind="multilabel" if several else "classify",
        metric="map_11_point" if several else "accuracy", classes={key: (key,) for key in first.classes},
        templates=(OWN_TEMPLATE,), licence="not stated", citation="none",
        splits={split: Split(count=len(rows)) for split, (_, rows) in features.items()},
    )  # fmt: skip


def _texts(path: Path, task: Task) -> tuple[np.ndarray | None, dict[str, np.ndarray] | None]:
    """Rows of the classes, or rows of prompts."""
    found = Features.of_npz(path)
    try:
        with np.load(path, allow_pickle=False) as opened:
            names = next(
                (opened[key] for key in ("names", "class_names", "classes", "texts", "prompts") if key in opened), None
            )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", source=path) from None
    if names is None or names.shape != (len(found),):
        raise DataError("no name for each row", source=path, expected=f"{len(found)} names, of classes or prompts, as 'names'")
    rows = dict(zip(map(str, names.tolist()), found.array(), strict=True))
    keys = task.label_names()
    if all(key in rows for key in keys):
        return np.stack([rows[key] for key in keys]), None
    if all(several[0] in rows for several in keys.values()):
        return np.stack([rows[several[0]] for several in keys.values()]), None
    return None, rows
