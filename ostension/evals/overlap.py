"""Data overlap: how much of an evaluation set was seen in training, and what that adds to the accuracy.

A set of N samples is split by near-duplicates among the training pictures (`overlap_neighbours`, `overlap_review`) into Overlap
and Clean. With the share f = |Overlap| / N,

    delta = acc(All) - acc(Clean) = f (acc(Overlap) - acc(Clean))                                                (1)

is what the overlap adds. Whether it is more than luck: under "the overlap is as easy as the rest", the number of Overlap
samples that are right is binomial with n = |Overlap| and p = acc(Clean), and the one-sided p-value is P(X >= k). It is
corrected by Bonferroni for the number of sets. acc(Overlap) has its exact interval at 99.5 %.

Details of the record (`record`): {"sets": [{"task", "counts": {"all", "overlap", "clean"}, "right": {...}, "contamination",
"accuracy": {...}, "delta", "difference", "p", "p_corrected", "interval": [low, high], "threshold", "notes"}, ...]}, where
"difference" is acc(Overlap) - acc(Clean) and "interval" is of acc(Overlap). What is not defined (no overlap; nothing clean) is
null, never 0 or 1.

Source: CLIP, section 5 and Appendix C. Letters: N samples.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.errors import DataError, require_extra
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric, Record
from ostension.evals.statistics import CLIP_CONFIDENCE, binomial_tail, bonferroni, clopper_pearson
from ostension.shapes import Bool

PROTOCOL = "overlap"
SIGNIFICANT = 0.05  # the usual level; the paper says "after Bonferroni correction" and names none
NOTICEABLE = 0.001  # a tenth of a point, over which the paper counts sets
PAPER_SETS = 35
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


@dataclasses.dataclass(frozen=True)
class Published:
    """A number of the paper's study (RN50x64, zero-shot, 35 sets), with where it was read.

    Attributes:
        value: a share 0..1, or a count.
        evidence: "read" in the main paper, or "second-hand": in notes of others on its appendix.
    """

    name: str
    value: float | int
    evidence: Literal["read", "second-hand"]


PUBLISHED = (
    Published("sets", PAPER_SETS, "read"),
    Published("sets without any overlap", 9, "read"),
    Published("median contamination", 0.022, "read"),
    Published("mean contamination", 0.032, "read"),
    Published("sets whose accuracy shifts by more than 0.1 points", 7, "read"),
    Published("sets significant after the correction", 2, "read"),
    Published("sets significant one-sided, uncorrected", 6, "second-hand"),
    Published("sets outside the 99.5 % interval", 5, "second-hand"),
    Published("Birdsnap contamination", 0.121, "read"),
    Published("Birdsnap delta", 0.006, "read"),
    Published("Country211 contamination", 0.215, "read"),
    Published("Country211 delta", 0.002, "read"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetOverlap:
    """One set, split. Accuracies and tests are None where they are not defined.

    Attributes:
        task: the set's name.
        num_overlap, num_clean: samples with and without a near-duplicate in training.
        right_overlap, right_clean: how many of them are right.
        threshold: of similarity, from which a pair counted as a duplicate; None where the split came from elsewhere.
        notes: what a reader should know, such as pairs that a person took out.
    """

    task: str
    num_overlap: int
    num_clean: int
    right_overlap: int
    right_clean: int
    threshold: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        overlap, clean = (self.right_overlap, self.num_overlap, "overlap"), (self.right_clean, self.num_clean, "clean")
        for right, count, name in (overlap, clean):
            if not 0 <= right <= count:
                raise DataError(f"{right} of {count} {name} samples are right", source=self.task, expected="at most all")
        if not self.num_all:
            raise DataError("no samples", source=self.task, expected="one or more")

    @property
    def num_all(self) -> int:
        """N."""
        return self.num_overlap + self.num_clean

    @property
    def contamination(self) -> float:
        """f."""
        return self.num_overlap / self.num_all

    @property
    def accuracy_all(self) -> float:
        return (self.right_overlap + self.right_clean) / self.num_all

    @property
    def accuracy_overlap(self) -> float | None:
        return self.right_overlap / self.num_overlap if self.num_overlap else None

    @property
    def accuracy_clean(self) -> float | None:
        return self.right_clean / self.num_clean if self.num_clean else None

    @property
    def difference(self) -> float | None:
        """acc(Overlap) - acc(Clean)."""
        overlap, clean = self.accuracy_overlap, self.accuracy_clean
        return None if overlap is None or clean is None else overlap - clean

    @property
    def delta(self) -> float | None:
        """acc(All) - acc(Clean), equation (1); 0 without overlap, None where nothing is clean."""
        return None if self.accuracy_clean is None else self.accuracy_all - self.accuracy_clean

    @property
    def p(self) -> float | None:
        """P(X >= right_overlap) for X binomial with num_overlap and acc(Clean)."""
        if self.accuracy_clean is None or not self.num_overlap:
            return None
        return binomial_tail(self.right_overlap, self.num_overlap, self.accuracy_clean)

    def interval(self, confidence: float = CLIP_CONFIDENCE) -> Interval | None:
        """The exact interval of acc(Overlap)."""
        return clopper_pearson(self.right_overlap, self.num_overlap, confidence) if self.num_overlap else None


def split(
    correct: Bool[np.ndarray, " N"], overlap: Bool[np.ndarray, " M"], *, task: str, threshold: float | None = None,
    notes: Sequence[str] = (),
) -> SetOverlap:
    """A set's split from whether each sample is right, and whether it has a near-duplicate in training.

    Raises:
        DataError: for arrays of different lengths, or empty ones.
    """
    if correct.shape != overlap.shape:
        raise DataError(f"{len(correct)} samples are right or wrong, and {len(overlap)} overlap or not", source=task)
    return SetOverlap(
        task=task, threshold=threshold, notes=tuple(notes),
        num_overlap=int(overlap.sum()), num_clean=int((~overlap).sum()),
        right_overlap=int((correct & overlap).sum()), right_clean=int((correct & ~overlap).sum()),
    )  # fmt: skip


def read_correct(path: str | Path) -> dict[str, bool]:
    """Whether each sample is right, by id: from the columns `id` and `correct` of a CSV, or of a Parquet file.

    Raises:
        DataError: for a file without these columns, an id that comes twice, or a value that is neither true nor false.
        MissingExtraError: for Parquet without pyarrow.
    """
    path = Path(path)
    found: dict[str, bool] = {}
    for number, (name, value) in enumerate(_rows(path), 2):
        word = str(value).strip().lower()
        if word not in _TRUE + _FALSE:
            what = f"the value {value!r} in the column 'correct'"
            raise DataError(what, source=f"{path}:{number}", expected="true or false, 1 or 0")
        if name in found:
            raise DataError(f"the id {name!r} comes twice", source=f"{path}:{number}", expected="each once")
        found[name] = word in _TRUE
    if not found:
        raise DataError("no samples", source=path, expected="a row for each sample of the set")
    return found


def _rows(path: Path) -> list[tuple[str, Any]]:
    if path.suffix == ".parquet":
        parquet = require_extra("pyarrow.parquet", "data")
        try:
            table = parquet.read_table(path)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", source=path) from None
        columns: Sequence[str] = table.column_names
        rows: list[Mapping[str, Any]] = table.to_pylist() if {"id", "correct"} <= set(columns) else []
    else:
        try:
            with open(path, encoding="utf-8-sig", newline="") as handle:
                reader = csv.DictReader(handle)
                columns, rows = reader.fieldnames or (), list(reader)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", source=path, expected="a CSV file") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"is no CSV: {error}", source=path, expected="a CSV file") from None
    for name in ("id", "correct"):
        if name not in columns:
            known = ", ".join(map(str, columns)) or "none"
            raise DataError(f"no column {name!r} among {known}", source=path, expected="id and correct")
    return [(str(row["id"]), row["correct"]) for row in rows]


def in_order(correct: Mapping[str, bool], ids: Sequence[str], source: object = None) -> Bool[np.ndarray, " N"]:
    """The values for `ids`, in their order.

    Raises:
        DataError: if an id is missing or too many, with how many there are.
    """
    known = set(ids)
    missing, others = [name for name in ids if name not in correct], [name for name in correct if name not in known]
    for names, what in ((missing, "have no value"), (others, "are none of the set")):
        if names:
            raise DataError(
                f"{len(names):,} ids {what}, such as {names[0]!r}", source=source, expected=f"the set's {len(ids):,} samples",
                fix="measure the model on the same data, whole",
            )  # fmt: skip
    return np.array([correct[name] for name in ids], dtype=bool)


def record(
    sets: Sequence[SetOverlap], *, model: str = "", tests: int | None = None, hashes: Mapping[str, str] | None = None
) -> Record:
    """The study of several sets.

    Args:
        model: whose accuracies they are.
        tests: the number of sets that p-values are corrected for; by default those given. 35 in the paper.

    Raises:
        DataError: for no sets, a set that comes twice, or fewer tests than sets.
    """
    names = [one.task for one in sets]
    if not sets or len(set(names)) < len(names):
        raise DataError(f"the sets {', '.join(names) or 'are none'}", expected="one or more, each once")
    tests = len(sets) if tests is None else tests
    if tests < len(sets):
        raise DataError(f"a correction for {tests} tests", expected=f"{len(sets)} or more, as there are so many sets")
    rows = [row_of(one, tests) for one in sets]
    shares = [one.contamination for one in sets]
    deltas = [one.delta for one in sets if one.delta is not None]
    significant = [row["task"] for row in rows if row["p_corrected"] is not None and row["p_corrected"] < SIGNIFICANT]
    count = len(sets)
    metrics = {
        "median_contamination": Metric(value=statistics.median(shares), count=count, direction="lower"),
        "mean_contamination": Metric(value=statistics.fmean(shares), count=count, direction="lower"),
        "without_overlap": Metric(value=sum(share == 0 for share in shares) / count, count=count),
        "noticeable": Metric(value=sum(abs(delta) > NOTICEABLE for delta in deltas) / count, count=count, direction="lower"),
        "significant": Metric(value=len(significant) / count, count=count, direction="lower"),
    }
    if deltas:
        metrics["largest_delta"] = Metric(value=max(deltas), count=count, direction="lower")
    return Record(
        protocol=PROTOCOL, subject=f"data overlap, {model}" if model else "data overlap", metrics=metrics, model=model,
        config={"confidence": CLIP_CONFIDENCE, "tests": tests, "level": SIGNIFICANT, "noticeable": NOTICEABLE},
        hashes=dict(hashes or {}), counts={"sets": count, "samples": sum(one.num_all for one in sets)},
        task=sets[0].task if count == 1 else "", details={"sets": rows, "significant": significant},
    )  # fmt: skip


def row_of(one: SetOverlap, tests: int) -> dict[str, Any]:
    """A set as the record's details have it."""
    interval, p = one.interval(), one.p
    return {
        "task": one.task,
        "counts": {"all": one.num_all, "overlap": one.num_overlap, "clean": one.num_clean},
        "right": {"overlap": one.right_overlap, "clean": one.right_clean},
        "contamination": one.contamination,
        "accuracy": {"all": one.accuracy_all, "overlap": one.accuracy_overlap, "clean": one.accuracy_clean},
        "delta": one.delta, "difference": one.difference, "p": p,
        "p_corrected": None if p is None else bonferroni(p, tests),
        "interval": None if interval is None else [interval.low, interval.high],
        "threshold": one.threshold, "notes": list(one.notes),
    }  # fmt: skip
