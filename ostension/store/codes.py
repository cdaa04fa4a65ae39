"""Rows in whole numbers of 8 bits: a quarter of float32's memory for the first pass of a search, with a bound on the error.

A part of at most 16,384 rows loses its mean m, is ordered by the greatest number of each row, and each group of 2,048 rows
that then stand together shares a step s:

    x = m + s c + r        c in -127..127,        |r| of every row known, the greatest of a group kept
    q = t h + e            h in -127..127,        |e| known

    q x = q m + s t (h c) + err,        |err| <= |q| |r| + |e| |s c|

The product h c of whole numbers is exact, so the bound holds on every processor that multiplies whole numbers right, which
is tried first (`products_are_right`): without VNNI some sum two products in 16 bits and cut them.

A set's codes lie beside it in `codes/`, one file a shard, made once. Shards never change, so a file is stale only if its
shard is gone; its name and hash are compared. Codes of what is not on the disk are made again where they are asked for.

Letters: N rows, n rows of a part, G groups, E embedding, Q queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.data.arrays import MappedArrays, write_arrays
from ostension.errors import DataError
from ostension.files import folder_lock
from ostension.store.rows import Rows
from ostension.store.sets import EmbeddingSet

PART, GROUP, STRIPE = 16384, 2048, 128  # rows of a part, of a group with one step, and rows whose greatest product is compared
TOP = 127
KIND, FOLDER, SUFFIX = "store codes 1", "codes", ".arrays"
U32 = 2.0**-24
LEAST, MOST = 1e-12, 1e12  # greatest numbers between which no square or sum leaves float32, so that the bounds hold
WIDEST = 2**31 // (TOP * TOP)  # E past which a product could leave 32 bits


@dataclasses.dataclass(frozen=True)
class Part:
    """The codes of some rows that follow each other.

    Attributes:
        start: the number of the first row, as stored.
        codes: (n up to a multiple of STRIPE, E) int8; zeros past n.
        order: (n,) which row, from `start`, each code is of.
        mean: (E,) float32.
        step, rest, length: (G,) float64: s, and the greatest |r| and |s c| of a group.
    """

    start: int
    codes: torch.Tensor
    order: np.ndarray
    mean: np.ndarray
    step: np.ndarray
    rest: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of_arrays` takes: bytes and whole numbers, since files of arrays hold no others."""
        named = {name: getattr(self, name).view(kind) for name, kind in _BITS.items()}
        return {**named, "order": self.order, "codes": self.codes.numpy().view(np.uint8)}

    @staticmethod
    def of_arrays(start: int, arrays: Any) -> Part:
        """A part whose codes stay in the file."""
        named = {name: np.array(arrays[name]).view(kind.replace("i", "f")) for name, kind in _BITS.items()}
        return Part(start=start, order=np.array(arrays["order"]), codes=readable(arrays["codes"].view(np.int8)), **named)


_BITS = {"mean": "<i4", "step": "<i8", "rest": "<i8", "length": "<i8"}


def encode(rows: np.ndarray, start: int = 0) -> Part:
    """The codes of rows (n, E) with n up to 16,384."""
    with np.errstate(over="ignore"):
        wide = torch.from_numpy(np.array(rows, dtype=np.float32))
    count, width = wide.shape
    peak = float(wide.abs().max()) if count and width else 0.0
    if not LEAST <= peak <= MOST and peak:
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise not_finite(start + int(bad.argmax()))
        return _nothing_known(start, count, width)
    mean = wide.mean(dim=0) if count else torch.zeros(width)
    wide -= mean
    greatest = wide.abs().amax(dim=1) if width else torch.zeros(count)
    order = torch.argsort(greatest, stable=True)
    codes = torch.zeros(-(-count // STRIPE) * STRIPE, width, dtype=torch.int8)
    steps, rests, lengths = [], [], []
    for first in range(0, count, GROUP):
        chosen = order[first : first + GROUP]
        block = wide[chosen]
        step = max(float(greatest[chosen[-1]]) / TOP, 1e-30)
        whole = (block / step).round_().clamp_(-TOP, TOP)
        codes[first : first + len(chosen)] = whole.to(torch.int8)
        norms = float(torch.linalg.vector_norm(block, dim=1).max())
        made = whole.mul_(step)
        # What float32 rounds: of x - m and of s c a unit of each number, and of a length E + 2 units.
        slip, more = 8 * U32 * (norms + float(torch.linalg.vector_norm(mean))), 1 + (width + 8) * U32
        lengths.append(float(torch.linalg.vector_norm(made, dim=1).max()) * more + slip)
        rests.append(float(torch.linalg.vector_norm(block.sub_(made), dim=1).max()) * more + slip)
        steps.append(step)
    return Part(
        start=start, codes=codes, order=order.numpy().astype(np.int32), mean=mean.numpy(),
        step=np.array(steps), rest=np.array(rests), length=np.array(lengths),
    )  # fmt: skip


def _nothing_known(start: int, count: int, width: int) -> Part:
    """Codes of rows that are too long or too short for the bounds; no search may use them."""
    no_bound = np.full(-(-count // GROUP), np.inf)
    return Part(
        start=start, codes=torch.zeros(-(-count // STRIPE) * STRIPE, width, dtype=torch.int8),
        order=np.arange(count, dtype=np.int32), mean=np.zeros(width, np.float32), step=no_bound, rest=no_bound, length=no_bound,
    )  # fmt: skip


def not_finite(row: int) -> DataError:
    """The error for a row that no search can rank."""
    return DataError(f"row {row:,} has numbers that are not finite", expected="finite rows")


class Codes:
    """The codes of all rows of a matrix or a set."""

    def __init__(self, parts: list[Part], live: np.ndarray | None = None):
        self.parts, self._live = parts, live

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self._live is None else len(self._live)

    @staticmethod
    def of(rows: Rows | np.ndarray) -> Codes:
        """Codes in memory, E bytes a row, of rows as they are numbered."""
        return Codes([encode(rows[start : start + PART], start) for start in range(0, len(rows), PART)])

    @staticmethod
    def of_set(opened: EmbeddingSet, *, build: bool = False) -> Codes | None:
        """The codes that lie beside a set, mapped into memory; None if some are missing or stale.

        Args:
            build: make the missing ones, and remove those whose shards are gone.

        Raises:
            DataError: if they cannot be written, or another process makes them.
        """
        folder = opened.folder / FOLDER
        if build and not all(_kept(folder, shard) for shard in opened.manifest.shards):
            _build(opened, folder)
        parts: list[Part] = []
        start = 0
        for shard in opened.manifest.shards:
            kept = _kept(folder, shard)
            if kept is None:
                return None
            parts += [
                Part.of_arrays(start + number * PART, _Prefixed(kept, f"{number}.")) for number in range(-(-shard.rows // PART))
            ]
            start += shard.rows
        return Codes(parts, opened.rows.live)

    @property
    def bounded(self) -> bool:
        """Whether the error of the products is known; it is not for rows that are very long or very short."""
        return all(np.isfinite(part.rest).all() for part in self.parts)

    @property
    def whole(self) -> bool:
        """Whether no row was deleted."""
        return self._live is None

    def numbers(self, part: Part) -> np.ndarray:
        """(n,) the row number of each code, -1 for a row that was deleted."""
        stored = part.order.astype(np.int64) + part.start
        if self._live is None:
            return stored
        found = np.searchsorted(self._live, stored)
        found[found == len(self._live)] = 0
        return np.where(self._live[found] == stored, found, -1) if len(self._live) else np.full(len(stored), -1)


class _Prefixed:
    def __init__(self, arrays: MappedArrays, prefix: str):
        self._arrays, self._prefix = arrays, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._prefix + name]


def _kept(folder: Path, shard: Any) -> MappedArrays | None:
    path = folder / (shard.name + SUFFIX)
    try:
        kept = MappedArrays(path, KIND)
    except DataError:
        return None
    facts = kept.facts
    return kept if (facts.get("rows"), facts.get("sha256")) == (shard.rows, shard.rows_sha256) else None


def _build(opened: EmbeddingSet, folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
        with folder_lock(folder):
            for path in folder.glob("*" + SUFFIX):
                if path.name.removesuffix(SUFFIX) not in {shard.name for shard in opened.manifest.shards}:
                    path.unlink(missing_ok=True)
            for number, shard in enumerate(opened.manifest.shards):
                if _kept(folder, shard) is None:
                    arrays = {
                        f"{place}.{name}": values
                        for place, rows in enumerate(_pieces(opened.rows.part(number)))
                        for name, values in encode(rows).arrays().items()
                    }
                    facts = {"rows": shard.rows, "sha256": shard.rows_sha256}
                    write_arrays(folder / (shard.name + SUFFIX), KIND, arrays, facts)
    except OSError as error:
        fix = "make room, or search without codes"
        raise DataError(f"cannot be written: {error.strerror}", source=folder, fix=fix) from None


def _pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), PART):
        yield rows[start : start + PART]


@functools.cache
def products_are_right(width: int) -> bool:
    """Whether this processor's product of int8 matrices is that of whole numbers, tried at the ends of the range."""
    if width > WIDEST:
        return False
    ends = torch.full((2, width), TOP, dtype=torch.int8)
    ends[1] = -TOP
    whole = TOP * TOP * width
    expected = torch.tensor([[whole, -whole] * 32, [-whole, whole] * 32], dtype=torch.int32)
    try:
        return bool(torch.equal(torch._int_mm(ends, ends.repeat(32, 1).T), expected))
    except RuntimeError:
        return False


@functools.cache
def one_by_one(width: int, threads: int) -> bool:
    """Whether a single query is multiplied faster, and rightly, by the product made for int8 weights.

    It sums in float32, where whole numbers are exact up to 2^24, and rounds the result to bfloat16.
    """
    if TOP * TOP * width >= 2**24:
        return False
    from time import perf_counter

    codes = torch.randint(-TOP, TOP + 1, (4096, width), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    query = codes[:1].clone()
    ones = torch.ones(len(codes), dtype=torch.bfloat16)
    try:
        whole = (query.double() @ codes.double().T).bfloat16()
        if not torch.equal(torch._weight_int8pack_mm(query.bfloat16(), codes, ones), whole):
            return False
        best = {}
        for name, call in (
            ("weights", lambda: torch._weight_int8pack_mm(query.bfloat16(), codes, ones)),
            ("integers", lambda: torch._int_mm(query, codes.T)),
        ):
            took = []
            for _ in range(5):
                began = perf_counter()
                call()
                took.append(perf_counter() - began)
            best[name] = min(took)
        return best["weights"] < best["integers"]
    except RuntimeError:
        return False


class _Writable:
    """An array as one that may be written to, which torch wants of all; nothing here writes to what a file holds."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.__array_interface__ = {**values.__array_interface__, "data": (values.__array_interface__["data"][0], False)}


def readable(values: np.ndarray) -> torch.Tensor:
    """A tensor of an array that may lie in a file."""
    values = np.ascontiguousarray(values)
    return torch.from_numpy(values if values.flags.writeable else np.asarray(_Writable(values)))


def remove_codes(folder: Path) -> bool:
    """Remove the codes beside a set; gives whether there were any."""
    files = list((folder / FOLDER).glob("*" + SUFFIX))
    for path in files:
        path.unlink(missing_ok=True)
    return bool(files)
