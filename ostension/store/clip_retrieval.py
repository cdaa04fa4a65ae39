"""The files of clip-retrieval and of `store.parquet`, into a collection and out of one.

clip-retrieval writes `img_emb/img_emb_0.npy` (n, E) and `metadata/metadata_0.parquet` with a row for each, in the same order,
then 1, 2 and so on; numbers may be padded with zeros. Embeddings of the captions are in `text_emb/text_emb_0.npy` in the same
way. Ours are one `embeddings.npy` and one `rows.parquet`. Neither says which model made the rows. So whoever imports names it,
and captions, or pictures that still lie at their paths, are embedded again and compared, some of them.

Letters: N rows, n rows of a file, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ostension.errors import DataError, require_extra
from ostension.files import atomic_path
from ostension.store.collection import DEFAULT, Source, collection_key, collection_names, drop, grown
from ostension.store.fill import plain
from ostension.store.folder import Store
from ostension.store.growing import KNOWN
from ostension.store.key import Kind, ModelKey, SetKey, Stored
from ostension.store.parquet import MATRIX, TABLE, writable
from ostension.store.rows import BLOCK_ROWS
from ostension.store.sets import EmbeddingSet
from ostension.store.writer import SHARD_ROWS

EXTRA = "data"
METADATA = "metadata"
FOLDERS: dict[Kind, str] = {"images": "img_emb", "texts": "text_emb"}
PART_ROWS = 1_000_000  # clip-retrieval's write_batch_size
IDS = ("id", "image_path", "key", "url")  # the first column that is there and names every row once
CAPTIONS = ("texts", "caption", "text")
CHECKED = 8  # pictures that are embedded again
SAME = 0.98  # the least cosine of a picture to itself; bfloat16 and another resize are at 0.99, another model is below 0.9
UNSIGNED = ("digest", "perceptual")
_OURS = ("labels", "texts", "digest", "perceptual", "width", "height", "bytes", "described", "source", "sample")


class Imported(NamedTuple):
    """What was imported: rows, how many pictures were embedded again, and the least of their cosines to their rows."""

    rows: int
    checked: int
    least_cosine: float | None


def export_layout(opened: EmbeddingSet, folder: str | Path) -> list[Path]:
    """Write a set as clip-retrieval's indexer and service read it, and give the files.

    The metadata have `image_path` (the id; of texts `key`), `caption` (the first one) and each of the source's fields.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if the folder cannot be written.
    """
    arrow, parquet = require_extra("pyarrow", EXTRA), require_extra("pyarrow.parquet", EXTRA)
    folder, written = Path(folder), []
    parts = range(0, max(1, len(opened)), PART_ROWS)
    digits = len(str(len(parts)))
    try:
        for number, start in enumerate(parts):
            stop = min(start + PART_ROWS, len(opened))
            own = FOLDERS[opened.key.kind]
            matrix = folder / own / f"{own}_{number:0{digits}d}.npy"
            table = folder / METADATA / f"{METADATA}_{number:0{digits}d}.parquet"
            for path in (matrix, table):
                path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(matrix) as temporary, open(temporary, "wb") as handle:
                header = {"descr": "<f2", "fortran_order": False, "shape": (stop - start, opened.width)}
                np.lib.format.write_array_header_1_0(handle, header)
                for low in range(start, stop, BLOCK_ROWS):
                    handle.write(np.ascontiguousarray(opened.rows[low : min(low + BLOCK_ROWS, stop)], "<f2").tobytes())
            rows = _metadata(opened, range(start, stop))
            with atomic_path(table) as temporary:
                parquet.write_table(arrow.table(rows), temporary)
            written += [matrix, table]
    except OSError as error:
        raise DataError(f"cannot be written: {error}", source=folder, fix="make room, or name another folder") from None
    return written


def _metadata(opened: EmbeddingSet, rows: range) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "image_path" if opened.key.kind == "images" else "key": [writable(name) for name in opened.column("id", rows)]
    }
    if "texts" in opened.columns:
        columns["caption"] = [writable(next(iter(json.loads(text)), "")) for text in opened.column("texts", rows)]
    for name in ("width", "height"):
        if name in opened.columns:
            columns[name] = opened.column(name, rows)
    if "fields" in opened.columns:
        fields = [json.loads(text) for text in opened.column("fields", rows)]
        for name in sorted({name for row in fields for name in row} - set(columns)):
            values = [row.get(name) for row in fields]
            columns[writable(name)] = values if _plain(values) else [None if one is None else json.dumps(one) for one in values]
    return columns


def _plain(values: list[Any]) -> bool:
    """Whether Parquet has a type for these values: all of one kind, and no number past 64 bits."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return all(-(2**63) <= value < 2**63 for value in values if value is not None)
    return not kinds or (len(kinds) == 1 and kinds <= {str, bool, float})


def import_layout(
    store: Store,
    folder: str | Path,
    made: ModelKey,
    *,
    name: str = DEFAULT,
    stored: Stored = "float16",
    kind: Kind = "images",
    embed: Callable[[list[Any]], np.ndarray] | None = None,
    model_at: str = "",
) -> Imported:
    """Make a collection of the embeddings in a folder.

    Args:
        made: the key of the model that made them.
        name: of the collection, which must be new.
        kind: what the rows are of; captions are in the metadata, in the first of the columns texts, caption and text.
        embed: gives unit rows (n, E) of picture files, or of captions; used on some of those that are there.
        model_at: where the model lies.

    Raises:
        DataError: if the folder has neither layout, its parts do not fit together, rows are not finite, a picture's row is
            not the model's, or there is a collection of that name; then nothing is left.
        MissingExtraError: if pyarrow is not installed.
    """
    folder = Path(folder)
    if name in collection_names(store):
        raise DataError(f"there is a collection {name!r} already", source=store.path, fix="name another, or delete it")
    parts = _parts(folder, kind)
    counts = [_rows_of(matrix, table) for matrix, table in parts]
    column, ids = _ids([table for _, table in parts], sum(counts))
    found = _pictures(ids, folder) if kind == "images" else _captions([table for _, table in parts], counts)
    checked, least = _compare(parts, counts, found, folder, embed)
    key = collection_key(made, name, stored, kind=kind)
    try:
        _append_all(store, key, parts, counts, column, ids, Source(name=str(folder.resolve())), model_at)
    except DataError:
        if name in collection_names(store):
            drop(store, name)
        raise
    return Imported(sum(counts), checked, least)


def _append_all(
    store: Store,
    key: SetKey,
    parts: list[tuple[Path, Path]],
    counts: list[int],
    column: str | None,
    ids: list[str],
    source: Source,
    model_at: str,
) -> None:
    with grown(store, key, source, model_at) as (writer, number):
        writer.shard_rows = SHARD_ROWS
        start = 0
        for (matrix, table), count in zip(parts, counts, strict=True):
            rows = np.load(matrix, mmap_mode="r", allow_pickle=False)
            for low, facts in _blocks(table, column):
                part = slice(start + low, start + low + len(facts))
                block = np.asarray(rows[low : low + len(facts)])
                writer.append(block, **_columns(ids[part], facts, number, part.start, key.kind))
            start += count
        writer.commit(complete=True)


def _parts(folder: Path, kind: Kind) -> list[tuple[Path, Path]]:
    own = FOLDERS[kind]
    if (folder / MATRIX).is_file() and (folder / TABLE).is_file():
        return [(folder / MATRIX, folder / TABLE)]
    matrices = {_number(path): path for path in folder.glob(f"{own}/{own}_*.npy")}
    tables = {_number(path): path for path in folder.glob(f"{METADATA}/{METADATA}_*.parquet")}
    if not matrices or -1 in matrices:
        expected = f"{own}/{own}_0.npy and {METADATA}/{METADATA}_0.parquet, or {MATRIX} and {TABLE}"
        raise DataError(
            f"no embeddings of {'pictures' if kind == 'images' else 'captions'} here", source=folder, expected=expected
        )
    if set(matrices) != set(tables):
        alone = sorted(set(matrices) ^ set(tables))[0]
        raise DataError(f"part {alone} has no matrix or no metadata", source=folder, expected="both of every part")
    return [(matrices[number], tables[number]) for number in sorted(matrices)]


def _number(path: Path) -> int:
    text = path.stem.rpartition("_")[2]
    return int(text) if text.isdecimal() else -1


def _rows_of(matrix: Path, table: Path) -> int:
    parquet = require_extra("pyarrow.parquet", EXTRA)
    try:
        rows = np.load(matrix, mmap_mode="r", allow_pickle=False)
        count = parquet.ParquetFile(table).metadata.num_rows
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read ({error})", source=matrix) from None
    if rows.ndim != 2 or len(rows) != count:
        raise DataError(
            f"rows of shape {rows.shape}", source=matrix, expected=f"({count}, E), as {table.name} has {count} rows"
        )
    return count


def _ids(tables: list[Path], total: int) -> tuple[str | None, list[str]]:
    """The column that names every row once, and the names; numbers where there is none."""
    parquet = require_extra("pyarrow.parquet", EXTRA)
    for column in IDS:
        if all(column in parquet.read_schema(table).names for table in tables):
            names = [
                str(value) for table in tables for value in parquet.read_table(table, columns=[column])[column].to_pylist()
            ]
            if len(set(names)) == total:
                return column, names
    return None, [f"{number:09d}" for number in range(total)]


def _blocks(table: Path, column: str | None) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    parquet = require_extra("pyarrow.parquet", EXTRA)
    start = 0
    for batch in parquet.ParquetFile(table).iter_batches(BLOCK_ROWS):
        rows = batch.to_pylist()
        for row in rows:
            row.pop(column, None)
            row.pop("vector", None)
        yield start, rows
        start += len(rows)


def _columns(ids: list[str], facts: list[dict[str, Any]], number: int, first: int, kind: Kind) -> dict[str, Any]:
    texts, labels, fields = [], [], []
    numbers: dict[str, list[int]] = {name: [] for name in KNOWN[kind]}
    for row in facts:
        spoken = next((row.pop(name) for name in CAPTIONS if row.get(name)), None)
        texts.append(json.dumps(_texts(spoken), ensure_ascii=False))
        labels.append(json.dumps(_texts(row.get("labels")), ensure_ascii=False))
        for name, values in numbers.items():
            value = row.get(name)
            values.append(value if isinstance(value, int) and 0 <= value < (2**64 if name in UNSIGNED else 2**63) else 0)
        rest = {name: value for name, value in row.items() if name not in _OURS and value is not None}
        fields.append(json.dumps(plain(rest), ensure_ascii=False, sort_keys=True, default=str))
    return {
        "id": ids, "labels": labels, "texts": texts, "fields": fields,
        **{name: np.array(values, np.uint64 if name in UNSIGNED else np.int64) for name, values in numbers.items()},
        "described": np.zeros(len(ids), np.uint64), "source": np.full(len(ids), number, np.int64),
        "sample": np.arange(first, first + len(ids)),
    }  # fmt: skip


def _texts(value: Any) -> list[str]:
    """A text, a list of them, or whatever else a column has, as a list of texts."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in values if one is not None]


def _some(total: int, count: int) -> list[int]:
    """Rows to look at, over all of them."""
    return np.unique(np.linspace(0, total - 1, count).astype(np.int64)).tolist() if total else []


def _pictures(ids: list[str], folder: Path) -> list[tuple[int, Any]]:
    """Pictures that lie at their paths, with their rows."""
    found: list[tuple[int, Any]] = []
    for row in _some(len(ids), 16 * CHECKED):
        path = next((path for path in (folder / ids[row], Path(ids[row])) if path.is_file()), None)
        if path is not None and len(found) < CHECKED:
            found.append((row, path))
    return found


def _captions(tables: list[Path], counts: list[int]) -> list[tuple[int, Any]]:
    """Captions with their rows.

    Raises:
        DataError: if a table has none.
    """
    wanted, start = set(_some(sum(counts), CHECKED)), 0
    found: list[tuple[int, Any]] = []
    for table, count in zip(tables, counts, strict=True):
        if any(start <= row < start + count for row in wanted):
            for low, rows in _blocks(table, None):
                spoken = ((start + low + place, next((row[name] for name in CAPTIONS if row.get(name)), None))
                          for place, row in enumerate(rows) if start + low + place in wanted)  # fmt: skip
                found += [(row, _texts(said)[0]) for row, said in spoken if _texts(said)]
        start += count
    if wanted and not found:
        raise DataError("no captions", source=tables[0], expected=f"a column {', '.join(CAPTIONS)}")
    return found


def _compare(
    parts: list[tuple[Path, Path]],
    counts: list[int],
    found: list[tuple[int, Any]],
    folder: Path,
    embed: Callable[[list[Any]], np.ndarray] | None,
) -> tuple[int, float | None]:
    """Embed some pictures or captions, by their rows, again, and compare; gives how many, and the least cosine.

    Raises:
        DataError: if a row is another model's.
    """
    if embed is None or not found:
        return 0, None
    ends = np.cumsum(counts)
    wanted = []
    for row, _ in found:
        part = int(np.searchsorted(ends, row, side="right"))
        at = row - (int(ends[part - 1]) if part else 0)
        wanted.append(np.load(parts[part][0], mmap_mode="r", allow_pickle=False)[at].astype(np.float64))
    mine = embed([what for _, what in found]).astype(np.float64)
    if mine.shape[1] != len(wanted[0]):
        raise DataError(f"embeddings of width {len(wanted[0])}", source=folder, expected=f"{mine.shape[1]}, as the model's")
    cosines = [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(mine, wanted, strict=True)]
    worst = int(np.argmin(cosines))
    if not cosines[worst] >= SAME:
        what = f"the row of {str(found[worst][1])[-60:]!r} has the cosine {cosines[worst]:.3f} to what this model makes of it"
        raise DataError(what, source=folder, expected=f"at least {SAME}", fix="name the model that made them")
    return len(found), cosines[worst]
