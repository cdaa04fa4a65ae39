"""The leaderboard's data sets: twenty (and ImageNet) of images, thirty-five of detection, as `sets.toml` records them."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path

import numpy as np

from ostension.config import from_tree
from ostension.data.task import Task
from ostension.errors import DataError, unknown_name
from ostension.shapes import Float

FILE = Path(__file__).with_name("sets.toml")
OPTIONAL = "imagenet-1k"  # a submission may have it beside the twenty


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of the image track.

    Attributes:
        name: what the leaderboard calls it.
        task: our record of it.
        test_images, classes: its sizes.
        multilabel: whether an image has several labels, so that rows of probabilities need not sum to 1.
        order: our label keys in the leaderboard's order of classes; empty where it is ours.
        published_names: by label key, the name in the published knowledge where it is not the record's first one.
    """

    name: str
    task: str
    test_images: int
    classes: int
    multilabel: bool = False
    order: tuple[str, ...] = ()
    published_names: dict[str, str] = dataclasses.field(default_factory=dict)


@functools.cache
def image_sets() -> dict[str, ImageSet]:
    """The image sets by the leaderboard's names."""
    tree = tomllib.loads(FILE.read_text(encoding="utf-8"))
    found = [from_tree(ImageSet, entry, source=FILE) for entry in tree["image"]]
    return {entry.name: entry for entry in found}


@functools.cache
def detection_sets() -> dict[str, int]:
    """The numbers of classes of the detection sets by their names."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8"))["detection"])


def detection_set(name: str) -> str | None:
    """The detection set meant by `name`, whatever its case and separators; None if it is none."""
    return {_letters(known): known for known in detection_sets()}.get(_letters(name))


def set_of_task(task: Task) -> ImageSet:
    """The leaderboard's set that a task is.

    Raises:
        ConfigError: if it is none of them; it names the nearest three.
    """
    by_task = {entry.task: entry for entry in image_sets().values()}
    if task.name not in by_task:
        raise unknown_name("task of the leaderboard", task.name, by_task)
    return by_task[task.name]


def in_order(published: ImageSet, task: Task, columns: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Columns that are in the task's order of classes, in the leaderboard's.

    Raises:
        DataError: if there are other classes than the leaderboard's.
    """
    keys = list(task.display_names())
    if columns.shape[1] != len(keys) or len(keys) != published.classes:
        what = f"{columns.shape[1]} columns for {len(keys)} classes"
        raise DataError(what, source=task.name, expected=f"the {published.classes} of {published.name}")
    if not published.order:
        return columns
    place = {key: index for index, key in enumerate(keys)}
    return columns[:, [place[key] for key in published.order]]


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
