"""A set for other programs: one `.npy` file with all rows, and a Parquet table with what is known of each.

pandas, DuckDB, LanceDB, Qdrant's and pgvector's loaders read these. Letters: N rows, E embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError, require_extra
from ostension.files import atomic_path
from ostension.store.rows import BLOCK_ROWS
from ostension.store.sets import EmbeddingSet

EXTRA = "data"
MATRIX, TABLE = "embeddings.npy", "rows.parquet"
_LISTS = ("labels", "texts")


def export(opened: EmbeddingSet, folder: str | Path, *, vectors: bool = False) -> tuple[Path, Path]:
    """Write `embeddings.npy` (N, E) and `rows.parquet` (N rows, in the same order) and give their paths.

    The table has the set's columns; labels and captions as lists, and each of the source's fields as a column of text. Names of
    files that are not UTF-8 are written with backslashes.

    Args:
        vectors: also put the rows into the table, as a column `vector` of float32 lists of length E.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if the folder cannot be written.
    """
    arrow = require_extra("pyarrow", EXTRA)
    parquet = require_extra("pyarrow.parquet", EXTRA)
    folder = Path(folder)
    try:
        with atomic_path(folder / MATRIX) as temporary, open(temporary, "wb") as handle:
            header = {"descr": opened.rows.dtype.str, "fortran_order": False, "shape": opened.rows.shape}
            np.lib.format.write_array_header_1_0(handle, header)
            for _, block in opened.rows.blocks():
                handle.write(np.ascontiguousarray(block).tobytes())
        fields = _field_names(opened)
        schema = _schema(arrow, opened, fields, vectors)
        with atomic_path(folder / TABLE) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            for start, block in opened.rows.blocks():
                columns = _columns(opened, fields, start, start + len(block))
                if vectors:
                    flat = arrow.array(np.asarray(block, np.float32).ravel())
                    columns["vector"] = arrow.FixedSizeListArray.from_arrays(flat, opened.width)
                writer.write_table(arrow.table(columns, schema=schema))
    except OSError as error:
        raise DataError(f"cannot be written: {error}", source=folder, fix="make room, or name another folder") from None
    return folder / MATRIX, folder / TABLE


def _field_names(opened: EmbeddingSet) -> list[str]:
    names: set[str] = set()
    if "fields" in opened.columns:
        for start in range(0, len(opened), BLOCK_ROWS):
            for text in opened.column("fields", range(start, min(start + BLOCK_ROWS, len(opened)))):
                names |= json.loads(text).keys()
    return sorted(names - set(opened.columns) - {"vector"})


def _schema(arrow: Any, opened: EmbeddingSet, fields: list[str], vectors: bool) -> Any:
    entries = []
    for name, kind in opened.manifest.columns.items():
        if name == "fields":
            continue
        if name in _LISTS:
            entries.append((name, arrow.list_(arrow.string())))
        elif kind == "text":
            entries.append((name, arrow.string()))
        else:
            unsigned = opened.column(name, [0]).dtype == np.uint64 if len(opened) else False  # type: ignore[union-attr]
            entries.append((name, arrow.uint64() if unsigned else arrow.int64()))
    entries += [(name, arrow.string()) for name in fields]
    if vectors:
        entries.append(("vector", arrow.list_(arrow.float32(), opened.width)))
    return arrow.schema(entries)


def _columns(opened: EmbeddingSet, fields: list[str], start: int, stop: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in opened.columns:
        values = opened.column(name, range(start, stop))
        if name == "fields":
            known = [json.loads(text) for text in values]
            for field in fields:
                found[field] = [None if row.get(field) is None else _text(row[field]) for row in known]
        elif name in _LISTS:
            found[name] = [[writable(text) for text in json.loads(texts)] for texts in values]
        else:
            found[name] = [writable(text) for text in values] if isinstance(values, list) else values
    return found


def _text(value: Any) -> str:
    return writable(value) if isinstance(value, str) else writable(json.dumps(value, ensure_ascii=False))


def writable(text: Any) -> str:
    """A text as UTF-8 has it; the bytes of a file's name that are not of it become "\\udcff" and the like."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
