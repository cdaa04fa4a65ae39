"""Run the recipe `lit` on photos with captions and write what came of it on the photos that it did not see.

    python scripts/lit_record.py PHOTOS.parquet RUN_FOLDER FEATURE_FOLDER docs/records/lit.json

The first 800 pairs train, the 200 after them are searched: image to text over their captions, text to image over them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from ostension import runtime
from ostension.config import to_tree
from ostension.data.open import open_pairs
from ostension.evals.retrieval import retrieval
from ostension.files import write_json
from ostension.formats.load import load
from ostension.model.fingerprint import fingerprint
from ostension.recipes import lit

HELD_OUT = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name in ("photos", "run", "features", "record"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    settings = {"batches.data": str(asked.photos), "batches.cache": str(asked.features)}
    started = time.process_time()
    result = lit.recipe().changed(settings).run(asked.run)
    trained = time.process_time() - started
    assert result.model_folder is not None
    model = load(result.model_folder, device="cpu", dtype="float32")
    source = open_pairs(str(asked.photos))
    pairs = [source.read(index) for index in range(lit.PHOTOS, lit.PHOTOS + HELD_OUT)]
    images = model.embed_images([pair.image for pair in pairs]).numpy()
    texts = model.embed_texts([text for pair in pairs for text in pair.texts]).numpy()
    groups = np.arange(HELD_OUT)
    record = retrieval(
        images, texts, groups, np.repeat(groups, [len(pair.texts) for pair in pairs]), subject="lit-lite0-minilm",
        config={"recipe": "lit", "steps": lit.STEPS, "batch_size": lit.BATCH, "photos": lit.PHOTOS, "image_size": lit.SIDE},
        hashes={"data": source.fingerprint(), "model": fingerprint(model)},
    )  # fmt: skip
    write_json(asked.record, {"record": to_tree(record), "cpu_seconds": round(trained, 1), "versions": runtime.versions()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
