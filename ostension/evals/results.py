"""Results on the disk: a folder with one JSON file a (model, task, split, protocol), written whole or not at all.

    RESULTS/MODEL/TASK/PROTOCOL.json              (TASK@SPLIT where a split of its own is measured)
    RESULTS/MODEL/TASK/PROTOCOL.samples.csv       with --samples
    RESULTS/summaries/SUMMARY.json                records made of records (`records.load_records` reads them)

Columns of a CSV of samples: "id" first; "target" and "predicted" as label keys, "probability" of the predicted class,
"correct" (1 or 0), "group", "fold", and what else the protocol's module says.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ostension import runtime
from ostension.config import from_tree, to_tree
from ostension.errors import DataError, OstensionError
from ostension.evals.records import Record, load_records, save_records
from ostension.files import atomic_path, read_json, write_json

FORMAT = "ostension result 1"
SUMMARIES = "summaries"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A record with what it depends on.

    Attributes:
        record: the result.
        identity: see `identity`.
        notes: what a reader has to know, one line each.
        limit: the number of samples of each split that were taken, None for all.
        columns: of the samples, which stand in `samples` if they were kept.
        seconds: what it took to compute it.
        processor_seconds: of all threads of this process; 0 where nobody looked.
        path: its file.
    """

    record: Record
    identity: dict[str, Any]
    notes: tuple[str, ...] = ()
    limit: int | None = None
    columns: tuple[str, ...] = ()
    samples: str | None = None
    seconds: float = 0.0
    processor_seconds: float = 0.0
    path: Path | None = None

    @property
    def target(self) -> str:
        """The task, with its split where that is not "test"."""
        return target_name(self.record.task, self.identity.get("split", self.record.split))

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, task and protocol: what two results have in common that are put side by side."""
        return self.record.model, self.target, self.record.protocol


def target_name(task: str, split: str) -> str:
    """What a task is called in a folder of results: with its split, if that is not "test"."""
    return task if split in ("", "test") else f"{task}@{split}"


class Results:
    """A folder of results.

    Args:
        folder: it is made with the first result.

    Raises:
        DataError: if it is not a folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError("is not a folder", source=self.folder, expected="a folder of results, or a name that is free")

    def path(self, model: str, target: str, protocol: str) -> Path:
        """The file of a result."""
        return self.folder / file_name(model) / file_name(target) / f"{file_name(protocol)}.json"

    def __iter__(self) -> Iterator[Result]:
        """All results, by model, task and protocol.

        Raises:
            DataError: for a file that is damaged.
        """
        for path in sorted(self.folder.glob("*/*/*.json")):
            yield read_result(path)

    def readable(self) -> tuple[list[Result], list[str]]:
        """All results that can be read, and why the others cannot."""
        found: list[Result] = []
        damaged: list[str] = []
        for path in sorted(self.folder.glob("*/*/*.json")):
            try:
                found.append(read_result(path))
            except DataError as error:
                damaged.append(str(error))
        return found, damaged

    def records(self) -> list[Record]:
        """The records of all results, and those that summaries made of them."""
        return [*(result.record for result in self), *self.summaries()]

    def summaries(self) -> list[Record]:
        """The records that summaries made.

        Raises:
            DataError: for a file that is damaged.
        """
        files = sorted((self.folder / SUMMARIES).glob("*.json"))
        return [record for path in files for record in load_records(path).values()]

    def write(self, result: Result, samples: Mapping[str, np.ndarray]) -> Result:
        """Put a result into its place; gives it as it is now on the disk.

        Raises:
            DataError: for no metric or a number that is not finite, or if the disk does not take it.
        """
        check_measured(result.record)
        path = self.path(*result.place)
        try:
            written = None
            if samples:
                written = path.with_suffix(".samples.csv")
                with atomic_path(written) as temporary:
                    temporary.write_text(samples_csv(samples), encoding="utf-8")
            result = dataclasses.replace(result, columns=tuple(samples or result.columns), path=path,
                                         samples=None if written is None else written.name)  # fmt: skip
            tree = {
                "format": FORMAT,
                **{field.name: to_tree(getattr(result, field.name)) for field in dataclasses.fields(Result)},
            }
            del tree["path"]
            path.with_suffix(".error.txt").unlink(missing_ok=True)
            write_json(path, {**tree, "versions": runtime.versions(), "git": runtime.git_state()})
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise DataError(what, source=path, fix="make room or give another folder, then run it again") from None
        return result

    def write_summaries(self, name: str, records: list[Record]) -> None:
        """Put a summary's records into their place; an old file goes where there are none."""
        path = self.folder / SUMMARIES / f"{file_name(name)}.json"
        try:
            if records:
                keys = [f"{record.model}/{target_name(record.task, record.split)}/{record.protocol}" for record in records]
                places = [f"{key}#{keys[:place].count(key)}" if keys.count(key) > 1 else key for place, key in enumerate(keys)]
                save_records(path, dict(zip(places, records, strict=True)))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=path) from None


def open_results(path: str | Path) -> list[Result]:
    """The results in a folder of them, in one model's folder inside it, or in one file.

    Raises:
        DataError: if there are none, or one is damaged.
    """
    path = Path(path)
    if path.is_file():
        return [read_result(path)]
    found = [read_result(file) for pattern in ("*/*/*.json", "*/*.json") for file in sorted(path.glob(pattern))
             if file.parent.name != SUMMARIES and file.parents[1].name != SUMMARIES]  # fmt: skip
    if not found:
        raise DataError("holds no results", source=path, expected="a folder that `ostension eval run` wrote, or a file of it")
    return found


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        DataError: if it is none, or damaged.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise DataError("not a result", source=path, expected=f"a file that `ostension eval run` wrote ({FORMAT})")
    known = {field.name for field in dataclasses.fields(Result)} - {"path"}
    try:
        made = from_tree(Result, {name: value for name, value in tree.items() if name in known}, source=path)
    except OstensionError as error:
        raise DataError(f"a damaged result: {error.what}", source=path) from None
    return dataclasses.replace(made, path=path)


def read_samples(result: Result) -> dict[str, list[str]]:
    """The columns of a result's samples, as texts.

    Raises:
        DataError: if they were not kept, or are damaged.
    """
    if result.samples is None or result.path is None:
        raise DataError("has no outputs of samples", source=result.path, fix="run it with --samples")
    path = result.path.with_name(result.samples)
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", source=path, fix="run it with --samples") from None
    if not rows or tuple(rows[0]) != result.columns or any(len(row) != len(rows[0]) for row in rows):
        raise DataError("not the columns that the result names", source=path, expected=", ".join(result.columns))
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}


def samples_csv(samples: Mapping[str, np.ndarray]) -> str:
    """Columns as CSV: truth values as 1 and 0, numbers so that they are read back as they were."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(samples)
    columns = [[_cell(value) for value in np.asarray(column).tolist()] for column in samples.values()]
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue()


def check_finite(record: Record) -> None:
    """Refuse a record with numbers that are none.

    Raises:
        DataError: naming the first of them.
    """
    for part, tree in (("metrics", to_tree(record.metrics)), ("config", record.config), ("details", record.details)):
        for key, value in _odd_numbers(tree, part):
            raise DataError(f"{key} is {value}", source=f"{record.task} {record.protocol}", expected="finite numbers")


def check_measured(record: Record) -> None:
    """Refuse a record without a metric, or with numbers that are none.

    Raises:
        DataError: naming the first of them.
    """
    if not record.metrics:
        raise DataError("nothing was measured", source=f"{record.task} {record.protocol}", expected="one metric or more")
    check_finite(record)


def file_name(text: str) -> str:
    """A name as the name of a file or a folder."""
    return re.sub(r"[^\w.@+-]+", "_", text).lstrip(".") or "_"


def _cell(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _odd_numbers(tree: Any, key: str) -> Iterator[tuple[str, float]]:
    """The numbers in a tree that are not finite, with their dotted keys."""
    if isinstance(tree, float):
        if not math.isfinite(tree):
            yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            if type(value) not in (int, str, bool):
                yield from _odd_numbers(value, f"{key}.{name}")
    elif isinstance(tree, (list, tuple)):
        for place, value in enumerate(tree):
            if type(value) not in (int, str, bool):
                yield from _odd_numbers(value, f"{key}[{place}]")
