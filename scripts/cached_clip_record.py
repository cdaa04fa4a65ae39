"""Measure cached features of released CLIP models, without any model, and write what came of it.

    python scripts/cached_clip_record.py DATA docs/records/cached-clip.json

DATA holds `clip_cached_features` (image rows of 1,000 photos and rows of COCO's class names, "a NAME", both of OpenAI's
ViT-B/32; two sets of pairs in shops, of other CLIP models) and `flickr8k_1000` (five captions of every photo). Labels are
what the captions mention, by the words in `SAID`; what is in a picture and in no caption counts as absent, so the figures are
lower bounds. The photos' embeddings, labels and captions were made by different people for different ends: whether they belong
together shows in the figures, since one row moved by one place would bring them down to chance.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from ostension import runtime
from ostension.config import to_tree
from ostension.data.task import Task
from ostension.errors import require_extra
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Record
from ostension.files import sha256_file, write_json
from ostension.store import Features

FEATURES, CAPTIONS = "clip_cached_features", "flickr8k_1000/captions_all_8091.parquet"
PHOTOS, NAMES = "openai_vitb32_image_flickr8k_1000.npz", "openai_vitb32_text_classnames.npz"
PAIRS = {
    "shop_pairs": ("clipfamily_unknown_shop_pairs1126.npz", "clothes and their descriptions", "an unknown CLIP"),
    "myntra_pairs": ("openclip_myntra_pairs99.npz", "clothes and their names", "an OpenCLIP model"),
}
MODEL = "ViT-B-32-openai"
LEFT_OUT = ("orange",)  # in captions it is a colour
FEWEST = 10  # photos of a class that is asked for one by one
# Words by which captions speak of COCO's classes, besides the class's own name; plurals are found by themselves.
SAID: dict[str, tuple[str, ...]] = {
    "person": (
        "people", "man", "men", "woman", "women", "boy", "girl", "child", "children", "kid", "baby", "toddler", "guy", "lady",
        "player", "crowd", "couple", "rider", "skier", "snowboarder", "surfer", "skateboarder", "climber", "biker", "cyclist",
    ),
    "bicycle": ("bike", "bmx"), "motorcycle": ("motorbike", "dirtbike", "dirt bike"), "car": ("automobile", "vehicle"),
    "airplane": ("plane", "jet"), "boat": ("kayak", "canoe", "raft", "ship"), "cat": ("kitten",),
    "dog": ("puppy", "puppies", "greyhound", "poodle"),
    "bird": ("seagull", "duck", "goose", "geese"), "horse": ("pony",), "cow": ("bull", "cattle"),
    "frisbee": ("disc",), "skis": ("ski",), "sports ball": ("ball", "soccer ball", "football", "basketball", "tennis ball"),
    "tennis racket": ("racket", "racquet"), "couch": ("sofa",), "tv": ("television",), "cell phone": ("phone", "cellphone"),
    "baseball bat": ("bat",), "baseball glove": ("mitt",), "dining table": ("table",), "surfboard": ("surf board",),
    "skateboard": ("skate board",), "wine glass": ("wine",), "teddy bear": ("stuffed bear",), "donut": ("doughnut",),
    "book": ("magazine",), "handbag": ("purse",), "backpack": ("rucksack",),
}  # fmt: skip


def mentions(captions: tuple[str, ...], name: str) -> bool:
    """Whether a caption speaks of the class."""
    text = " . ".join(captions).lower()
    if name == "dog":  # a dish
        text = re.sub(r"\bhot dogs?\b", "", text)
    words = "|".join(re.escape(word) for word in (name, *SAID.get(name, ())))
    return re.search(rf"\b(?:{words})(?:e?s)?\b", text) is not None


def photos(data: Path) -> tuple[Features, tuple[str, ...], np.ndarray]:
    """The photos whose file is known, with 0 and 1 of each class; class names; rows of "a NAME"."""
    parquet = require_extra("pyarrow.parquet", "data")
    with np.load(data / FEATURES / PHOTOS) as opened:
        rows, files = opened["feats"].astype(np.float32), opened["files"].tolist()
    with np.load(data / FEATURES / NAMES) as opened:
        names, texts = opened["coco_names"].tolist(), opened["coco"].astype(np.float32)
    table = {row["file"]: tuple(row["captions"]) for row in parquet.read_table(data / CAPTIONS).to_pylist()}
    known = [index for index, file in enumerate(files) if file in table]
    kept = [index for index, name in enumerate(names) if name not in LEFT_OUT]
    classes = tuple(names[index] for index in kept)
    said = np.array([[mentions(table[files[index]], name) for name in classes] for index in known])
    ids = tuple(files[index] for index in known)
    captions = tuple(table[file] for file in ids)
    return (
        Features(rows=rows[known], targets=said.astype(np.int64), classes=classes, ids=ids, texts=captions),
        classes,
        texts[kept],
    )


def task_of(name: str, title: str, classes: tuple[str, ...], **settings) -> Task:
    """A task of these classes, asked for as the rows were."""
    return Task(
        name=name, title=title, version=1, classes={one: (one,) for one in classes}, templates=("a {}",),
        licence="research only", citation="Hodosh et al. 2013; class names of Detic's metadata", **settings,
    )  # fmt: skip


def of_photos(data: Path) -> dict[str, Record]:
    """Tagging photos with COCO's names, and naming the one thing in a photo."""
    features, classes, rows = photos(data)
    assert features.targets is not None
    several = task_of("photos-tags", "photos tagged with COCO's names", classes, kind="multilabel", metric="map_11_point")
    prompts = {f"a {name}": row for name, row in zip(classes, rows, strict=True)}
    options = {"prompt_rows": prompts, "scale": 100.0, "model_name": MODEL}
    found = {"tags": run("zeroshot", ArrayInputs(several, {"test": features}, **options))}
    # Photos of one thing (people aside) of a class with some photos; the model chooses among all names but "person".
    things = [index for index, name in enumerate(classes) if name != "person"]
    said = features.targets[:, things]
    alone = said.sum(axis=1) == 1
    alone &= said[:, said[alone].sum(axis=0) >= FEWEST].any(axis=1)
    one = features.take(alone)
    names = tuple(classes[index] for index in things)
    single = Features(rows=one.rows, targets=said[alone].argmax(axis=1), classes=names, ids=one.ids)
    task = task_of("photos-things", "the one thing in a photo, of 78", names)
    found["things"] = run("zeroshot", ArrayInputs(task, {"test": single}, **options))
    return found


def of_pairs(data: Path) -> dict[str, Record]:
    """Retrieval between pictures and texts of shops, both ways."""
    found = {}
    for name, (file, title, model) in PAIRS.items():
        with np.load(data / FEATURES / file) as opened:
            images, texts = opened["image"].astype(np.float32), opened["text"].astype(np.float32)
        captions = tuple((f"text {index}",) for index in range(len(texts)))  # their rows are known, not their words
        task = Task(
            name=name, title=title, version=1, kind="retrieval", metric="recall_at_k", templates=("{}",), captions_per_image=1,
            licence="unknown", citation=file,
        )  # fmt: skip
        rows = {said[0]: row for said, row in zip(captions, texts, strict=True)}
        inputs = ArrayInputs(task, {"test": Features(rows=images, texts=captions)}, prompt_rows=rows, model_name=model)
        found[name] = run("retrieval", inputs, prefix="")
    return found


def run(protocol: str, inputs: ArrayInputs, **settings) -> Record:
    """The record of a protocol with these settings."""
    module = load_protocol(protocol)
    return module.run(inputs, module.Config(**settings), seed=0).record


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name in ("data", "record"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    records = of_photos(asked.data) | of_pairs(asked.data)
    files = [asked.data / FEATURES / file for file in (PHOTOS, NAMES, *(file for file, _, _ in PAIRS.values()))]
    write_json(asked.record, {
        "records": {name: to_tree(record) for name, record in records.items()},
        "files": {path.name: sha256_file(path) for path in [*files, asked.data / CAPTIONS]}, "versions": runtime.versions(),
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
