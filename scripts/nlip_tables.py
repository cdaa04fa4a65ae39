"""The tables of NLIP's study: held-out accuracy of the four, the detector by epoch, the captions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostension.config import from_tree
from ostension.evals.records import Record


def nlip_record(record: dict[str, Any]) -> Record:
    """The study's record in a file of records."""
    (tree,) = record["records"].values()
    return from_tree(Record, tree)


def nlip_table(record: dict[str, Any]) -> str:
    """What the four end at: the mean over seeds, the seeds' own, and the interval of the mean."""
    found = nlip_record(record)
    lines = ["| run | top-1 | each seed | 95 % by pictures | top-5 |", "|---|---|---|---|---|"]
    for arm, rows in found.details["arms"].items():
        first, fifth = found.metrics[f"{arm}/top1"], found.metrics[f"{arm}/top5"]
        each = ", ".join(f"{100 * row['top1']:.1f}" for row in rows)
        assert first.interval is not None
        span = f"{100 * first.interval.low:.1f} to {100 * first.interval.high:.1f}"
        lines.append(f"| {arm} | {100 * first.value:.1f} % | {each} | {span} | {100 * fifth.value:.1f} % |")
    count, config = found.counts, found.config
    return "\n".join([
        *lines, "",
        f"{count['asked']:,} pictures that were not learned, each among {count['candidates']:,} names. Learned: "
        f"{count['learned']:,} pairs, of which {count['planted']:,} have another thing's captions. {config['warmup_steps']} "
        f"steps of warm-up, then {config['steps']} of each run, of {config['batch_size']} pairs; seeds: {len(found.seeds)}.",
    ])  # fmt: skip


def nlip_detector_table(record: dict[str, Any]) -> str:
    """How well noise is found in three of the runs, as they learn; mean over seeds."""
    found = nlip_record(record)
    lines = ["| run | epoch | area under the curve | called noise | precision | recall |", "|---|---|---|---|---|---|"]
    for arm in ("plain", "harmonised", "completed"):
        rows = found.details["curves"][arm]
        for step in sorted({row["step"] for row in rows}):
            if arm != "plain" and step <= found.config["warmup_steps"]:
                continue
            here = [row for row in rows if row["step"] == step]
            name = "warm-up" if step <= found.config["warmup_steps"] else arm
            cells = [_mean([row[key] for row in here], key) for key in ("area", "called", "precision", "recall")]
            lines.append(f"| {name} | {here[0]['epoch']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def nlip_captions_table(record: dict[str, Any]) -> str:
    """How often a synthetic caption is the true name."""
    found = nlip_record(record)
    lines = ["| seed | concepts | true name, noise planted | true name elsewhere | the planted name |", "|---|---|---|---|---|"]
    for row in found.details["captions"]:
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("planted", "clean", "moved"))
        lines.append(f"| {row['seed']} | {row['vocabulary']} | {shares} |")
    return "\n".join(lines)


def _mean(values: list[float | None], key: str) -> str:
    """A share in percent, or an area with two digits; a dash where no seed has one."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.2f}" if key == "area" else f"{100 * np.mean(known):.0f} %"
