"""Labelled pictures in Arrow columns: Parquet files, and folders that the Hugging Face library has saved.

Both are read with pyarrow alone. Columns of labels are read on opening, pictures a block of rows at a time. Where a file
says that a column holds class numbers, and their names, the label is the name.
"""

from __future__ import annotations

import bisect
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ostension.data.pairs import MAX_IMAGE_BYTES
from ostension.data.sets.base import LABEL_COLUMNS, SPLIT_COLUMNS, LabelledSet, label_texts, split_word
from ostension.data.sets.table import find_column
from ostension.data.task_parts import Source
from ostension.errors import DataError, LimitError, require_extra
from ostension.files import read_json, sha256_file

EXTRA = "curate"
IMAGE_COLUMNS = ("image", "img", "jpg", "image_bytes", "picture")


class _Block:
    """Rows that are read at once: how many, the split of their file, and how to read some columns of them."""

    def __init__(self, path: Path, rows: int, split: str | None, read: Callable[[list[str]], Any]):
        self.path, self.rows, self.split, self.read = path, rows, split, read


class ArrowSet(LabelledSet):
    """The rows of Parquet files or of a saved Hugging Face folder, file after file.

    Args:
        location: a file or a folder.
        source: columns, where they are not called as usual.
        several: whether a text may be several labels with | between them; a list always is.

    Raises:
        DataError: for files that cannot be read, columns that are not there, a sample without a label.
        MissingExtraError: without pyarrow.
    """

    def __init__(self, location: Path, source: Source | None = None, *, several: bool = False):
        source = source or Source(kind="parquet")
        self._arguments = (location, source, several)
        saved = is_saved_folder(location)
        blocks, schema, names = _saved(location) if saved else _parquet(location)
        columns = list(schema.names)
        images = find_column(columns, source.image, IMAGE_COLUMNS, "image", location)
        assert images is not None
        self._image_column, self._blocks = columns[images], blocks
        label = None if source.texts else find_column(columns, source.label, LABEL_COLUMNS, "label", location)
        split = find_column(columns, source.split, SPLIT_COLUMNS, "split", location, optional=True)
        identity = find_column(columns, source.id, (), "id", location, optional=source.id is None)
        texts = find_column(columns, source.texts, (), "text", location) if source.texts else None
        wanted = [at for at, field in enumerate(schema) if at != images and (_is_simple(field.type) or at in (label, texts))]
        values: dict[str, list[Any]] = {columns[at]: [] for at in wanted}
        splits: list[str] = []
        for block in blocks:
            table = block.read([columns[at] for at in wanted])
            for name in values:
                values[name] += table.column(name).to_pylist()
            splits += [block.split or ""] * block.rows
        total = sum(block.rows for block in blocks)
        self._ends = list(itertools.accumulate(block.rows for block in blocks))
        self._held = threading.local()
        ids = [f"{index}" for index in range(total)] if identity is None else list(map(str, values[columns[identity]]))
        keys = [()] * total if label is None else self._labels(values[columns[label]], names.get(columns[label]), ids, several)
        if split is not None:
            splits = list(map(str, values[columns[split]]))
        used = {columns[at] for at in (label, split, texts) if at is not None}
        super().__init__(
            location,
            ids,
            keys,
            splits=splits if any(splits) else None,
            fields={name: list(map(str, column)) for name, column in values.items() if name not in used},
            texts=None if texts is None else [_captions(value) for value in values[columns[texts]]],
        )

    def image(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        if getattr(self._held, "number", None) != number:
            self._held.column = self._blocks[number].read([self._image_column]).column(0)
            self._held.number = number
        value = self._held.column[index - (self._ends[number - 1] if number else 0)].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError("no picture in the row", source=f"{self.location} ({self.ids[index]})", expected="encoded bytes")
        if len(data) > MAX_IMAGE_BYTES:
            raise LimitError(f"image of {len(data)} bytes", source=f"{self.location} ({self.ids[index]})")
        return data

    def content(self) -> list[Any]:
        return [sha256_file(path) for path in dict.fromkeys(block.path for block in self._blocks)]

    def _labels(
        self, values: list[Any], names: list[str] | None, ids: list[str], several: bool
    ) -> Sequence[tuple[str, ...]]:
        found = []
        for value, name in zip(values, ids, strict=True):
            where = f"{self._arguments[0]} ({name})"
            if names is not None:
                numbers = value if isinstance(value, list) else [value]
                if not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers):
                    raise DataError(f"the label is {value!r}", source=where, expected=f"0 to {len(names) - 1}")
                value = [names[number] for number in numbers]
            found.append(label_texts(value, where, several=several))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself."""
        return _reopened, self._arguments


def _reopened(location: Path, source: Source, several: bool) -> ArrowSet:
    return ArrowSet(location, source, several=several)


def is_saved_folder(location: Path) -> bool:
    """Whether the Hugging Face library saved this folder (`save_to_disk`)."""
    return location.is_dir() and any((location / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _parquet(location: Path) -> tuple[list[_Block], Any, dict[str, list[str]]]:
    parquet = require_extra("pyarrow.parquet", EXTRA)
    arrow = require_extra("pyarrow", EXTRA)
    files = sorted(location.rglob("*.parquet")) if location.is_dir() else [location]
    if not files:
        raise DataError("no Parquet file", source=location)
    blocks: list[_Block] = []
    schema = None
    for path in files:
        try:
            opened = parquet.ParquetFile(path, memory_map=True)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"not a Parquet file: {str(error).splitlines()[0]}", source=path) from None
        schema = schema or opened.schema_arrow
        if opened.schema_arrow.names != schema.names:
            raise DataError("has other columns than the files before it", source=path, expected=", ".join(schema.names))
        split = split_word(path.name) or split_word(path.parent.name)
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            blocks.append(_Block(path, rows, split, _group_reader(opened, group)))
    assert schema is not None
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return blocks, schema, _class_names(info.get("info", {}).get("features", {}))


def _group_reader(opened: Any, group: int) -> Callable[[list[str]], Any]:
    return lambda columns: opened.read_row_group(group, columns=columns)


def _saved(location: Path) -> tuple[list[_Block], Any, dict[str, list[str]]]:
    arrow = require_extra("pyarrow", EXTRA)
    splits = [None]
    if (location / "dataset_dict.json").is_file():
        splits = read_json(location / "dataset_dict.json").get("splits", [])
    blocks: list[_Block] = []
    schema, names = None, {}
    for split in splits:
        folder = location / split if split else location
        state = read_json(folder / "state.json")
        if state.get("_indices_data_files"):
            raise DataError("rows are chosen by an index", source=folder, fix="save it again after flatten_indices()")
        names = _class_names(read_json(folder / "dataset_info.json").get("features") or {})
        for entry in state.get("_data_files", []):
            path = folder / Path(entry["filename"]).name
            try:
                table = arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()
            except (arrow.ArrowException, OSError) as error:
                raise DataError(f"not an Arrow file: {str(error).splitlines()[0]}", source=path) from None
            schema = schema or table.schema
            blocks.append(_Block(path, table.num_rows, split, table.select))
    if schema is None:
        raise DataError("no data files", source=location, expected="a folder that the Hugging Face library has saved")
    return blocks, schema, names


def _class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the classes of the columns that hold class numbers."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[column] = list(inner["names"])
    return found


def _is_simple(kind: Any) -> bool:
    """Whether a column's values are texts or numbers, which may be groups."""
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _captions(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
