"""The search for near hashes, by tables of equal blocks against comparing each with each: processor time and memory.

    python benchmarks/curate_dedup.py --record benchmarks/records/curate_dedup.json

A million random hashes of 64 bits, and beside each of 20,000 of them one that differs in 1 to 6 bits. Comparing each with each
is vectorised, a row against all later ones with the population count of the processor, over a part of the rows; its time for
all is in proportion to the pairs. What the tables find is checked against what was planted, and on a part against each with
each. Memory is what numpy allocates while the search runs, at most.
"""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from _measure import arguments, table, write_record

from ostension.curate.duplicates_groups import Forest, components
from ostension.curate.duplicates_hashes import distinct, near_pairs, rounds_for
from ostension.runtime import numpy_generator

PLANTED_BITS = 6


def hashes(count: int, planted: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes with near ones, in any order; and the two of each planted pair as columns."""
    draw = numpy_generator("benchmark hashes", count)
    base = draw.integers(2**64, size=count - planted, dtype=np.uint64)
    near = base[:planted].copy()
    for place, bits in enumerate(draw.integers(1, PLANTED_BITS + 1, size=planted).tolist()):
        for bit in draw.choice(64, bits, replace=False).tolist():
            near[place] ^= np.uint64(1 << bit)
    mixed = draw.permutation(np.concatenate([base, near]))
    return mixed, np.stack([base[:planted], near], axis=1)


def each_with_each(values: np.ndarray, bits: int, rows: int) -> tuple[int, int]:
    """Pairs that are near, and pairs compared, of the first `rows` values with all later ones."""
    found = compared = 0
    for row in range(rows):
        later = values[row + 1 :]
        found += int((np.bitwise_count(later ^ values[row]) <= bits).sum())
        compared += len(later)
    return found, compared


def searched(values: np.ndarray, bits: int) -> tuple[Forest, int]:
    """The forest of all near pairs, and how many there are."""
    heads, _ = distinct(values)
    forest = Forest()
    for pairs in near_pairs(values[heads], bits):
        forest.add(heads[pairs.a], heads[pairs.b], pairs.distance)
    return forest, forest.added


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gives."""
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


def main() -> None:
    asked = arguments(__doc__, count=(1_000_000, "hashes"), sample=(400, "rows that are compared with all"))
    rows = {}
    values, planted = hashes(asked.count, asked.count // 50)
    part = values[:: max(1, len(values) // 20_000)]
    for bits in (4, PLANTED_BITS, 8):
        tracemalloc.start()  # costs next to nothing: arrays are few and large
        spent, (forest, pairs) = seconds(lambda bits=bits: searched(values, bits))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        brute, (_, compared) = seconds(lambda bits=bits: each_with_each(values, bits, asked.sample))
        whole = brute / compared * math.comb(len(values), 2)
        assert searched(part, bits)[1] == each_with_each(part, bits, len(part))[0]
        edges = forest.edges()
        nodes, groups = components([(edges.a, edges.b)])
        row = f"{len(values):,} hashes, at most {bits} bits"
        rows[row] = {
            "pairs": pairs, "groups": len(np.unique(groups)), "equal blocks": rounds_for(np.unique(values), bits),
            "s": round(spent, 2), "each with each, s": round(whole), "ratio": round(whole / spent),
            "bytes a hash": round(peak / len(values), 1),
        }  # fmt: skip
        if bits >= PLANTED_BITS:
            order = np.argsort(values, kind="stable")
            at = order[np.searchsorted(values, planted, sorter=order)]  # the rows of the planted pairs
            assert np.isin(at, nodes).all(), "a planted pair is missed"
            own = groups[np.searchsorted(nodes, at)]
            assert (own[:, 0] == own[:, 1]).all(), "a planted pair is missed"
    table("near hashes", rows)
    write_record(asked.record, "curate_dedup", {"count": asked.count, "sample": asked.sample}, {"near hashes": rows})


if __name__ == "__main__":
    main()
