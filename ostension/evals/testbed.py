"""The published test bed: accuracies of 338 ImageNet models on the seven natural shifts, or a table of one's own.

A row is a model, a column a set, a value a percentage; blank where nothing was measured. The table that ships is the part of
modestyachts/imagenet-testbed's `robustness_top1s.csv` that effective robustness needs (`scripts/build_testbed.py`).

Source: Taori et al. 2020, Measuring Robustness to Natural Distribution Shifts in Image Classification.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ostension.errors import DataError, LimitError, unknown_name
from ostension.shapes import Bool, Float

PUBLISHED = Path(__file__).with_name("data") / "testbed.csv"
MAX_TABLE_BYTES = 50_000_000  # fifty times the whole published table
STANDARD = "standard"
# Models whose names hold one of these were made for other studies (trained on subsets, or in another set-up).
NOT_FOR_LINES = ("subsample", "aws", "batch64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """One shift of the test bed, and the rule by which its line is fitted.

    Attributes:
        task: the shipped task, or "" for what is no single one.
        y: columns whose mean is the accuracy on the shift.
        x: columns whose mean is the accuracy in distribution, on the shift's classes.
        minimum: standard models below this x (a share) are left out of the line.
        pivot: x at which two lines meet, if the rule has two.
        without: models left out of the line.
        num_y, num_x: pictures behind y and x, for intervals; 0 for a mean of sets.
    """

    name: str
    task: str
    y: tuple[str, ...]
    x: tuple[str, ...]
    minimum: float = 0.0
    pivot: float | None = None
    without: tuple[str, ...] = ()
    num_y: int = 0
    num_x: int = 0


_VID, _YTBB = ("imagenet-vid-robust_pm0", "imagenet-vid-robust_pm10"), ("ytbb-robust_pm0", "ytbb-robust_pm10")
_ON_VID, _ON_YTBB = ("val-on-vid-robust-classes",), ("val-on-ytbb-robust-classes",)
SEVEN = "mean of seven"
# Thresholds are those of the scripts that drew the published figures, but for the two of videos: 92 and 95 there would leave
# out most models, and the line through all is what Figure 13 of the CLIP paper has.
SHIFTS = (
    Shift(name="imagenet_v2", task="imagenet_v2", y=("imagenetv2-matched-frequency",), x=("val",), minimum=0.55,
          num_y=10_000, num_x=50_000),
    # The same pictures encoded again as ImageNet's validation set is, which is the copy that most people have.
    Shift(name="imagenet_v2_format_val", task="", y=("imagenetv2-matched-frequency-format-val",), x=("val",), minimum=0.55,
          num_y=10_000, num_x=50_000),
    Shift(name="imagenet_sketch", task="imagenet_sketch", y=("imagenet-sketch",), x=("val",), minimum=0.55,
          num_y=50_889, num_x=50_000),
    # Chosen against a ResNet-50, whose accuracy is 0: below that model's x the line is another one.
    Shift(name="imagenet_a", task="imagenet_a", y=("imagenet-a",), x=("val-on-imagenet-a-classes",), minimum=0.75,
          pivot=0.9186, without=("resnet50",), num_y=7_500, num_x=10_000),
    Shift(name="imagenet_r", task="imagenet_r", y=("imagenet-r",), x=("val-on-imagenet-r-classes",), minimum=0.75,
          num_y=30_000, num_x=10_000),
    Shift(name="objectnet", task="objectnet", y=("objectnet-1.0-beta",), x=("val-on-objectnet-classes",), minimum=0.55,
          num_y=18_514, num_x=6_250),
    Shift(name="imagenet_vid_robust", task="imagenet_vid_robust", y=_VID, x=_ON_VID),
    Shift(name="imagenet_vid_robust pm-0", task="", y=_VID[:1], x=_ON_VID, num_y=1_109, num_x=14_400),
    Shift(name="imagenet_vid_robust pm-10", task="", y=_VID[1:], x=_ON_VID, num_y=1_109, num_x=14_400),
    Shift(name="ytbb_robust", task="ytbb_robust", y=_YTBB, x=_ON_YTBB),
    Shift(name="ytbb_robust pm-0", task="", y=_YTBB[:1], x=_ON_YTBB, num_y=2_530, num_x=11_550),
    Shift(name="ytbb_robust pm-10", task="", y=_YTBB[1:], x=_ON_YTBB, num_y=2_530, num_x=11_550),
)  # fmt: skip
SEVEN_SHIFTS = tuple(shift for shift in SHIFTS if shift.task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestBed:
    """Accuracies of models.

    Attributes:
        models: their names.
        families: how each was trained ("standard", "more-data", ...).
        columns: (M,) shares by the name of a set, not a number where it was not measured.
        source: the file.
    """

    __test__ = False  # pytest would take the name for a test

    models: tuple[str, ...]
    families: tuple[str, ...]
    columns: Mapping[str, Float[np.ndarray, " M"]]
    source: str

    def column(self, name: str) -> Float[np.ndarray, " M"]:
        """The shares of one set.

        Raises:
            DataError: for an unknown one, with the nearest three.
        """
        if name not in self.columns:
            error = unknown_name("column", name, self.columns)
            raise DataError(error.what, source=self.source, expected=error.expected)
        return self.columns[name]

    def place(self, model: str) -> int:
        """The row of a model.

        Raises:
            DataError: for an unknown one, with the nearest three.
        """
        if model not in self.models:
            error = unknown_name("model", model, self.models)
            raise DataError(error.what, source=self.source, expected=error.expected)
        return self.models.index(model)

    def accuracies(self, shift: Shift | str) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
        """x and y of every model: the means of the shift's columns; `SEVEN` is the mean over the seven shifts of both."""
        if shift == SEVEN:
            both = [self.accuracies(each) for each in SEVEN_SHIFTS]
            return np.mean([x for x, _ in both], axis=0), np.mean([y for _, y in both], axis=0)
        found = named_shift(shift) if isinstance(shift, str) else shift
        x, y = (np.mean([self.column(name) for name in names], axis=0) for names in (found.x, found.y))
        return x, y

    def for_line(self, shift: Shift | str) -> Bool[np.ndarray, " M"]:
        """Which models the line goes through: standard ones, not of another study, measured, and above the shift's minimum.

        An accuracy of 0 or 1 has no logit and is left out.
        """
        rule = Shift(name=SEVEN, task="", y=(), x=()) if shift == SEVEN else shift
        rule = named_shift(rule) if isinstance(rule, str) else rule
        x, y = self.accuracies(shift)
        plain = [
            family == STANDARD and name not in rule.without and not any(word in name.lower() for word in NOT_FOR_LINES)
            for name, family in zip(self.models, self.families, strict=True)
        ]
        inside = (x > 0) & (x < 1) & (y > 0) & (y < 1) & (x >= rule.minimum)  # not-a-number is none of these
        return np.array(plain, dtype=bool) & inside


def named_shift(name: str) -> Shift:
    """The shift called `name`.

    Raises:
        ConfigError: for an unknown one, with the nearest three.
    """
    known = {shift.name: shift for shift in SHIFTS}
    if name not in known:
        raise unknown_name("shift of the test bed", name, known)
    return known[name]


def read_testbed(path: str | os.PathLike | None = None) -> TestBed:
    """The published test bed, or a table of one's own.

    Args:
        path: a CSV with a column `model`, columns of percentages, and perhaps `family`; a model without a family has that of
            the published model of this name, or none, and then no line goes through it.

    Raises:
        DataError: for a table that is not of this form; the message names row and column.
        LimitError: for a file that is too large.
    """
    published = _published()
    return published if path is None else _read(Path(path), dict(zip(published.models, published.families, strict=True)))


@functools.cache
def _published() -> TestBed:
    return _read(PUBLISHED, {})


def _read(path: Path, families: Mapping[str, str]) -> TestBed:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise LimitError("is too large", source=path, expected=f"a table of at most {MAX_TABLE_BYTES:,} bytes")
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
            header = list(reader.fieldnames or ())
    except FileNotFoundError:
        raise DataError("no such file", source=path, expected="a table of accuracies (CSV)") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a table of accuracies (CSV)") from None
    if "model" not in header or not rows:
        raise DataError(f"{len(rows)} rows with the columns {', '.join(header[:5])}", source=path, expected="a column 'model'")
    names = [row["model"] for row in rows]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise DataError(f"the model {twice!r} comes twice", source=path, expected="one row a model")
    columns = {
        name: np.array([_share(row[name], name, line, path) for line, row in enumerate(rows, 2)])
        for name in header
        if name not in ("model", "family")
    }
    return TestBed(
        models=tuple(names),
        families=tuple(row.get("family") or families.get(row["model"], "") for row in rows),
        columns=columns,
        source=str(path),
    )


def _share(text: str | None, column: str, line: int, path: Path) -> float:
    if text is None or not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise DataError(
            f"{text!r} in line {line}, column {column!r}", source=path, expected="a percentage, 0 to 100, or nothing"
        )
    return value / 100
