"""Labelled pictures in folders: class folders, class folders below split folders, or below folders of domains."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ostension.data.pairs import IMAGE_SUFFIXES
from ostension.data.sets.base import SPLIT_WORDS, LabelledSet, read_picture_file
from ostension.errors import DataError
from ostension.image.signatures import VIDEO_SUFFIXES

SPLIT_LEVELS = ("split", "label")


class FolderSet(LabelledSet):
    """The pictures below `root`, in the order of their paths, which are their ids.

    Args:
        levels: what each level of folders says; without it ("split", "label") if the folders are called as splits are, else
            ("label",). A class folder may have folders of its own.
        videos: whether files of videos are samples too.

    Raises:
        DataError: for a picture that lies outside the folders of classes, or if there is none.
    """

    def __init__(self, root: Path, levels: tuple[str, ...] | None = None, *, videos: bool = False):
        self.root = root
        names, rejects = pictures_below(root, VIDEO_SUFFIXES if videos else frozenset())
        self.levels = levels or (SPLIT_LEVELS if splits_on_top(root) else ("label",))
        self.levels_in_ids = len(self.levels)
        columns: dict[str, list[str]] = {level: [] for level in self.levels}
        for name in names:
            parts = name.split("/")
            if len(parts) <= len(self.levels):
                expected = "/".join(level.upper() for level in self.levels) + "/picture"
                raise DataError("a picture outside the folders of classes", source=root / name, expected=expected)
            for level, part in zip(self.levels, parts, strict=False):
                columns[level].append(part)
        labels = [(label,) for label in columns.pop("label")]
        splits = columns.pop("split", None)
        super().__init__(root, names, labels, splits=splits, fields=columns, rejects=rejects)

    def image(self, index: int) -> bytes:
        return read_picture_file(self.root / self.ids[index])

    def content(self) -> list[Any]:
        return [(self.root / name).stat().st_size for name in self.ids]


def splits_on_top(root: Path, more: Iterable[str] = ()) -> bool:
    """Whether every folder in `root` is called as a split, or as one of `more`."""
    known = {word for words in SPLIT_WORDS.values() for word in words} | set(more)
    names = [entry.name.casefold() for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return bool(names) and set(names) <= known


def pictures_below(root: Path, more: frozenset[str] = frozenset()) -> tuple[list[str], dict[str, int]]:
    """The pictures (and files with `more` suffixes) below `root` by their paths from there, sorted; other files counted.

    Hidden ones are passed over.
    """
    found: list[str] = []
    rejects: Counter[str] = Counter()
    for current, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if name.rpartition(".")[2].casefold() in IMAGE_SUFFIXES | more:
                found.append((Path(current) / name).relative_to(root).as_posix())
            else:
                rejects["no picture by its name"] += 1
    if not found:
        raise DataError("no pictures below this folder", source=root, expected="a folder of pictures for each class")
    return sorted(found), dict(rejects)
