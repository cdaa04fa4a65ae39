"""Points of a scaling law from files: CSV, TSV, JSON, JSON lines, or what `ostension scaling run` leaves.

A point is a row with any columns. Which of them, or which product of them, is the compute and which the error is asked for;
inner values of JSON have dotted names (`errors.imagenet1k`).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import ConfigError, DataError, UsageError, unknown_name
from ostension.files import read_json

RECORD_NAME = "scaling.json"
# Tried in this order when nothing is said.
COMPUTE_KEYS = ("compute", "gmac_per_pair*samples_seen", "gmac*samples")
NAME_KEYS = ("name", "run", "model", "architecture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Runs of a law.

    Attributes:
        names: of the runs, or their numbers.
        compute: (N,) positive.
        error: (N,) in (0, 1].
        compute_key, error_key: what they were taken from.
        left_out: rows that have no value there.
    """

    names: tuple[str, ...]
    compute: np.ndarray
    error: np.ndarray
    compute_key: str
    error_key: str
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, chosen: np.ndarray) -> Points:
        """The points where `chosen` (N,) is true."""
        names = tuple(name for name, kept in zip(self.names, chosen, strict=True) if kept)
        return dataclasses.replace(self, names=names, compute=self.compute[chosen], error=self.error[chosen])


def read_points(
    paths: Sequence[Path],
    *,
    compute: str | None = None,
    error: str | None = None,
    accuracy: str | None = None,
    where: Sequence[str] = (),
) -> Points:
    """The points of files.

    Args:
        compute: the column of the compute, or several with `*` between.
        error: the column of the error, in (0, 1]; or
        accuracy: that of the accuracy, of which the error is 1 - accuracy. Without both: "error", or what the file of a grid
            names as its target.
        where: conditions `KEY=VALUE` and `KEY!=VALUE`; rows that miss one are not points. Rows without a value in one of the
            columns (nothing, not something else) are left out and counted.

    Raises:
        DataError: for a file that cannot be read, no rows, or values that cannot be logarithms; it names the first row.
        ConfigError: for a column that no row has.
    """
    rows, target = [], None
    for path in paths:
        found, named = _rows(path)
        rows += [(f"{path}, row {number}", row) for number, row in enumerate(found, 1)]
        target = target or named
    if not rows:
        raise DataError("no points", source=", ".join(map(str, paths)), expected="a row for each run")
    columns = dict.fromkeys(key for _, row in rows for key in row)
    for key, wanted, equal in (_condition(text, columns) for text in where):
        rows = [(source, row) for source, row in rows if (_text(row.get(key)) == wanted) == equal]
    if not rows:
        raise DataError(f"no point is left by {' and '.join(where)}", source="--where", expected="rows that meet all of them")
    compute = compute or next((key for key in COMPUTE_KEYS if set(key.split("*")) <= columns.keys()), COMPUTE_KEYS[0])
    error_key = accuracy or error or target or "error"
    names, xs, ys = [], [], []
    for key, flag in (*((key, "compute") for key in compute.split("*")), (error_key, "accuracy" if accuracy else "error")):
        if key not in columns:
            raise unknown_name("column", key, columns, source=", ".join(map(str, paths)), fix=f"name it with --{flag}")
    for number, (source, row) in enumerate(rows, 1):
        values = [row.get(key) for key in (*compute.split("*"), error_key)]
        if None in values:
            continue
        *factors, y = map(_number, values)
        x, y = math.prod(factors), 1 - y if accuracy else y
        if not 0 < x < math.inf:
            raise DataError(f"{compute} is {' * '.join(map(str, values[:-1]))}", source=source, expected="a positive compute")
        if not 0 < y <= 1:
            wanted = "0 or more and less than 1" if accuracy else "more than 0 and at most 1"
            raise DataError(f"{error_key} is {values[-1]!r}", source=source, expected=f"a share, {wanted} (not per cent)")
        names.append(next((str(row[key]) for key in NAME_KEYS if key in row), str(number)))
        xs.append(x)
        ys.append(y)
    return Points(
        names=tuple(names), compute=np.array(xs), error=np.array(ys), compute_key=compute,
        error_key=f"1 - {accuracy}" if accuracy else error_key, left_out=len(rows) - len(names),
    )  # fmt: skip


def parse_compute(text: str) -> float:
    """A number or a product of numbers, such as `190.97*3.4e10`.

    Raises:
        UsageError: if it is none, or not positive.
    """
    try:
        value = math.prod(float(part) for part in text.split("*"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{text!r} is no compute", source="--at", expected="a positive number, or numbers with * between")
    return value


def _rows(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of a file, inner values under dotted names, and the error column that the file names."""
    if path.is_dir():
        path = path / RECORD_NAME
    ending = path.suffix.lower()
    if ending == ".json":
        tree = read_json(path)
        found = tree.get("points") if isinstance(tree, dict) else tree
        target = tree.get("target") if isinstance(tree, dict) else None
    elif ending in (".csv", ".tsv", ".jsonl"):
        found, target = _lines(path, ending), None
    else:
        raise UsageError(f"{path} is no file of points", expected="a .csv, .tsv, .json or .jsonl, or the folder of a grid")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError("is no list of points", source=path, expected='JSON objects in a list, or {"points": [...]}')
    return [_flat(row) for row in found], target if isinstance(target, str) else None


def _lines(path: Path, ending: str) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        what = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise DataError(f"cannot be read: {what}", source=path) from None
    if ending != ".jsonl":
        rows = csv.DictReader(text.splitlines(), delimiter="," if ending == ".csv" else "\t")
        return [{key: value for key, value in row.items() if key is not None and value not in (None, "")} for row in rows]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as problem:
            raise DataError(f"line {number} is not JSON: {problem}", source=path) from None
    return found


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _number(value: Any) -> float:
    """A number, also from a CSV's text; nan for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _condition(text: str, columns: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Key, value, and whether they are to be equal."""
    key, equals, value = text.partition("=")
    negated, key = key.endswith("!"), key.removesuffix("!")
    if not equals or not key:
        raise ConfigError(f"{text!r} is no condition", source="--where", expected="KEY=VALUE or KEY!=VALUE")
    if key not in columns:
        raise unknown_name("column", key, columns, source="--where")
    return key, value, not negated


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)
