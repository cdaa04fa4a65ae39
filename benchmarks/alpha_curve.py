"""An 11-point alpha curve of a head on a frozen tower against one evaluation of that head.

The published way evaluates each point of the line as a model of its own, which costs eleven. Here one pass over the rows serves
all. "from pictures": JPEG files through ViT-B/32, random weights, nothing kept. "from kept rows": rows of pictures and prompts
that are there already, so that little is left besides the products, of one head or of both.

Seconds of processor time, one thread, least of the rounds, which take turns; "x one evaluation" is the ratio in the same run. A
run ends with an error where the curve's ends are not the scores of zero-shot and of the predictor.

    python benchmarks/alpha_curve.py [--pictures 16] [--rows 10000] [--record FILE]
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import _measure
import numpy as np
import torch
from PIL import Image

from ostension.adapt import probe
from ostension.cli.main import main as command
from ostension.evals.adapt_curve import ALPHAS, adapt_curve
from ostension.evals.answers import logits_of
from ostension.evals.scores import score_name, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.runtime import numpy_generator, torch_generator
from ostension.store import Store

WIDTH, SIDE = 512, 320
CLASSES = (10, 100, 1000)
TASK = """title = "made"
version = 1
metric = "accuracy"
templates = ["a photo of a {{}}."]
licence = "-"
citation = "-"
[splits.test]
count = {count}
[[sources]]
kind = "npz"
path = "rows-{classes}.npz"
embeddings = "{{split}}_embeddings"
label = "{{split}}_labels"
[classes]
{names}
"""


def head(model: CLIP, names: tuple[str, ...]) -> Predictor:
    """A head of random weights, as a probe on unit embeddings would have."""
    made = probe.Probe(model, probe.Config(level="post"), names)
    made.put(torch.randn(len(names), WIDTH, generator=torch_generator("head")), torch.zeros(len(names)))
    return made.predictor()


def evaluation(predictor: Predictor, splits: TaskSplits, embedder: Embedder, store: Path | None = None) -> float:
    """The score of one predictor."""
    with kept(embedder, store):
        data = splits.split("test")
        found = logits_of(predictor, data, embedder)
        assert data.targets is not None
        return scores(splits.task, found, data.targets, data.groups)[score_name(splits.task)].value


def curve(predictor: Predictor, splits: TaskSplits, embedder: Embedder, store: Path | None = None) -> list[float]:
    """The scores of eleven points."""
    with kept(embedder, store):
        record = adapt_curve(predictor, splits, embedder)
    return next(iter(record.details["scores"].values()))


@contextlib.contextmanager
def kept(embedder: Embedder, store: Path | None) -> Iterator[None]:
    """With a store, or without one a new one."""
    with tempfile.TemporaryDirectory() as folder:
        embedder.store = Store(store or folder)
        yield


def of_pictures(folder: Path, count: int) -> TaskSplits:
    """JPEG files of four classes."""
    for index in range(count):
        path = folder / "pictures" / f"class {index % 4}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = numpy_generator("pictures", index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE)).save(path, quality=90)
    with contextlib.redirect_stdout(io.StringIO()):
        command(["task", "new", str(folder / "pictures"), "-o", str(folder / "pictures.toml")])
    return TaskSplits(folder / "pictures.toml")


def of_rows(folder: Path, count: int, classes: int) -> TaskSplits:
    """Ready embeddings."""
    generator = numpy_generator("rows", classes)
    np.savez(
        folder / f"rows-{classes}.npz", test_embeddings=generator.standard_normal((count, WIDTH), dtype=np.float32),
        test_labels=np.arange(count) % classes,
    )  # fmt: skip
    names = "\n".join(f'{index} = "class {index}"' for index in range(classes))
    path = folder / f"rows-{classes}.toml"
    path.write_text(TASK.format(count=count, classes=classes, names=names), encoding="utf-8")
    return TaskSplits(path)


def compared(
    predictor: Predictor, splits: TaskSplits, model: CLIP, rounds: int, store: Path | None = None
) -> dict[str, dict[str, float]]:
    """Seconds of one evaluation and of the curve."""
    embedder = Embedder(model, Store("unused"))  # its hash of the weights is taken once
    splits.split("test")  # read before anything is timed
    one = functools.partial(evaluation, predictor, splits, embedder, store)
    line = functools.partial(curve, predictor, splits, embedder, store)
    start = functools.partial(evaluation, model.classifier(predictor.class_names, ("a photo of a {}.",)), splits, embedder)
    if [(found := line())[0], found[-1]] != [start(), one()]:
        raise SystemExit("the ends of the curve are not the scores of zero-shot and of the predictor")
    spent = _measure.interleaved({"one evaluation": one, "curve of 11": line}, rounds)
    return {name: {"s": seconds, "x one evaluation": seconds / spent["one evaluation"]} for name, seconds in spent.items()}


def main() -> None:
    options = _measure.arguments(__doc__ or "", pictures=(16, "pictures"), rows=(10_000, "rows of embeddings"))
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = CLIP(preset("ViT-B-32"), seed=0).eval()
        splits = of_pictures(folder, options.pictures)
        predictor = head(model, tuple(f"class {index}" for index in range(4)))
        for key, row in compared(predictor, splits, model, options.rounds).items():
            figures[f"from pictures, 4 classes: {key}"] = row
        small = CLIP(dataclasses.replace(preset("tiny-vit"), embed_dim=WIDTH), seed=0).eval()
        for classes in CLASSES:
            predictor = head(small, tuple(f"class {index}" for index in range(classes)))
            splits = of_rows(folder, options.rows, classes)
            for key, row in compared(predictor, splits, small, options.rounds, folder / "store").items():
                figures[f"from kept rows, {classes} classes: {key}"] = row
    _measure.table("alpha_curve", figures)
    settings = {"pictures": options.pictures, "side": SIDE, "rows": options.rows, "width": WIDTH, "points": len(ALPHAS)}
    _measure.write_record(options.record, "alpha_curve", settings, {"alpha_curve": figures})


if __name__ == "__main__":
    main()
