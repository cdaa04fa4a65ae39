"""The sub-command `ostension eval overlap check`: how well copies of one's own pictures are found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from ostension.errors import UsageError

_COLUMNS = {
    "accuracy": "original found", "average_precision": "average precision", "recall_at_99": "recall at 99 % precision",
    "threshold_at_99": "threshold for it",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Say how well a detector finds copies of your own pictures, beside raw pixels and the perceptual hash.

    Pictures are altered on purpose (crop, stretch, turn, resize, colours, JPEG) and looked for: among all originals, and among
    strangers, with the precision and recall of every threshold.

    Example:
      ostension eval overlap check my-pictures --detector runs/detector/model --model my-clip

    Args:
        pictures: A folder, tar shards, Parquet, a table, an npz, or emoji:SPLIT.
        detector: Folder of a trained detector; without one, only pixels and hash are measured.
        model: Also measure this image-text model's embeddings, which know what a picture shows but not which one it is.
        count: Pictures to draw.
        seed: Of the draw and of the changes.
        output: File for the records.
        json: Print the records as JSON instead of a table.
        device: Where to compute: auto, cpu, cuda, cuda:N.
    """

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional]
    detector: Path | None = None
    model: str | None = None
    count: int = 1000
    seed: int = 0
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    json: bool = False
    device: str = "auto"

    def run(self) -> int:
        from ostension.cli._tables import text_table
        from ostension.config import to_tree
        from ostension.data.pictures import open_pictures
        from ostension.evals.planted_copies import encoder_rows, hash_rows, measure, pixel_rows, plant
        from ostension.evals.records import save_records
        from ostension.formats.duplicate_detector import load_detector
        from ostension.formats.load import load
        from ostension.image.copies import CopyConfig
        from ostension.model.fingerprint import fingerprint

        if not self.pictures:
            raise UsageError("no pictures are given", expected="a folder, tar shards, Parquet, a table, an npz, or emoji:SPLIT")
        source = open_pictures(self.pictures)
        planted = plant(source, self.count, CopyConfig(), seed=self.seed)
        facts = {"data": source.fingerprint()}
        records = {}
        if self.detector is not None:
            detector = load_detector(self.detector, device=self.device)
            known = {**facts, "weights": fingerprint(detector)}
            records["detector"] = measure(planted, encoder_rows(detector), "detector", facts=known, seed=self.seed)
        if self.model is not None:
            model = load(self.model, device=self.device)
            known = {**facts, "weights": fingerprint(model)}
            records["model"] = measure(planted, encoder_rows(model), "model", facts=known, seed=self.seed)
        for name, encode in (("pixels", pixel_rows), ("perceptual hash", hash_rows)):
            records[name] = measure(planted, encode, name, facts=facts, seed=self.seed)
        if self.output is not None:
            save_records(self.output, records)
        if self.json:
            print(json.dumps(to_tree(records), indent=2))
            return 0
        rows = [[name, *(_share(made.metrics.get(key)) for key in _COLUMNS)] for name, made in records.items()]
        print(f"{len(planted.originals):,} pictures, a copy of each")
        print(text_table(["", *_COLUMNS.values()], rows))
        return 0


def _share(metric: Any) -> str:
    return "" if metric is None else f"{metric.value:.3f}"
