"""Measure what `ostension curate dedup` finds of copies planted among real pictures; writes docs/records/dedup.json.

    python scripts/measure_dedup.py --detector runs/detector/model --pictures "photos=PHOTOS.parquet" "objects=OBJECTS.parquet"

Of some pictures a copy is planted for each kind of change (`image.copies`, besides the same bytes, the same pixels as PNG, and
a mirrored one); then the stage runs, and its thresholds are moved by decisions. A copy is found if it is in one group with its
own original. A stranger is lost if another picture than a copy of it stays in its place; some sets hold near ones of
their own, so that is an upper bound.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ostension import runtime
from ostension.curate.candidates import describe
from ostension.curate.duplicates_review import decide, samples_of
from ostension.curate.run import begin, run_stage
from ostension.curate.stages.dedup import Config
from ostension.curate.work import Entry, Work, read_part
from ostension.data.pairs import PairSource, image_digest
from ostension.data.pictures import open_pictures
from ostension.files import write_json
from ostension.image.copies import KINDS, CopyConfig, altered_copy
from ostension.image.decode import open_image
from ostension.runtime import numpy_generator

OUTPUT = Path(__file__).parents[1] / "docs" / "records" / "dedup.json"
BITS, COSINES = (2, 4, 6, 8, 10), (0.95, 0.9, 0.85, 0.8)
CHANGES = ("bytes", "pixels", *KINDS, "mirror")


def plant(source: PairSource, path: Path, count: int, copied: int) -> int:
    """A shard of at most `count` pictures, each file once, and for each of the first ones a copy by each change; how many."""
    chosen: dict[int, int] = {}  # place by digest
    for place in numpy_generator("planted", "dedup").permutation(len(source)).tolist():
        if len(chosen) < count:
            chosen.setdefault(image_digest(source.read(place).image), place)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, image: bytes, caption: str) -> None:
            for ending, data in (("png", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        for number, place in enumerate(chosen.values()):
            image = source.read(place).image
            add(f"{number:05d}-original", image, f"picture {number}")
            for change in CHANGES if number < copied else ():
                add(f"{number:05d}-{change}", changed(image, change, number), f"PICTURE {number}")
    return len(chosen)


def changed(image: bytes, change: str, number: int) -> bytes:
    """A copy, by one change, as PNG; or the same bytes."""
    if change == "bytes":
        return image
    picture = open_image(image)
    if change == "mirror":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif change != "pixels":
        picture = altered_copy(picture, CopyConfig().only(change), numpy_generator("planted copy", number, change))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def found(work: Work, entry: Entry) -> dict[str, Any]:
    """The share of each kind of copy that is with its original, and strangers that were lost."""
    rows = {}
    for part in range(work.num_parts):
        table = read_part(entry.part(part), ["row", "dropped", "group", "kept"]).to_pylist()
        rows |= {part * work.facts.part_size + row["row"]: row for row in table}
    names = {number: sample.key.rpartition("/")[2] for number, sample in samples_of(work, list(rows)).items()}
    group = {names[number]: row["group"] for number, row in rows.items()}
    shares = {}
    for change in CHANGES:
        copies = [name for name in group if name.endswith(f"-{change}")]
        hits = [group[name] is not None and group[name] == group[f"{name[:5]}-original"] for name in copies]
        shares[change] = sum(hits) / len(hits)
    lost = sum(
        row["dropped"] is not None and names[number].endswith("original") and names[row["kept"]][:5] != names[number][:5]
        for number, row in rows.items()
    )
    return {**{name: round(share, 4) for name, share in shares.items()}, "strangers lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--detector", required=True)
    parser.add_argument("--pictures", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--copied", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    for text in asked.pictures:
        title, _, where = text.partition("=")
        source = open_pictures(where)
        with tempfile.TemporaryDirectory() as folder:
            shard = Path(folder) / "planted.tar"
            drawn = plant(source, shard, asked.count, asked.copied)
            made = figures[f"{title}, {drawn:,} pictures, {asked.copied:,} copied"] = {}
            rows = {"rules": ("bytes", "pixels"), "detector": asked.detector, "threshold": 1.0, "look_threshold": min(COSINES)}
            for name, settings in (("hash", {"bits": 0, "look_bits": max(BITS)}), ("detector", rows)):
                work = begin(Path(folder) / name, describe([os.fspath(shard)], part_size=5000))
                run_stage(work, "dedup", Config(**settings), workers=asked.workers)
                for level in BITS if name == "hash" else COSINES:
                    how = {"bits": level} if name == "hash" else {"threshold": level}
                    row = f"hash, at most {level} bits" if name == "hash" else f"detector, cosine {level:g} and above"
                    made[row] = found(work, decide(work, **how))
                    print(title, row, json.dumps(made[row]), flush=True)
    machine = {"processor": runtime.cpu_name(), "features": sorted(runtime.cpu_features()), "threads": 1}
    settings = {"count": asked.count, "copied": asked.copied}
    write_json(
        OUTPUT, {"study": "dedup", "settings": settings, "machine": machine, "versions": runtime.versions(), "figures": figures}
    )


if __name__ == "__main__":
    main()
