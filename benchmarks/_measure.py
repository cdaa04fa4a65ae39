"""Measuring for benchmarks: processor time, interleaved, least of several rounds; the peak to compare with; the record."""

from __future__ import annotations

import argparse
import functools
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ostension import runtime

Case = Callable[[], object]


def arguments(description: str, **options: tuple[object, str]) -> argparse.Namespace:
    """The command line: `--record FILE`, `--rounds`, `--threads`, and `options` as name -> (default, help)."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n")[0])
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one gives steady figures on a shared machine")
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=text)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def interleaved(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Seconds of processor time (of all threads) of each case, the least of `rounds` rounds that take turns."""
    best = dict.fromkeys(cases, float("inf"))
    for name in cases:
        cases[name]()  # first calls allocate and build kernels
    for _ in range(rounds):
        for name, case in cases.items():
            gc.collect()
            start = time.process_time()
            case()
            best[name] = min(best[name], time.process_time() - start)
    return best


def matmul_peak(dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOP per second of processor time of the best of a few large linear layers: what this machine's products can reach."""
    rates = []
    for rows, inner, outer in ((1024, 768, 3072), (2048, 512, 2048), (1024, 1024, 1024)):
        x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # the fastest form of a weight
        call = functools.partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
        rates.append(2 * rows * inner * outer / interleaved({"packed": call}, rounds)["packed"])
    return max(rates)


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print `rows` (name -> column -> value)."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}")
    print(f"{'':42s}" + "".join(f"{column:>16s}" for column in columns))
    for name, row in rows.items():
        print(f"{name:42s}" + "".join(f"{row[column]:16.4g}" if column in row else " " * 16 for column in columns))


def write_record(path: Path | None, name: str, settings: dict, figures: dict) -> None:
    """Write the figures as JSON, with what they were measured on."""
    if path is None:
        return
    machine = {"processor": runtime.cpu_name(), "features": sorted(runtime.cpu_features()), "threads": torch.get_num_threads()}
    record = {"benchmark": name, "settings": settings, "machine": machine, "versions": runtime.versions(), "figures": figures}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {path}")
