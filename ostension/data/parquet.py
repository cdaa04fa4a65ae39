"""Pairs from Parquet files, as the hub and many web-scale sets have them: one pair a row, the image in it or beside it.

On opening, the texts are read once, to leave out rows without; what that finds is kept in the cache folder. How rows are read
in any order is the matter of `parquet_groups`.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.data.arrays import cached_arrays
from ostension.data.layout import USUAL, Layout, captions_of
from ostension.data.pairs import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Pair,
    Summary,
    check_index,
    image_digest,
    read_image,
)
from ostension.data.parquet_groups import RowGroups
from ostension.data.remote import RemoteFile, read_whole
from ostension.data.tables import IMAGE_COLUMNS, TEXT_COLUMNS
from ostension.errors import ConfigError, DataError, LimitError, require_extra, unknown_name
from ostension.files import sha256_json

EXTRA = "data"
IMG2DATASET = {"url", "key", "status"}  # columns of the list that img2dataset writes beside its shards


class Parquet:
    """The pairs of a Parquet file.

    An image is bytes, the hub's pair of bytes and path, or a path relative to the file; captions are texts or lists of texts,
    in one column or several.

    Args:
        path: the file.
        layout: columns by name; found among the usual names if not given.

    Raises:
        DataError: if the file cannot be read, or holds no pair.
        ConfigError: if a column is not there, or cannot be told.
        MissingExtraError: if pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike | RemoteFile, *, layout: Layout = USUAL):
        require_extra("pyarrow.parquet", EXTRA)
        self.location = path if isinstance(path, RemoteFile) else Path(path)
        self.layout = layout
        self._groups = RowGroups(self.location)
        self._columns = _Columns(self._groups.schema, layout, self.location)
        self._groups.choose([self._columns.image, *self._columns.texts, *self._columns.others])
        self._rows = cached_arrays("parquet 1", [self._groups.footer, to_tree(layout)], self._index)
        if not len(self):
            raise DataError("no row with an image and a text", source=self.location)

    def __len__(self) -> int:
        return len(self._rows["rows"])

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return f"{self.location.name}:{self._rows['rows'][index]}"

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        row = int(self._rows["rows"][index])
        ends = self._groups.ends
        number = int(np.searchsorted(ends, row, side="right"))
        table, at = self._groups.group(number), row - (int(ends[number - 1]) if number else 0)
        source = f"{self.location} row {row}"
        columns = self._columns
        values = [table[name][at].as_py() for name in columns.texts]
        texts, weights = captions_of(values, self.layout, source)
        if sum(map(len, texts)) > MAX_TEXT_BYTES:
            raise LimitError(f"text of {sum(map(len, texts))} letters", source=source, expected=f"at most {MAX_TEXT_BYTES}")
        meta = {name: table[name][at].as_py() for name in columns.others}
        image = self._image(table[columns.image][at].as_py(), source)
        return Pair(key=self.key(index), image=image, texts=texts, meta=meta, weights=weights)

    def text_counts(self) -> np.ndarray | None:
        """How many captions each pair has; None where each has one."""
        counts = self._rows["counts"]
        return counts if len(counts) and counts.max() > 1 else None

    def fingerprint(self) -> str:
        """A hash of the file's size and footer, which has the place, size and range of values of every part."""
        layout = [] if self.layout == USUAL else [to_tree(self.layout)]
        return sha256_json(["parquet", self._groups.num_bytes, self._groups.footer, *layout])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self), num_bytes=self._groups.num_bytes, rejects=dict(self._rows.facts["rejects"]))

    def _index(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """One pass over the texts: the rows with an image and a caption, and how many captions they have."""
        rows, counts = [], []
        rejects: dict[str, int] = {}
        image = self._columns.image
        full = self._groups.is_full(image, f"{image}.bytes")  # else the images have to be read as well
        start = 0
        for number, end in enumerate(self._groups.ends.tolist()):
            columns = [self._groups.column(number, name).to_pylist() for name in self._columns.texts]
            images = itertools.repeat(True, end - start) if full else map(_is_image, self._groups.column(number, image))
            for row, there, *values in zip(range(start, end), images, *columns, strict=True):
                try:
                    count = len(captions_of(values, self.layout, None)[0])
                except DataError:
                    count = 0
                if there and count:
                    rows.append(row)
                    counts.append(count)
                else:
                    reason = "no text" if there else "no image"
                    rejects[reason] = rejects.get(reason, 0) + 1
            start = end
        return {"rows": np.array(rows, np.int64), "counts": np.array(counts, np.int32)}, {"rejects": rejects}

    def _image(self, value: Any, source: str) -> bytes:
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, str):
            value, path = None, value
        if value is not None:
            if len(value) > MAX_IMAGE_BYTES:
                raise LimitError(f"image of {len(value)} bytes", source=source, expected=f"at most {MAX_IMAGE_BYTES}")
            return value
        if not path:
            raise DataError("no image", source=source)
        if isinstance(self.location, RemoteFile):
            return read_whole(self.location.url.rpartition("/")[0] + "/" + path, MAX_IMAGE_BYTES, source)
        return read_image(self.location.parent / path, source)


def _is_image(value: Any) -> bool:
    found = value.as_py()
    return any(found.values()) if isinstance(found, dict) else bool(found)


class _Columns:
    """The names of the columns with images, with texts, and of the plain ones beside them.

    Raises:
        ConfigError: if they cannot be told.
    """

    def __init__(self, schema: Any, layout: Layout, source: object):
        from pyarrow import types

        def is_text(kind: Any) -> bool:
            return types.is_string(kind) or types.is_large_string(kind)

        def is_bytes(kind: Any) -> bool:
            return types.is_binary(kind) or types.is_large_binary(kind)

        def holds_images(kind: Any) -> bool:
            if types.is_struct(kind):
                return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
            return is_bytes(kind) or is_text(kind)

        def holds_texts(kind: Any) -> bool:
            is_list = types.is_list(kind) or types.is_large_list(kind)
            return is_text(kind) or (is_list and is_text(kind.value_type))

        kinds = dict(zip(schema.names, schema.types, strict=True))
        named = layout.image is not None
        if (
            not named
            and set(kinds) >= IMG2DATASET
            and not any(is_bytes(kind) or types.is_struct(kind) for kind in kinds.values())
        ):
            what = "img2dataset's list of what it downloaded, which holds no images"
            raise ConfigError(what, source=source, fix="the pairs are in the tar of the same name")
        fitting = {name for name, kind in kinds.items() if holds_images(kind)}
        self.image = _chosen(kinds, fitting, layout.image, IMAGE_COLUMNS, "image", source)
        fitting = {name for name, kind in kinds.items() if holds_texts(kind) and name != self.image}
        wanted = layout.texts or (None,)
        self.texts = tuple(_chosen(kinds, fitting, name, TEXT_COLUMNS, "text", source) for name in wanted)
        self.others = tuple(
            name for name, kind in kinds.items()
            if name not in (self.image, *self.texts)
            and (is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
        )  # fmt: skip


def _chosen(
    kinds: dict[str, Any], fitting: set[str], wanted: str | None, usual: tuple[str, ...], what: str, source: object
) -> str:
    if wanted is not None and wanted not in kinds:
        raise unknown_name(f"{what} column", wanted, kinds, source=source)
    found = [name for name in ([wanted] if wanted else usual) if name in fitting]
    if not found:
        listed = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items())
        if wanted:
            forms = "bytes, bytes with a path, or a path" if what == "image" else "texts or lists of texts"
            raise ConfigError(f"the column {wanted!r} holds no {what}s ({kinds[wanted]})", source=source, expected=forms)
        setting = "batches.layout.image" if what == "image" else "batches.layout.texts"
        known = f"one of {', '.join(map(repr, usual))}"
        raise ConfigError(f"no {what} column among {listed}", source=source, expected=known, fix=f"or name it in {setting}")
    return found[0]
