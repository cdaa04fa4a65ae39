"""Titles by popularity: lists with counts, and Wikimedia's page views summed over any number of files.

Page views are lines `project title views bytes`, one file an hour (`pageviews-20220829-000000.gz`), or, for whole days, lines
`wiki title page_id access views hours`. The published rules: the project is one of those asked for ("en" is the desktop site
alone, "en.m" the mobile one); an hour's count below 50 is dropped; titles with a colon are dropped, for they are mostly
pages of other kinds ("Special:Search"); underscores are spaces. A redirect's views count under its own title.

Source: MetaCLIP's released `build_metadata.py`: 26 days of 2018 to 2022, summed views of at least 70.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.curate.queries.corpora import form_of
from ostension.curate.queries.counting import Progress, claim
from ostension.curate.queries.packed import unpacked
from ostension.curate.queries.runs import WORDS, Batch, merge_files, read_run, sum_words, write_run
from ostension.curate.queries.segment import Case
from ostension.data.workers import in_line, in_processes
from ostension.errors import DataError, require_extra
from ostension.files import folder_lock, read_json, sha256_file, write_json

TITLE_COLUMNS = ("title", "query", "page_title", "article", "name", "text")
VIEW_COLUMNS = ("views", "count", "count_views", "pageviews", "popularity")
HOURLY, DAILY = 4, 6  # fields of a line
_NAME = "titles.json"


@dataclasses.dataclass(frozen=True)
class Titles:
    """Counted titles: a run sorted by title, and what was left out."""

    path: Path
    files: list[dict[str, Any]]
    rejects: dict[str, int]

    def batches(self) -> Iterator[Batch]:
        return read_run(self.path)


def count_titles(
    names: Sequence[str], folder: Path, *, projects: tuple[str, ...], hourly_floor: int, case: Case = "kept",
    workers: int = 0, scratch: bool = False, progress: Progress = lambda *_: None,
) -> Titles:  # fmt: skip
    """The views of all titles, in `folder`, where work that was stopped goes on.

    Raises:
        DataError: for files that cannot be read or are of no known form, or a folder with other counts.
    """
    files = [found for name in names for found in _expanded(name)]
    facts = [{"name": path.name, "sha256": sha256_file(path)} for path in files]
    settings = {"format": 1, "projects": list(projects), "hourly_floor": hourly_floor, "case": case, "files": facts}
    with folder_lock(folder):
        claim(folder, _NAME, settings, scratch)
        work = ReadTitles(folder, projects, hourly_floor, case)
        tasks = [(number, str(path)) for number, path in enumerate(files) if not (folder / f"{number:06d}.json").is_file()]
        for num_titles in in_processes(work, tasks, workers, timeout_s=3600.0) if workers > 1 else in_line(work, tasks):
            progress("titles", num_titles)
        total = folder / "titles.parquet"
        if not total.is_file():
            write_run(total, merge_files([folder / f"{number:06d}.parquet" for number in range(len(files))], WORDS, folder))
        rejects: collections.Counter[str] = collections.Counter()
        for number in range(len(files)):
            rejects.update(read_json(folder / f"{number:06d}.json"))
    return Titles(total, facts, dict(rejects))


def _expanded(name: str) -> list[Path]:
    from ostension.data.open import expand

    found = [path for path in expand(name) if isinstance(path, Path)]
    return [one for path in found for one in (sorted(path.iterdir()) if path.is_dir() else [path]) if one.is_file()]


@dataclasses.dataclass(frozen=True)
class ReadTitles:
    """Reads one file of titles into a run; what a worker does."""

    folder: Path
    projects: tuple[str, ...]
    hourly_floor: int
    case: Case

    def __call__(self, task: Any, note: Callable[[str], None]) -> int:
        number, name = task
        note(name)
        path = Path(name)
        rejects: collections.Counter[str] = collections.Counter()
        batch = self._summed(path, rejects)
        write_run(self.folder / f"{number:06d}.parquet", [batch] if len(batch[1]) else [])
        write_json(self.folder / f"{number:06d}.json", dict(rejects))
        return len(batch[1])

    def _summed(self, path: Path, rejects: collections.Counter[str]) -> Batch:
        import pyarrow as pa

        titles: list[bytes] = []
        views: list[int] = []
        for title, count in self._rows(path, rejects):
            if ":" in title:
                rejects["titles with a colon"] += 1
                continue
            text = title.replace("_", " ")
            text = " ".join(unicodedata.normalize("NFC", text.casefold() if self.case == "folded" else text).split())
            if text:
                titles.append(text.encode("utf-8", "replace"))
                views.append(count)
        return sum_words([(pa.array(titles, pa.binary()), np.array(views, np.int64))])

    def _rows(self, path: Path, rejects: collections.Counter[str]) -> Iterator[tuple[str, int]]:
        form = form_of(path)
        if form == "parquet":
            yield from _of_parquet(path)
        elif form == "table":
            yield from _of_table(path)
        else:
            yield from self._of_views(path, rejects)

    def _of_views(self, path: Path, rejects: collections.Counter[str]) -> Iterator[tuple[str, int]]:
        wanted = tuple(f"{project} ".encode() for project in self.projects)
        lines = others = 0
        with unpacked(path) as stream:
            for line in stream:
                lines += 1
                fields = line.split()
                if len(fields) not in (HOURLY, DAILY) or not fields[2 if len(fields) == HOURLY else 4].isdigit():
                    others += 1
                    if others > 100 and others * 2 > lines:
                        break
                    continue
                if not line.startswith(wanted):
                    continue
                views = int(fields[2 if len(fields) == HOURLY else 4])
                if len(fields) == HOURLY and views < self.hourly_floor:
                    rejects["hours below the floor"] += 1
                    continue
                yield fields[1].decode("utf-8", "replace"), views
        if others * 2 > lines or not lines:
            expected = "page views (project title views bytes), or a table or Parquet with titles and views"
            raise DataError(f"{others:,} of {lines:,} lines are no page views", source=path, expected=expected)
        rejects["lines of another form"] += others


def _of_table(path: Path) -> Iterator[tuple[str, int]]:
    tabs = ".tsv" in path.suffixes
    with unpacked(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
        header = next(rows, [])
        title, views = _columns(header, path)
        for row in rows:
            yield row[header.index(title)] if len(row) == len(header) else "", _views(row, header, views, path, rows.line_num)


def _views(row: list[str], header: list[str], views: str, path: Path, line: int) -> int:
    try:
        return int(row[header.index(views)])
    except (ValueError, IndexError):
        what = f"the views in line {line} are {','.join(row)[:60]!r}"
        raise DataError(what, source=path, expected="a title and a whole number") from None


def _of_parquet(path: Path) -> Iterator[tuple[str, int]]:
    parquet, arrow = require_extra("pyarrow.parquet", "curate"), require_extra("pyarrow", "curate")
    try:
        with parquet.ParquetFile(path) as file:
            title, views = _columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(columns=[title, views], use_threads=False):
                for text, count in zip(batch[title].to_pylist(), batch[views].to_pylist(), strict=True):
                    yield text or "", int(count or 0)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"no Parquet file: {str(error).split(chr(10), 1)[0]}", source=path) from None


def _columns(names: Sequence[str], path: Path) -> tuple[str, str]:
    title = next((name for name in TITLE_COLUMNS if name in names), None)
    views = next((name for name in VIEW_COLUMNS if name in names), None)
    if title is None or views is None:
        expected = f"a column of titles ({', '.join(TITLE_COLUMNS)}) and one of views ({', '.join(VIEW_COLUMNS)})"
        raise DataError(f"columns {', '.join(map(repr, names)) or 'none'}", source=path, expected=expected)
    return title, views
