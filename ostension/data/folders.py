"""Pairs from a folder of images with caption files beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.arrays import cached_arrays, joined_texts, text_at
from ostension.data.pairs import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    Pair,
    Summary,
    check_index,
    image_digest,
    read_image,
    size_of,
)
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json


class CaptionFolder:
    """The pairs of a folder (and the folders in it): each image NAME.jpg with NAME.txt, one caption a line.

    Raises:
        DataError: if there is no such pair.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        names = sorted(_walk(self.folder))
        images: dict[str, str] = {}
        self._rejects: dict[str, int] = {}
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if suffix.lower() in IMAGE_SUFFIXES:
                if stem in images:
                    self._reject("a second image of one name")
                else:
                    images[stem] = name
        texts = {name.removesuffix(".txt") for name in names if name.endswith(".txt")}
        for _ in images.keys() - texts:
            self._reject("image without text")
        for _ in texts - images.keys():
            self._reject("text without image")
        paired = [image for stem, image in sorted(images.items()) if stem in texts]
        if not paired:
            raise DataError(
                f"no image with a caption beside it ({len(images)} images, {len(texts)} texts)",
                source=self.folder,
                expected="NAME.jpg and NAME.txt, or tar shards",
            )

        def index() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            letters, ends = joined_texts(paired)
            return {"letters": letters, "ends": ends}, {}

        self._names = cached_arrays("folder 1", paired, index)

    def __len__(self) -> int:
        return len(self._names["ends"])

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return text_at(self._names["letters"], self._names["ends"], index)

    def read(self, index: int) -> Pair:
        name = self.key(index)
        texts = self._captions(name)
        return Pair(key=name, image=read_image(self.folder / name, self.folder / name), texts=texts, meta={})

    def text_counts(self) -> np.ndarray:
        """How many captions each pair has; reads all texts once for every state of the folder."""

        def count() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            return {"counts": np.fromiter(map(self._num_captions, self._keys()), dtype=np.int32, count=len(self))}, {}

        return cached_arrays("captions of a folder 1", self.fingerprint(), count)["counts"]

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files, and of the captions."""
        whole = hashlib.sha256()
        for name in self._keys():
            text = _text_of(self.folder / name)
            caption = hashlib.sha256(text.read_bytes()).hexdigest() if text.is_file() else "missing"
            whole.update(sha256_json([name, size_of(self.folder / name), caption]).encode())
        return sha256_json(["folder", whole.hexdigest()])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest((self.folder / name).read_bytes()) for name in self._keys()], dtype=np.uint64)

    def summary(self) -> Summary:
        files = (path for name in self._keys() for path in (self.folder / name, _text_of(self.folder / name)))
        return Summary(num_pairs=len(self), num_bytes=sum(max(0, size_of(file)) for file in files), rejects=dict(self._rejects))

    def _keys(self) -> Iterator[str]:
        return map(self.key, range(len(self)))

    def _captions(self, name: str) -> tuple[str, ...]:
        text = _text_of(self.folder / name)
        if size_of(text) > MAX_TEXT_BYTES:
            raise LimitError(f"text of {size_of(text)} bytes", source=text, expected=f"at most {MAX_TEXT_BYTES}")
        try:
            lines = text.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"text is not UTF-8 at byte {error.start}", source=text) from None
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=text) from None
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions:
            raise DataError("text is empty", source=text)
        return captions

    def _num_captions(self, name: str) -> int:
        try:
            return len(self._captions(name))
        except (DataError, LimitError):
            return 1  # it will be refused when it is read, and count as one bad sample

    def _reject(self, reason: str) -> None:
        self._rejects[reason] = self._rejects.get(reason, 0) + 1


def _walk(folder: Path) -> Iterator[str]:
    """The files below `folder` by relative path; hidden ones are passed over."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(current) / name).relative_to(folder).as_posix()


def _text_of(image: Path) -> Path:
    """The caption file of an image."""
    return image.with_name(f"{image.name.rpartition('.')[0]}.txt")
