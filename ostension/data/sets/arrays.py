"""Labelled pictures, or their embeddings, in the arrays of an npz file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.sets.base import SPLIT_WORDS, LabelledSet, label_texts
from ostension.data.task_parts import Source
from ostension.errors import DataError, LimitError, unknown_name
from ostension.files import sha256_file

IMAGE_ARRAYS = ("images", "image", "x", "data")
LABEL_ARRAYS = ("labels", "label", "y", "targets")
NAME_ARRAYS = ("names", "class_names", "classes")
EMBEDDING_ARRAYS = ("embeddings", "features", "feats")
MAX_ARRAY_BYTES = 32_000_000_000
SPLIT_PART = "{split}"


class ArraySet(LabelledSet):
    """Arrays of an npz file: pictures (N, H, W) or (N, H, W, 3) of bytes, or embeddings (N, E), and labels (N,).

    Where there is an array of the classes' names ("names") and labels are numbers, the label is the name.

    Args:
        source: names of the arrays; "{split}_images" stands for one array a split. Without it the usual names.

    Raises:
        DataError: for a file that is no npz, arrays that are not there or do not belong together.
    """

    def __init__(self, path: Path, source: Source | None = None, *, several: bool = False):
        arrays = _load(path)
        source = source or Source(kind="npz")
        data_name = source.embeddings or source.image or _usual(arrays, (*IMAGE_ARRAYS, *EMBEDDING_ARRAYS), "images", path)
        label_name = source.label or _usual(arrays, LABEL_ARRAYS, "labels", path)
        embeddings = source.embeddings is not None or data_name.replace(SPLIT_PART + "_", "") in EMBEDDING_ARRAYS
        names = next((arrays[name] for name in NAME_ARRAYS if name in arrays and arrays[name].dtype.kind == "U"), None)
        parts, labels, splits, ids = [], [], [], []
        for split in _splits(arrays, data_name):
            data, keys = (_array(arrays, name.replace(SPLIT_PART, split), path) for name in (data_name, label_name))
            _check(data, keys, embeddings, path)
            parts.append(data)
            if names is not None and names.ndim == 1 and keys.dtype.kind in "iu":
                if keys.size and not 0 <= keys.min() <= keys.max() < len(names):
                    what = f"labels from {keys.min()} to {keys.max()}, and {len(names)} names"
                    raise DataError(what, source=path, expected="numbers of names, from 0")
                keys = names[keys]
            for index, key in enumerate(keys):
                name = f"{split}/{index}" if split else str(index)
                labels.append(label_texts(key.item() if keys.ndim == 1 else key, f"{path} ({name})", several=several))
                splits.append(split)
                ids.append(name)
        data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        super().__init__(path, ids, labels, splits=splits if any(splits) else None)
        self._images = None if embeddings else data
        if embeddings:
            self.embeddings = data

    def image(self, index: int) -> bytes:
        """The picture as PNG, which loses nothing."""
        from PIL import Image

        if self._images is None:
            raise DataError("holds embeddings and no pictures", source=self.location)
        buffer = io.BytesIO()
        Image.fromarray(self._images[index]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def content(self) -> list[Any]:
        return [sha256_file(self.location)]


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARRAY_BYTES:
            raise LimitError(f"arrays of {size:,} bytes", source=path, expected=f"at most {MAX_ARRAY_BYTES:,}")
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"not an npz of plain arrays: {str(error).splitlines()[0]}", source=path) from None


def _splits(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    if SPLIT_PART not in name:
        return [""]
    before, _, after = name.partition(SPLIT_PART)
    return [part[len(before) : len(part) - len(after)] for part in arrays if part.startswith(before) and part.endswith(after)]


def _usual(arrays: dict[str, np.ndarray], usual: tuple[str, ...], what: str, path: Path) -> str:
    words = [word for known in SPLIT_WORDS.values() for word in known]
    for name in usual:
        if name in arrays:
            return name
        if any(f"{word}_{name}" in arrays for word in words):
            return f"{SPLIT_PART}_{name}"
    raise DataError(f"no array of {what} among {', '.join(arrays)}", source=path, expected=f"one of {', '.join(usual)}")


def _array(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in arrays:
        raise unknown_name("array", name, arrays, source=path)
    return arrays[name]


def _check(data: np.ndarray, labels: np.ndarray, embeddings: bool, path: Path) -> None:
    if len(data) != len(labels) or labels.ndim not in (1, 2):
        what = f"{data.shape} pictures or embeddings, {labels.shape} labels"
        raise DataError(what, source=path, expected="one row of labels for each")
    if embeddings and (data.ndim != 2 or data.dtype.kind != "f" or not np.isfinite(data).all()):
        raise DataError(f"embeddings of shape {data.shape} and type {data.dtype}", source=path, expected="finite (N, E)")
    if not embeddings and not (data.dtype == np.uint8 and (data.ndim == 3 or (data.ndim == 4 and data.shape[3] in (3, 4)))):
        what = f"pictures of shape {data.shape} and type {data.dtype}"
        raise DataError(what, source=path, expected="uint8 of shape (N, H, W) or (N, H, W, 3)")
