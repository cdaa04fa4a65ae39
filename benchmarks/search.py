"""Exact search against faiss flat: the same rows and queries in one run, taking turns.

Rows are around centres, as embeddings are, and of unit length. `faiss` is IndexFlatIP in float32; `float32` is our search with
a first pass in float32, `codes` with one in whole numbers of 8 bits; both rank by products in float64, and their answers are
compared for every query. Ratios are of processor time, above 1 where ours is faster.

    python benchmarks/search.py [--rows 1000000] [--width 512] [--threads 1] [--batches 1,16,256,1024] [--record FILE]

What was measured before of as many rows, with other threads or for other batches, stays in the record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from _measure import arguments, interleaved, table, write_record

from ostension.store.codes import Codes
from ostension.store.exact import search

BATCHES = (1, 16, 256, 1024)
K = 10


def rows_around_centres(count: int, width: int, seed: int) -> np.ndarray:
    """(N, E) unit rows around a common mean and 200 centres; queries of another seed are around the same ones."""
    centres = 0.5 * np.random.default_rng(0).standard_normal((200, width), dtype=np.float32)
    centres += np.random.default_rng(1).standard_normal(width, dtype=np.float32)
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, width), dtype=np.float32)
    for start in range(0, count, 65536):
        part = rows[start : start + 65536]
        part += centres[generator.integers(0, len(centres), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def before(record: Path | None, settings: dict) -> dict:
    """What a record has of the same settings."""
    if record is None or not record.is_file():
        return {}
    found = json.loads(record.read_text(encoding="utf-8"))
    return found["figures"] if found["settings"] == settings else {}


def main() -> None:
    options = {"rows": (1_000_000, "rows"), "width": (512, "numbers a row"), "batches": ("", "sizes of batches, with commas")}
    args = arguments(__doc__, **options)
    faiss.omp_set_num_threads(args.threads)
    rows = rows_around_centres(args.rows, args.width, 2)
    flat = faiss.IndexFlatIP(args.width)
    flat.add(rows)
    began = time.process_time()
    codes = Codes.of(rows)
    made = time.process_time() - began
    longest: dict[int, float] = {}
    figures: dict[str, dict[str, float]] = {}
    batches = tuple(int(size) for size in args.batches.split(",")) if args.batches else BATCHES
    for size in batches:
        queries = rows_around_centres(size, args.width, 3)
        plain, coded = (search(rows, queries, K, codes=one, longest=longest) for one in (None, codes))
        assert np.array_equal(plain.rows, coded.rows) and np.array_equal(plain.scores, coded.scores)
        agree = float(np.mean(flat.search(queries, K)[1] == plain.rows))
        cases: dict[str, Callable[[], object]] = {
            "faiss": lambda queries=queries: flat.search(queries, K),
            "float32": lambda queries=queries: search(rows, queries, K, longest=longest),
            "codes": lambda queries=queries: search(rows, queries, K, codes=codes),
        }
        took = interleaved(cases, args.rounds if size < 1024 else max(1, args.rounds - 1))
        figures[f"{size} queries"] = {
            "faiss ms": 1000 * took["faiss"],
            "float32 ms": 1000 * took["float32"],
            "codes ms": 1000 * took["codes"],
            "x float32": took["faiss"] / took["float32"],
            "x codes": took["faiss"] / took["codes"],
            "same as faiss": agree,
        }
        print(size, figures[f"{size} queries"], flush=True)
    table(f"exact search in {args.rows:,} x {args.width}, k = {K}, {args.threads} threads", figures)
    print(f"codes were made in {made:.1f} s of processor time")
    settings = {"rows": args.rows, "width": args.width, "k": K}
    title = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    every = before(args.record, settings)
    every[title] = dict(sorted({**every.get(title, {}), **figures}.items(), key=lambda entry: int(entry[0].split()[0])))
    write_record(args.record, "search", settings, dict(sorted(every.items())))


if __name__ == "__main__":
    main()
