"""The first pass of an exact search: rough products of every row, and which rows they cannot exclude.

Of a block's products only the greatest of each stripe of rows is compared with what a row must reach; stripes that reach it
are looked into. So selecting costs a small part of multiplying, however many queries there are; for few queries it is done for
several blocks together, because there the calls cost more than what they do.

Letters: N rows, E embedding, Q queries, k answers, B rows of a block, G groups of rows, S stripes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from ostension.store.candidates import Candidates
from ostension.store.codes import GROUP, LEAST, MOST, PART, STRIPE, TOP, U32, Codes, not_finite, one_by_one, readable
from ostension.store.rows import BLOCK_ROWS, Rows

TILE = 256  # queries that meet a block together: their products with 16,384 rows take 16 MB
EXACT = 4096  # candidates that are computed in float64 at a time
PACKED = 16  # queries from which packing them pays
GROUPS = (np.arange(PART) // GROUP).astype(np.int32)  # of a part's rows
SPAN = 2**17  # rows that are selected from together for fewer queries than that
U16 = 2.0**-8
Precision = Literal["float32", "bfloat16"]


class Asked:
    """Queries and what was found for them."""

    def __init__(self, queries: np.ndarray, rows: Rows | np.ndarray, k: int):
        self.queries, self.rows, self.k = queries, rows, k
        self.wide = queries.astype(np.float64)
        self.lengths = np.sqrt((self.wide**2).sum(axis=1))
        self.candidates = Candidates(len(queries), k, self.nearer, self.exact)
        self._buffer = torch.zeros(0, dtype=torch.int32)

    def exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Dot products of pairs in float64; a row's sum has the same order wherever it stands, so equal rows are equal."""
        scores = np.empty(len(rows))
        for places, found in self._read(rows):
            wide = found.astype(np.float64)
            wide *= self.wide[queries[places]]
            scores[places] = wide.sum(axis=1)
        return scores

    def nearer(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the products of pairs by float32."""
        scores, slack = np.empty(len(rows)), np.empty(len(rows))
        across = torch.from_numpy(self.queries)
        err = 1.01 * (self.queries.shape[1] + 3) * U32
        for places, found in self._read(rows):
            block = readable(found).float()
            mine = queries[places]
            scores[places] = (block * across[torch.from_numpy(mine)]).sum(dim=1).numpy()
            # The least term is for rows so short that the squares of their numbers vanish in float32.
            lengths = torch.linalg.vector_norm(block, dim=1).double().numpy() * 1.01 + 1e-17
            slack[places] = err * self.lengths[mine] * lengths
        return scores - slack, scores + slack

    def _read(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows, some at a time and from front to back, with their places."""
        order = np.argsort(rows, kind="stable")
        for start in range(0, len(rows), EXACT):
            places = order[start : start + EXACT]
            yield places, self.rows[rows[places]]

    def buffer(self, num_queries: int, num_rows: int) -> torch.Tensor:
        """(Q, B) int32 to write products into; fresh memory would cost as much as they do."""
        if self._buffer.numel() < num_queries * num_rows:
            self._buffer = torch.zeros(num_queries * num_rows, dtype=torch.int32)
        return self._buffer[: num_queries * num_rows].view(num_queries, num_rows)

    def tiles(self) -> Iterator[slice]:
        for start in range(0, len(self.queries), TILE):
            yield slice(start, min(start + TILE, len(self.queries)))


def by_pairs(asked: Asked, rows: Rows | np.ndarray, mask: np.ndarray | None, block_rows: int) -> None:
    """Every product in float64 at once: for queries that are too long or too short for the bounds."""
    for _, numbers, block in _blocks(rows, mask, block_rows):
        _plainly(asked, numbers, block)


def usable(lengths: np.ndarray) -> bool:
    """Whether the bounds hold for vectors of these lengths, of which those of 0 do no harm."""
    return bool(np.all((lengths == 0) | ((lengths >= LEAST) & (lengths <= MOST))))


def _plainly(asked: Asked, numbers: np.ndarray, block: np.ndarray) -> None:
    """A block's products in float64."""
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise not_finite(int(numbers[int(bad.argmax())]))
    for low in range(0, len(numbers), EXACT):
        some = numbers[low : low + EXACT]
        for query in range(len(asked.queries)):
            which = np.full(len(some), query)
            scores = asked.exact(which, some)
            asked.candidates.add(which, some, scores, scores)


def by_blocks(
    asked: Asked, rows: Rows | np.ndarray, mask: np.ndarray | None, precision: Precision, block_rows: int,
    known: dict[int, float],
) -> None:  # fmt: skip
    """Every block's products in float32 or bfloat16; `known` keeps the greatest length in each block."""
    width = rows.shape[1]
    short = precision == "bfloat16" or torch.get_float32_matmul_precision() != "highest"
    err = 1.01 * (width + 2) * U32 + (4 * U16 if short else 0.0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    tiles = [(tile, _Across(torch.from_numpy(asked.queries[tile]).to(dtype))) for tile in asked.tiles()]
    # Whole stripes, so that rows past the end of a block are zeros; one buffer, since fresh memory is slow.
    whole = torch.zeros(-(-min(block_rows, max(len(rows), 1)) // STRIPE) * STRIPE, width)
    span = _Span(asked)
    for start, numbers, block in _blocks(rows, mask, block_rows):
        count = len(numbers)
        wide = _filled(whole, block, -(-count // STRIPE) * STRIPE)
        longest = known.get(start)
        if longest is None:
            longest = float(torch.linalg.vector_norm(wide[:count], dim=1).max()) * 1.01
            if mask is None:
                known[start] = longest
        if not LEAST <= longest <= MOST:
            _plainly(asked, numbers, block)
            continue
        shortened = wide.to(dtype)
        for tile, across in tiles:
            rough = across.products(shortened)
            slack = torch.from_numpy(err * asked.lengths[tile] * longest)[:, None]
            ends = _Ends(torch.zeros_like(slack), torch.ones_like(slack), slack, 0.0)
            span.add(tile, rough, ends, numbers, np.zeros(count, np.int32))
    span.select()


def by_codes(asked: Asked, codes: Codes, mask: np.ndarray | None) -> None:
    """Every part's products in whole numbers."""
    width = asked.queries.shape[1]
    step = np.maximum(np.abs(asked.wide).max(axis=1), 1e-30) / TOP  # t
    whole = np.rint(asked.wide / step[:, None]).clip(-TOP, TOP)  # h
    rest = np.sqrt(((asked.wide - whole * step[:, None]) ** 2).sum(axis=1)) * (1 + 1e-9)  # |e|
    wide, across = torch.from_numpy(asked.wide), torch.from_numpy(whole.astype(np.int8))
    alone = len(asked.queries) == 1 and one_by_one(width, torch.get_num_threads())
    past = 2.0**-8 if alone else 0.0  # of a product: rounding it to bfloat16, and as much again
    span = _Span(asked)
    for part in codes.parts:
        numbers, coded, groups = codes.numbers(part), part.codes, GROUPS[: len(part)]
        chosen = None if codes.whole and mask is None else numbers >= 0 if mask is None else (numbers >= 0) & mask[numbers]
        if chosen is not None and not chosen.any():
            continue
        if chosen is not None and not chosen.all():
            places = np.flatnonzero(chosen)
            numbers, groups = numbers[places], groups[places]
            coded = torch.zeros(-(-len(places) // STRIPE) * STRIPE, width, dtype=torch.int8)
            torch.index_select(part.codes, 0, torch.from_numpy(places), out=coded[: len(places)])
        # (Q, 1) q m; numpy's product has threads of its own, which would take the cores from torch's.
        middle = wide.mv(torch.from_numpy(part.mean.astype(np.float64)))[:, None]
        scale = torch.from_numpy(step[:, None] * part.step)  # (Q, G) s t
        slack = asked.lengths[:, None] * part.rest + rest[:, None] * part.length
        slack = slack * (1 + 1e-9) + 1e-12 * (middle.abs().numpy() + asked.lengths[:, None] * part.length)
        for tile in asked.tiles():
            ends = _Ends(middle[tile], scale[tile], torch.from_numpy(slack[tile]), past)
            if alone:
                rough = torch._weight_int8pack_mm(across.bfloat16(), coded, torch.ones(len(coded), dtype=torch.bfloat16))
            else:
                rough = asked.buffer(tile.stop - tile.start, len(coded))
                torch._int_mm(across[tile], coded.T, out=rough)
            span.add(tile, rough.view(len(rough), -1, STRIPE), ends, numbers, groups)
    span.select()


@dataclasses.dataclass(frozen=True)
class _Ends:
    """How products follow from rough ones: middle + scale rough, to within slack and a share of the scaled one; middle, scale
    and slack are float64, (Q, G), and middle (Q, 1) where all groups have one."""

    middle: torch.Tensor
    scale: torch.Tensor
    slack: torch.Tensor
    share: float


class _Span:
    """Blocks that are selected from together: for few queries several, as long as the ones before end with a whole stripe."""

    def __init__(self, asked: Asked):
        self._asked, self._few = asked, len(asked.queries) < PACKED
        self._held: list[tuple[slice, torch.Tensor, _Ends, np.ndarray, np.ndarray]] = []
        self._rows = 0

    def add(self, tile: slice, rough: torch.Tensor, ends: _Ends, numbers: np.ndarray, groups: np.ndarray) -> None:
        """Rough products (Q, S, STRIPE) of rows with their numbers (B,) and groups (B,)."""
        if not self._few:
            _select(self._asked, tile, rough, ends, _Joined([numbers]), _Joined([groups]))
            return
        self._held.append((tile, rough.clone() if rough.dtype == torch.int32 else rough, ends, numbers, groups))
        self._rows += len(numbers)
        if self._rows >= SPAN or len(numbers) % STRIPE:
            self.select()

    def select(self) -> None:
        """Hand over what is held."""
        if self._held:
            tile, _, first, _, _ = self._held[0]
            rough = torch.cat([rough for _, rough, *_ in self._held], dim=1)
            parts = [ends for _, _, ends, _, _ in self._held]
            counts = [ends.scale.shape[1] for ends in parts]
            middle = torch.cat([ends.middle.expand_as(ends.scale) for ends in parts], dim=1)
            scale, slack = (torch.cat([getattr(ends, name) for ends in parts], dim=1) for name in ("scale", "slack"))
            shifts = np.cumsum([0, *counts[:-1]])
            numbers, groups = _Joined([one[3] for one in self._held]), _Joined([one[4] for one in self._held], shifts)
            _select(self._asked, tile, rough, _Ends(middle, scale, slack, first.share), numbers, groups)
        self._held, self._rows = [], 0


class _Joined:
    """Arrays as one, read at places without being copied together: fresh memory costs more than what is read of it.

    Args:
        shifts: what to add to the numbers of each array.
    """

    def __init__(self, parts: list[np.ndarray], shifts: np.ndarray | None = None):
        self._parts, self._shifts = parts, np.zeros(len(parts), np.int64) if shifts is None else shifts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, places: np.ndarray) -> np.ndarray:
        """(P,) the numbers at places (P,)."""
        found = np.empty(len(places), np.int64)
        which = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(which):
            chosen = which == number
            found[chosen] = self._parts[number][places[chosen] - self._starts[number]] + self._shifts[number]
        return found


def _select(asked: Asked, tile: slice, rough: torch.Tensor, ends: _Ends, numbers: _Joined, groups: _Joined) -> None:
    """Hand over the rows whose rough products (Q, S, STRIPE), zeros past the last row, cannot be excluded.

    Args:
        numbers: (B,) of the rows.
        groups: (B,) each row's group.
    """
    count, num_stripes = len(numbers), rough.shape[1]
    begins = np.arange(num_stripes) * STRIPE
    lowest, highest = groups.at(begins), groups.at(np.minimum(begins + STRIPE, count) - 1)
    # The products of a linear layer lie with the queries last; reduced as they lie, they take a third of the time.
    top = rough.permute(1, 2, 0).amax(dim=1).T if rough.stride(0) == 1 else rough.amax(dim=2)  # (Q, S)
    if count % STRIPE:
        top[:, -1] = rough[:, -1, : count % STRIPE].amax(dim=1)
    top = top.double()
    if not (top >= _reach(asked, tile, ends, lowest, highest)).any():
        return  # so none of them can raise a floor, either
    # A stripe may have rows of several groups: the widest ends of these hold for it.
    scale, slack = _over(ends.scale, lowest, highest, "max"), _over(ends.slack, lowest, highest, "max")
    scaled = torch.where(top > 0, _over(ends.scale, lowest, highest, "min"), scale) * top
    # Groups of one stripe have one middle.
    asked.candidates.see(tile, ends.middle[:, _of(ends.middle, lowest)] + scaled - slack - ends.share * scaled.abs())
    reach = _reach(asked, tile, ends, lowest, highest)
    queries, stripes = (top >= reach).nonzero().unbind(1)
    inside = rough[queries, stripes]  # (P, STRIPE)
    pairs, inner = (inside >= _below(reach[queries, stripes], inside.dtype)[:, None]).nonzero().unbind(1)
    queries, places = queries[pairs], stripes[pairs] * STRIPE + inner
    of = torch.from_numpy(groups.at(places.clamp(max=count - 1).numpy()))  # places past the end are dropped below
    scaled = ends.scale[queries, of] * inside[pairs, inner].double()
    middle = ends.middle[queries, of] if ends.middle.shape[1] > 1 else ends.middle[queries, 0]
    scores, about = middle + scaled, ends.slack[queries, of] + ends.share * scaled.abs()
    floor = torch.from_numpy(asked.candidates.floor[tile])
    keep = ((scores + about >= floor[queries]) & (places < count)).numpy()
    low, high = (scores - about).numpy()[keep], (scores + about).numpy()[keep]
    asked.candidates.add(tile.start + queries.numpy()[keep], numbers.at(places.numpy()[keep]), low, high)


def _reach(asked: Asked, tile: slice, ends: _Ends, lowest: np.ndarray, highest: np.ndarray) -> torch.Tensor:
    """(Q, S) what a stripe's rough products must reach, and less than it by what rounding may take here."""
    floor = torch.from_numpy(asked.candidates.floor[tile])[:, None]
    reach = (floor - ends.middle - ends.slack) / ends.scale
    return _over(reach - (ends.share + 1e-9) * reach.abs(), lowest, highest, "min")


def _below(reach: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of a shorter type that are no greater than these."""
    if dtype == torch.int32:
        return reach.clamp(-(2.0**31) + 1, 2.0**31 - 1).floor().to(torch.int32)
    return reach.float().nextafter(torch.tensor(-torch.inf)).to(dtype)  # bfloat16: rounded like what it is compared with


def _of(values: torch.Tensor, groups: np.ndarray) -> torch.Tensor:
    """Where the values (Q, G), or (Q, 1) of all, of groups stand."""
    return torch.from_numpy(groups) if values.shape[1] > 1 else torch.zeros(1, dtype=torch.int64)


def _over(values: torch.Tensor, lowest: np.ndarray, highest: np.ndarray, which: str) -> torch.Tensor:
    """(Q, S) or (1, S) the greatest or smallest of values (Q, G) over each stripe's groups."""
    found = values[:, torch.from_numpy(lowest)]
    for more in range(1, int((highest - lowest).max()) + 1):
        other = values[:, torch.from_numpy(np.minimum(lowest + more, highest))]
        found = torch.maximum(found, other) if which == "max" else torch.minimum(found, other)
    return found


class _Across:
    """Queries to multiply blocks with, in the form that is fastest: for many, as the packed weights of a linear layer."""

    def __init__(self, queries: torch.Tensor):
        self.queries = queries
        self._packed: torch.Tensor | None = None
        if len(queries) >= PACKED and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(queries.contiguous(), BLOCK_ROWS)

    def products(self, block: torch.Tensor) -> torch.Tensor:
        """(Q, S, STRIPE) products with a block of whole stripes, as a view."""
        if self._packed is not None:
            found = torch.ops.mkldnn._linear_pointwise(block, self._packed, None, "none", [], "")  # (B, Q)
            return found.view(-1, STRIPE, found.shape[1]).permute(2, 0, 1)
        if len(self.queries) == 1 and self.queries.dtype == torch.float32:
            # Several products of a matrix and a vector use the memory's whole rate where one does not.
            several = block.view(8, -1, block.shape[1])
            return torch.bmm(several, self.queries.T.expand(8, -1, 1)).view(1, -1, STRIPE)
        return (self.queries @ block.T).view(len(self.queries), -1, STRIPE)


def _filled(whole: torch.Tensor, block: np.ndarray, padded: int) -> torch.Tensor:
    """A block as float32, filled up with rows of zeros."""
    if block.dtype == np.float32 and len(block) == padded:
        return readable(block)
    wide = whole[:padded]
    wide[: len(block)] = readable(block)
    wide[len(block) :] = 0
    return wide


def _blocks(rows: Rows | np.ndarray, mask: np.ndarray | None, size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Blocks of the rows that may be chosen, with where they begin and their numbers."""
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        numbers = np.arange(start, stop)
        if mask is None:
            yield start, numbers, rows[start:stop]
        elif (chosen := mask[start:stop]).any():
            yield start, numbers[chosen], rows[start:stop][chosen]
