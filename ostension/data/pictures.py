"""Pictures alone, whatever is said about them: what training a near-duplicate detector and looking for copies read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ostension.data.layout import USUAL, Layout
from ostension.data.open import open_pairs
from ostension.data.pairs import (
    IMAGE_SUFFIXES,
    Joined,
    Pair,
    PairSource,
    Summary,
    check_index,
    image_digest,
    read_image,
    size_of,
)
from ostension.data.sets.arrow import is_saved_folder
from ostension.data.sets.open import open_set
from ostension.errors import ConfigError, DataError
from ostension.files import sha256_json


class PictureFolder:
    """All pictures in a folder and in the folders within, by their paths; a `PairSource` whose pairs have no texts.

    Other files, and what is hidden, are passed over and counted.

    Raises:
        DataError: if the folder cannot be read or has no picture.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._names: list[str] = []
        self._others = 0
        for current, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                if name.startswith("."):
                    continue
                if name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                    self._names.append((Path(current) / name).relative_to(self.folder).as_posix())
                else:
                    self._others += 1
        self._names.sort()
        if not self._names:
            raise DataError("no picture", source=self.folder, expected=f"files named {', '.join(sorted(IMAGE_SUFFIXES))}")

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self._names[index]

    def read(self, index: int) -> Pair:
        name = self.key(index)
        return Pair(key=name, image=read_image(self.folder / name, self.folder / name), texts=(), meta={})

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files."""
        return sha256_json(["pictures", [[name, size_of(self.folder / name)] for name in self._names]])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        num_bytes = sum(size_of(self.folder / name) for name in self._names)
        return Summary(num_pairs=len(self), num_bytes=num_bytes, rejects={"no picture by its name": self._others})


def open_pictures(source: str | os.PathLike | Sequence[str | os.PathLike], *, layout: Layout = USUAL) -> PairSource:
    """The pictures of a folder, an npz, a folder of the Hugging Face library, or of whatever `open_pairs` opens.

    A table may have labels in the place of texts.

    Args:
        layout: what holds the images, where that is not as usual.

    Raises:
        DataError, ConfigError: if it is none of these, or cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        opened = [open_pictures(part, layout=layout) for part in source]
        return opened[0] if len(opened) == 1 else Joined(opened)
    path = Path(source)
    if is_saved_folder(path) or (path.suffix == ".npz" and path.is_file()):
        return open_set(path)
    if path.is_dir() and not any(path.glob("*.tar")) and not any(path.glob("*.parquet")):
        return PictureFolder(path)
    try:
        return open_pairs(source, layout=layout)
    except ConfigError:
        if not path.is_file() or layout != USUAL:
            raise
        try:
            return open_set(path)
        except (ConfigError, DataError):
            pass
        raise  # what a table of pairs lacks says more
