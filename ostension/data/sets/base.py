"""A labelled set: samples with an id, labels by key, a split, groups and captions, whatever form the files have.

Labels, ids and groups are known on opening; pictures are read one by one. A set is a `PairSource`, so that whatever reads
pairs reads labelled sets too: the label is in a pair's metadata. Nothing is left out: a sample without a label is an error
that names it.
"""

from __future__ import annotations

import abc
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.data.pairs import MAX_IMAGE_BYTES, Pair, Summary, check_index, image_digest
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json

if TYPE_CHECKING:
    from ostension.image.video import Video

LABEL_COLUMNS = ("label", "class", "category", "target", "y")
SPLIT_COLUMNS = ("split", "set", "partition")
# Words that different sets use for one thing.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}


class LabelledSet(abc.ABC):
    """Samples in a fixed order; a subclass knows how to read a picture.

    Attributes:
        location: the files.
        ids: of each sample, unique unless the data repeats itself (`task validate` says).
        labels: label keys of each sample as the data writes them; one of most, several of multi-label sets, none of
            captions.
        splits: of each sample, or None where the data has none.
        fields: further values by name: groups, domains, folds.
        texts: captions of each sample, or None.
        embeddings: (N, E) ready embeddings instead of pictures, or None.
        levels_in_ids: slashes of an id that divide the set's own levels (splits, classes, shards) from a sample's name.
        rejects: files beside the samples that are none, counted by reason.
    """

    embeddings: np.ndarray | None = None
    levels_in_ids: int = 0

    def __init__(
        self,
        location: Path,
        ids: Sequence[str],
        labels: Sequence[tuple[str, ...]],
        *,
        splits: Sequence[str] | None = None,
        fields: Mapping[str, Sequence[str]] | None = None,
        texts: Sequence[tuple[str, ...]] | None = None,
        rejects: Mapping[str, int] | None = None,
    ):
        self.location, self.ids, self.labels = location, ids, labels
        self.splits, self.fields, self.texts = splits, dict(fields or {}), texts
        self.rejects = dict(rejects or {})
        if not ids:
            raise DataError("no samples", source=location, expected="labelled pictures")
        assert all(len(column) == len(ids) for column in (labels, *self.fields.values(), *filter(None, (splits, texts))))

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self.ids[index]

    @abc.abstractmethod
    def image(self, index: int) -> bytes:
        """The encoded picture of a sample; raises a `DataError` that names it."""

    def video(self, index: int) -> Video:
        """A sample as a video; a picture is one of one frame. Raises as `image.video.open_video` does."""
        from ostension.image.video import open_video

        return open_video(self.image(index), name=self.ids[index])

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        labels = self.labels[index]
        meta: dict[str, Any] = {name: values[index] for name, values in self.fields.items()}
        if self.splits is not None:
            meta["split"] = self.splits[index]
        meta |= {"label": labels[0] if len(labels) == 1 else None, "labels": list(labels)}
        texts = self.texts[index] if self.texts is not None else ()
        return Pair(key=self.ids[index], image=self.image(index), texts=texts, meta=meta)

    @abc.abstractmethod
    def content(self) -> list[Any]:
        """What besides ids and labels tells two versions of the data apart: sizes or hashes of the files."""

    def fingerprint(self) -> str:
        labels = [list(several) for several in self.labels]
        return sha256_json([type(self).__name__, ids_sha256(self.ids), labels, self.content()])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.image(index)) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self), num_bytes=size_of_all(self.location), rejects=dict(self.rejects))


class SelectedSet(LabelledSet):
    """Some samples of a set, in the order of `indices`."""

    def __init__(self, parent: LabelledSet, indices: np.ndarray):
        self.parent, self.indices = parent, np.asarray(indices, dtype=np.int64)
        self.levels_in_ids = parent.levels_in_ids

        def take(column: Sequence[Any]) -> list[Any]:
            return [column[index] for index in self.indices]

        super().__init__(
            parent.location,
            take(parent.ids),
            take(parent.labels),
            splits=None if parent.splits is None else take(parent.splits),
            fields={name: take(values) for name, values in parent.fields.items()},
            texts=None if parent.texts is None else take(parent.texts),
        )
        if parent.embeddings is not None:
            self.embeddings = parent.embeddings[self.indices]

    def image(self, index: int) -> bytes:
        return self.parent.image(int(self.indices[index]))

    def video(self, index: int) -> Video:
        return self.parent.video(int(self.indices[index]))

    def content(self) -> list[Any]:
        return self.parent.content()

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self), num_bytes=self.parent.summary().num_bytes, rejects={})


class CutSet(SelectedSet):
    """Some samples of a set, with `cut_px` pixels cut off each side of every picture."""

    def __init__(self, parent: LabelledSet, indices: np.ndarray, cut_px: int):
        super().__init__(parent, indices)
        self.cut_px = cut_px

    def image(self, index: int) -> bytes:
        """The rest of the picture as PNG."""
        from ostension.image.decode import read_picture

        image = read_picture(super().image(index), name=self.ids[index]).image
        box = (self.cut_px, self.cut_px, image.width - self.cut_px, image.height - self.cut_px)
        if box[2] <= box[0] or box[3] <= box[1]:
            what = f"a picture of {image.width} x {image.height} pixels"
            raise DataError(what, source=self.ids[index], expected=f"more than {2 * self.cut_px} each way")
        buffer = io.BytesIO()
        image.crop(box).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def video(self, index: int) -> Video:
        raise DataError("the frames of a video are not cut", source=self.ids[index], expected="a task without cut_px")

    def content(self) -> list[Any]:
        return ["cut", self.cut_px, *super().content()]


def ids_sha256(ids: Sequence[str]) -> str:
    """The hash of sample ids in order, which a record may state for a split."""
    digest = hashlib.sha256()
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()


def label_text(value: Any, source: object) -> str:
    """A label as text: numbers without a point, no white space around.

    Raises:
        DataError: for no label, or what is not one.
    """
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(f"the label is {value!r}", source=source, expected="a text or a whole number; no sample is left out")


def label_texts(value: Any, source: object, *, several: bool = False) -> tuple[str, ...]:
    """One label, or several from a list (or, of a multi-label set, from a text with | between them)."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(label_text(item, source) for item in value)
    if several and isinstance(value, str):
        return tuple(label_text(item, source) for item in value.split("|") if item.strip())
    return (label_text(value, source),)


def is_split(word: str, name: str) -> bool:
    """Whether `word`, as data writes it, means the split called `name`."""
    return word == name or word.casefold() in SPLIT_WORDS.get(name, ())


def split_word(text: str) -> str | None:
    """The word for a split at the beginning of a file's name ("train-00000-of-00001.parquet"), or None."""
    words = [word for known in SPLIT_WORDS.values() for word in known]
    head = text.casefold().replace("_", "-").replace(".", "-").split("-")[0]
    return head if head in words else None


def read_picture_file(path: Path) -> bytes:
    """A picture's bytes, within the limit on size; raises a `DataError` that names the file."""
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise LimitError(f"image of {size} bytes", source=path, expected=f"at most {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None


def size_of_all(location: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if location.is_file():
        return location.stat().st_size
    return sum(path.stat().st_size for path in location.rglob("*") if path.is_file())
