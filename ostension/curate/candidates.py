"""What a curation begins with: the pairs or the captions of a source, read once into parts of consecutive rows.

A source is what `data.open.open_pairs` opens, or captions without pictures: lines of text, JSON lines, tables and Parquet with
a column of captions and perhaps one of addresses, plain or packed (.gz, .bz2, .zst). What cannot be used keeps its row, dropped
with a reason, so that rows are the source's own.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.curate.work import EXTRA, FORMAT, PART_SIZE, Facts
from ostension.data.layout import USUAL, Layout, captions_of
from ostension.data.open import EMBEDDED, open_pairs
from ostension.data.pairs import MAX_TEXT_BYTES, PairSource
from ostension.data.remote import is_url
from ostension.data.tables import IMAGE_COLUMNS, TEXT_COLUMNS, find_column
from ostension.errors import ConfigError, DataError, LimitError, require_extra
from ostension.files import sha256_json

PACKED = (".gz", ".bz2", ".zst")
LINES, OBJECTS, TABLES = (".txt",), (".jsonl", ".ndjson"), (".csv", ".tsv")
URL_COLUMNS = ("url", "URL", "image_url", "img_url", "photo_url")
Row = tuple[str, tuple[str, ...], str | None, dict[str, Any], str | None]  # key, texts, url, meta, dropped


def describe(
    source: Sequence[str], *, layout: Layout = USUAL, part_size: int = PART_SIZE, captions_only: bool = False
) -> Facts:  # fmt: skip
    """The facts of a work folder of this source.

    Args:
        captions_only: take the captions alone of tables and Parquet whose columns look as if they named pictures.

    Raises:
        DataError: if a file is missing.
        ConfigError: for pairs and captions in one source, or a part size below 1.
    """
    if part_size < 1:
        raise ConfigError(f"a part size of {part_size}", expected="1 or more")
    kinds = {name: holds_captions(name, layout, captions_only) for name in source}
    if captions_only and not all(kinds.values()):
        other = next(name for name, alone in kinds.items() if not alone)
        raise ConfigError("holds no captions alone", source=other, expected="lines, JSON lines, a table or Parquet")
    if len(set(kinds.values())) > 1:
        captions = next(name for name, alone in kinds.items() if alone)
        raise ConfigError("captions without pictures, beside a source with pictures", source=captions, fix="curate them apart")
    if all(kinds.values()):
        files = [Path(name).stat() for name in source]
        marks = [[Path(name).name, status.st_size, status.st_mtime_ns] for name, status in zip(source, files, strict=True)]
        fingerprint = sha256_json(["captions", marks, to_tree(layout)])
    else:
        fingerprint = open_pairs(source, layout=layout).fingerprint()
    pictures = not all(kinds.values())
    places = tuple(map(_anywhere, source))
    return Facts(
        format=FORMAT, source=places, pictures=pictures, layout=layout, part_size=part_size, fingerprint=fingerprint
    )  # fmt: skip


def _anywhere(name: str) -> str:
    """The same source as it is called from any folder; several with `::` between them, URLs and embedded sets stay."""
    here = os.path.exists(name) or not (is_url(name) or "::" in name or name.partition(":")[0] == EMBEDDED)
    return os.path.abspath(name) if here else name


def holds_captions(name: str, layout: Layout, captions_only: bool = False) -> bool:
    """Whether this is a file of captions without pictures, or one of captions that are asked for alone."""
    path = Path(name)
    kind = kind_of(path)
    if not path.is_file() or kind not in (*LINES, *OBJECTS, *TABLES, ".parquet"):
        return False
    if kind in LINES or kind in OBJECTS or captions_only:
        return True
    if layout.image is not None:
        return False
    return not any(column in IMAGE_COLUMNS for column in _columns(path))


def kind_of(path: Path) -> str:
    """What a file is by its name, whether packed or not."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def read_captions(source: Sequence[str], layout: Layout) -> Iterator[Row]:
    """The rows of files of captions, in order; `key` is FILE:LINE or FILE:ROW, from 1 and from 0.

    Raises:
        DataError: for a file that cannot be read.
    """
    for name in source:
        path = Path(name)
        kind = kind_of(path)
        reader = _lines if kind in LINES else _objects if kind in OBJECTS else _table if kind in TABLES else _parquet
        try:
            yield from reader(path, layout)
        except (OSError, EOFError) as error:
            raise DataError(f"cannot be read: {str(error).split(chr(10), 1)[0]}", source=path) from None


def pair_row(source: PairSource, index: int) -> Row:
    """A pair's row; one that cannot be read is dropped. A network that fails is no reason to drop one."""
    try:
        pair = source.read(index)
    except (DataError, LimitError):
        return source.key(index), (), None, {}, "unreadable"
    url = next((pair.meta[name] for name in URL_COLUMNS if isinstance(pair.meta.get(name), str)), None)
    return pair.key, pair.texts, url, pair.meta, None


def as_columns(rows: Sequence[Row], places: Sequence[int] | None) -> dict[str, Any]:
    """Rows as columns of a part file; `places` are theirs in the source, if it has pictures."""
    keys, texts, urls, metas, dropped = zip(*rows, strict=True)
    return {
        "dropped": list(dropped), "key": [clean(key) for key in keys], "texts": [list(found) for found in texts],
        "url": list(urls), "meta": [json.dumps(meta, ensure_ascii=True, default=str) if meta else None for meta in metas],
        "place": np.full(len(rows), -1) if places is None else np.asarray(places),
    }  # fmt: skip


def clean(text: str) -> str:
    """A text without lone surrogates, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows, the last one shorter."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _opened(path: Path) -> Any:
    """The bytes of a file, unpacked as its name says."""
    return require_extra("pyarrow", EXTRA).input_stream(str(path), compression="detect", buffer_size=1 << 20)


def _decoded(path: Path) -> Iterator[str]:
    # What is not UTF-8 comes as lone surrogates, which `_row` finds.
    text = io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    yield from text


def _row(key: str, values: Sequence[Any], url: Any, meta: dict[str, Any], layout: Layout) -> Row:
    try:
        texts, _ = captions_of(values, layout, key)
    except DataError:
        return key, (), None, {}, "no text"
    if sum(map(len, texts)) > MAX_TEXT_BYTES:
        return key, (), None, {}, "text too long"
    try:
        "".join(texts).encode("utf-8")
        found = url.strip() or None if isinstance(url, str) else None
        (found or "").encode("utf-8")
    except UnicodeEncodeError:
        return key, (), None, {}, "not UTF-8"
    return key, texts, found, meta, None


def _lines(path: Path, layout: Layout) -> Iterator[Row]:
    if layout.texts:
        raise ConfigError(f"layout.texts is {layout.texts}", source=path, expected="nothing: lines have no columns")
    for number, line in enumerate(_decoded(path), 1):
        yield _row(f"{path.name}:{number}", [line.strip()], None, {}, layout)


def _objects(path: Path, layout: Layout) -> Iterator[Row]:
    for number, line in enumerate(_decoded(path), 1):
        key = f"{path.name}:{number}"
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict):
            yield key, (), None, {}, "not JSON"
            continue
        wanted = layout.texts or tuple(name for name in TEXT_COLUMNS if name in tree)[:1]
        yield _from_mapping(key, tree, wanted, layout)


def _table(path: Path, layout: Layout) -> Iterator[Row]:
    columns = _columns(path)
    wanted = _wanted(columns, layout, path)
    rows = _reader(path)
    next(rows)
    for row in rows:
        key = f"{path.name}:{rows.line_num}"
        if len(row) != len(columns):
            yield key, (), None, {}, "another number of fields"
            continue
        yield _from_mapping(key, dict(zip(columns, row, strict=True)), wanted, layout)


def _parquet(path: Path, layout: Layout) -> Iterator[Row]:
    parquet, arrow = require_extra("pyarrow.parquet", EXTRA), require_extra("pyarrow", EXTRA)
    wanted = _wanted(_columns(path), layout, path)
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=PART_SIZE, use_threads=False):
            for tree in batch.to_pylist():
                yield _from_mapping(f"{path.name}:{number}", tree, wanted, layout)
                number += 1
    except arrow.ArrowException as error:
        raise DataError(f"damaged: {str(error).split(chr(10), 1)[0]}", source=path) from None


def _from_mapping(key: str, tree: Mapping[str, Any], wanted: Sequence[str], layout: Layout) -> Row:
    address = next((name for name in URL_COLUMNS if tree.get(name)), None)
    used = {*wanted, address}
    meta = {name: value for name, value in tree.items() if name not in used and value is not None}
    return _row(key, [tree.get(name) for name in wanted], tree.get(address) if address else None, meta, layout)


def _columns(path: Path) -> list[str]:
    """The columns of a table or a Parquet file."""
    if kind_of(path) == ".parquet":
        parquet, arrow = require_extra("pyarrow.parquet", EXTRA), require_extra("pyarrow", EXTRA)
        try:
            return list(parquet.read_schema(path).names)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"no Parquet file: {str(error).split(chr(10), 1)[0]}", source=path) from None
    header = next(_reader(path), None)
    if header is None:
        raise DataError("an empty table", source=path, expected="a header line and one row for each caption")
    return header


def _wanted(columns: Sequence[str], layout: Layout, path: Path) -> list[str]:
    """The columns with captions."""
    return [columns[find_column(list(columns), name, TEXT_COLUMNS, "text", path)] for name in layout.texts or (None,)]


def _reader(path: Path) -> Any:
    lines = _decoded(path)
    if kind_of(path) == ".tsv":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(_checked(lines, path))


def _checked(lines: Iterator[str], path: Path) -> Iterator[str]:
    for line in lines:
        if len(line) > MAX_TEXT_BYTES:
            raise LimitError(f"a line of {len(line)} letters", source=path, expected=f"at most {MAX_TEXT_BYTES}")
        yield line
