"""Text4Vis on moving pictures made of real photos: which frozen classifier, and what the transformer over frames is for.

    python scripts/text4vis_study.py DATA WORK MODEL            # every fit that is not there yet; under an hour on one core
    python scripts/text4vis_study.py DATA WORK MODEL --record docs/records/text4vis.json     # what is there, as a record

DATA is the folder of packs that `OSTENSION_DATA` names, MODEL a model's folder; it should know the names, as "lite0" of
`ostension adapt study` does. A video is a photo of Tiny ImageNet that moves over a plain colour, 16 frames of 96 x 96. Photos
to train on and to test on are others.

    objects   ten objects, each in any of the ways to move: what is seen decides, as on Kinetics
    motions   six ways to move x two objects: left and right, up and down, growing and shrinking are the same frames in the
              other order, so that a mean over frames cannot reach more than a half

`frozen` trains a transformer over kept features of frames, `trained` the tower with the mean over frames. Every classifier gets
the same training; nothing is chosen.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

import ostension
from ostension.adapt.base import METHODS
from ostension.config import from_tree, to_tree
from ostension.evals.adaptation import ZERO_SHOT, Plan
from ostension.evals.adaptation_runs import run_all
from ostension.evals.records import save_records
from ostension.evals.results import Results
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.runtime import numpy_generator, set_threads
from ostension.store import Store

MOTIONS = {
    "left": "moving to the left", "right": "moving to the right", "up": "moving up", "down": "moving down",
    "grow": "growing", "shrink": "shrinking",
}  # fmt: skip
OBJECTS = {
    "acorn": "acorn", "banana": "banana", "basketball": "basketball", "king_penguin": "king penguin", "lemon": "lemon",
    "sports_car": "sports car", "teapot": "teapot", "tractor": "tractor", "umbrella": "umbrella", "volleyball": "volleyball",
}  # fmt: skip
MOVED = ("king_penguin", "lemon")
# Videos a class: motions are told apart by order alone, which takes more of them.
SPLITS = {"objects": {"train": 8, "test": 8}, "motions": {"train": 48, "test": 16}}
SIDE, FRAMES = 96, 16
CLASSIFIERS = ("text", "random", "lda", "orthonormal")
SEEDS = (1, 2, 3)
TEMPLATE = "a video of a {}."
# Of every part: the task, what is trained at which rate (the tower's is a tenth), and with which classifiers.
PARTS: dict[str, dict[str, Any]] = {
    "objects-frozen": {"task": "objects", "pooling": "transformer", "tower": "frozen", "rate": 1e-3, "epochs": 30},
    "motions-frozen": {"task": "motions", "pooling": "transformer", "tower": "frozen", "rate": 1e-3, "epochs": 60},
    "motions-mean": {
        "task": "motions",
        "pooling": "none",
        "tower": "frozen",
        "rate": 1e-3,
        "epochs": 60,
        "classifiers": ("text", "lda"),
    },
    "objects-trained": {
        "task": "objects",
        "pooling": "none",
        "tower": "trained",
        "rate": 1e-3,
        "epochs": 4,
        "shots": 4,
        "classifiers": ("text", "lda", "random"),
    },
}


def classes_of(task: str) -> dict[str, str]:
    """Label key -> class name."""
    if task == "objects":
        return OBJECTS
    return {f"{move}_{key}": f"{OBJECTS[key]} {MOTIONS[move]}" for key in MOVED for move in MOTIONS}


def make(data: Path, work: Path) -> None:
    """The videos of both tasks as animated WebP, and their records."""
    table = parquet.read_table(data / "tiny_imagenet" / "tiny_imagenet_val10k_train50pc.parquet")
    keys = {name: key for key, name in OBJECTS.items()}
    photos: dict[tuple[str, str], list[bytes]] = {}
    for row in table.to_pylist():
        key = keys.get(row["label"].partition(",")[0])
        if key is not None:
            photos.setdefault((key, row["split"]), []).append(row["image"])
    for task in ("objects", "motions"):
        classes = classes_of(task)
        if not (work / f"{task}.toml").exists():
            for label in classes:
                for split, count in SPLITS[task].items():
                    folder = work / "videos" / task / split / label
                    folder.mkdir(parents=True, exist_ok=True)
                    for number in range(count):
                        moving = made(photos, task, label, split, number)
                        (folder / f"{number:02}.webp").write_bytes(moving)
            (work / f"{task}.toml").write_text(record_of(task, classes), encoding="utf-8")


def made(photos: dict[tuple[str, str], list[bytes]], task: str, label: str, split: str, number: int) -> bytes:
    """One video: photo, colour, pace and place are functions of its name."""
    drawn = numpy_generator(0, "text4vis", task, label, split, number)
    motion, key = label.split("_", 1) if task == "motions" else (str(drawn.choice(list(MOTIONS))), label)
    pool = photos[key, "val" if split == "test" else "train"]
    photo = Image.open(io.BytesIO(pool[int(drawn.integers(len(pool)))])).convert("RGB")
    colour = tuple(int(value) for value in drawn.integers(40, 216, size=3))
    share, reach, across = drawn.uniform(0.5, 0.7), drawn.uniform(0.25, 0.45), drawn.uniform(-0.1, 0.1)
    frames = []
    for moment in np.linspace(-1, 1, FRAMES):
        sign = -1 if motion in ("left", "up", "shrink") else 1
        x, y, size = across, across, share
        if motion in ("left", "right"):
            x = sign * moment * reach
        elif motion in ("up", "down"):
            y = sign * moment * reach
        else:
            size = share * (1 + sign * moment * reach)
        frames.append(pasted(photo, colour, x, y, size))
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=60, quality=90)
    return buffer.getvalue()


def pasted(photo: Image.Image, colour: tuple[int, ...], x: float, y: float, size: float) -> Image.Image:
    """The photo on a colour, its middle at (x, y) of the side from the middle, its long side `size` of it."""
    long = max(8, round(size * SIDE))
    scale = long / max(photo.size)
    small = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))), Image.Resampling.BICUBIC)
    frame = Image.new("RGB", (SIDE, SIDE), colour)
    frame.paste(small, (round((0.5 + x) * SIDE - small.width / 2), round((0.5 + y) * SIDE - small.height / 2)))
    return frame


def record_of(task: str, classes: dict[str, str]) -> str:
    lines = [
        f'title = "Moving photos: {task}"', "version = 1", 'kind = "video"', 'metric = "accuracy"',
        f'templates = ["{TEMPLATE}"]', 'licence = "ImageNet terms (non-commercial research)"', 'citation = "made here"',
        "[classes]",
        *(f'{key} = ["{name}"]' for key, name in classes.items()),
    ]  # fmt: skip
    for split, count in SPLITS[task].items():
        lines += [f"[splits.{split}]", f"count = {count * len(classes)}"]
    return "\n".join([*lines, "[[sources]]", 'kind = "folder"', f'path = "videos/{task}"', ""])


def config_of(part: dict[str, Any], classifier: str) -> Any:
    """The method's settings: the published ones where nothing else is said."""
    method = METHODS.load("text4vis")
    tree = to_tree(method.Config())
    frozen = part["tower"] == "frozen"
    tree |= {
        "classifier": classifier, "template": TEMPLATE, "pooling": part["pooling"], "tower": part["tower"],
        "layers": 2, "shrinkage": 0.1 if classifier == "lda" else 0.0, "warmup_epochs": 1,
    }  # fmt: skip
    tree["clip"]["frames"] = 8 if frozen else 4
    batch = 32 if frozen else 8
    tree["recipe"] |= {"epochs": part["epochs"], "batch_size": batch, "lr": part["rate"], "views": 1}
    # Left must stay left, and what moves must stay in the picture.
    tree["recipe"]["crop"] |= {"mirror": False, "scale": [0.6, 1.0]}
    return from_tree(method.Config, tree, source=f"the study's {classifier}")


def fits(work: Path, model: Any, store: Store) -> None:
    """All fits on their tasks; what is recorded is kept."""
    embedder = Embedder(model, store, name=model.config.name)
    for name, part in PARTS.items():
        splits, shots = TaskSplits(str(work / f"{part['task']}.toml")), part.get("shots", 0)
        run(work / "results" / name / "zero-shot", [Plan(method=ZERO_SHOT, shots=0)], splits, embedder)
        for classifier in part.get("classifiers", CLASSIFIERS):
            config = config_of(part, classifier)
            plans = [Plan(method="text4vis", config=config, shots=shots, seed=seed) for seed in SEEDS]
            run(work / "results" / name / classifier, plans, splits, embedder)


def run(folder: Path, plans: list[Plan], splits: TaskSplits, embedder: Embedder) -> list[Any]:
    found = []
    for step in run_all(plans, splits, embedder, Results(folder)):
        if isinstance(step, str):
            raise SystemExit(step)
        found_score = 100 * step.record.metrics["accuracy"].value
        print(f"{folder} seed {step.record.seeds[0]}: {found_score:.1f} % ({step.seconds:.0f} s)", flush=True)
        found.append(step)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=str)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    set_threads(1)
    if asked.record is None:
        asked.work.mkdir(parents=True, exist_ok=True)
        make(asked.data, asked.work)
        fits(asked.work, ostension.load(asked.model, device="cpu", dtype="float32"), Store(asked.work / "store"))
        return 0
    records = {}
    for name in PARTS:
        for folder in sorted((asked.work / "results" / name).glob("*")):
            for result in Results(folder):
                records[f"{name}/{folder.name}/seed{result.record.seeds[0]}"] = result.record
    save_records(asked.record, records)
    print(json.dumps({"records": len(records)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
