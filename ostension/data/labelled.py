"""Pictures with a label each, for evaluation: a folder with one subfolder a class, or pairs whose metadata has a label.

Nothing is left out: a file that is no picture, and a pair without a label, is an error that names it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ostension.data.open import open_pairs
from ostension.data.pairs import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, Pair, PairSource, Summary, check_index, image_digest
from ostension.data.sets.arrow import is_saved_folder
from ostension.data.sets.open import open_set
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json

LABEL = "label"


class LabelledFolder:
    """The pictures below the subfolders of `path`, in the order of their names; the subfolder's name is the label.

    A `PairSource` whose pairs have no text and `{"label": ...}` as metadata. Hidden files and folders are passed over.

    Raises:
        DataError: if there are no subfolders with pictures in them, or a file is no picture by its name.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            folders = sorted(entry for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=self.path) from None
        self.labels = tuple(folder.name for folder in folders)
        self._files = [(folder.name, name) for folder in folders for name in _pictures_below(folder, self.path)]
        if not self._files:
            raise DataError("no labelled pictures", source=self.path, expected="a subfolder of pictures for each class")

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self._files[index][1]

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        label, name = self._files[index]
        path = self.path / name
        try:
            size = path.stat().st_size
            if size > MAX_IMAGE_BYTES:
                raise LimitError(f"image of {size} bytes", source=path, expected=f"at most {MAX_IMAGE_BYTES}")
            image = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None
        return Pair(key=name, image=image, texts=(), meta={LABEL: label})

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files."""
        return sha256_json(["labelled", [[name, (self.path / name).stat().st_size] for _, name in self._files]])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        num_bytes = sum((self.path / name).stat().st_size for _, name in self._files)
        return Summary(num_pairs=len(self), num_bytes=num_bytes, rejects={})


def open_labelled(data: str) -> PairSource:
    """A folder with one subfolder a class, an npz, a folder of the Hugging Face library, or whatever `open_pairs` opens.

    Raises:
        DataError, ConfigError: if it is neither, or cannot be read.
    """
    path = Path(data)
    if is_saved_folder(path) or (path.suffix == ".npz" and path.is_file()):
        return open_set(path)
    if path.is_dir() and not any(path.glob("*.tar")) and any(entry.is_dir() for entry in path.iterdir()):
        return LabelledFolder(path)
    return open_pairs(data)


def label_of(pair: Pair, field: str) -> str:
    """The label in the pair's metadata, as text.

    Raises:
        DataError: naming the sample, if it has none.
    """
    value = pair.meta.get(field)
    if value is None or isinstance(value, (dict, list)):
        known = ", ".join(map(repr, pair.meta)) or "nothing"
        raise DataError(f"no label {field!r} in its metadata, which has {known}", source=pair.key)
    return str(value)


def _pictures_below(folder: Path, root: Path) -> list[str]:
    """The files below `folder` by their paths from `root`, sorted."""
    found = []
    for current, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
                known = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DataError("is no picture by its name", source=Path(current) / name, expected=f"pictures only: {known}")
            found.append((Path(current) / name).relative_to(root).as_posix())
    return sorted(found)
