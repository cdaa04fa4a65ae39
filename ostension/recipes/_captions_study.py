"""The ImageNet-Captions study from start to end: the runs, the line of ordinary models, one record. A rerun goes on.

The line goes through the classifiers trained on labels (own head, original pictures), of every number of pictures and of
steps; effective robustness is what any other model has above it. Its interval is over things drawn with replacement, for all
models, both distributions and the line at once, because all are asked the same.

Details: "points" [{"run", "kind", "head", "pictures", "step", "x", "y", "effective"}], "line" (`Baseline.tree`), "range" the
least and the largest x of the line's models, "kinds" {kind: words}.

Letters: P points, T things, R draws.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension import files
from ostension.config import require
from ostension.errors import DataError
from ostension.evals.effective_robustness import fit_baseline
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric, Record, save_records
from ostension.recipes import imagenet_captions
from ostension.recipes._captions_data import study_set
from ostension.recipes._captions_questions import HEADS
from ostension.runlog import Tracker
from ostension.runtime import numpy_generator
from ostension.shapes import Float
from ostension.train.loop import train
from ostension.train.pretraining import Pretraining

RECORD, RIGHT = "imagenet-captions.json", "right"
PROTOCOL = "imagenet-captions"
# Of the pictures to learn from. The classifiers, which the line goes through, cost half of the others and have three points.
SHARES, LINE_SHARES, SMOKE_SHARES = (0.25, 1.0), (0.25, 0.5, 1.0), (0.5, 1.0)
DRAWS = 1_000
ORDINARY = ("labels", "own")
KINDS = {
    "labels": "labels, cross-entropy",
    "label-captions": "labels as captions, contrastive",
    "captions": "captions, contrastive",
    "labels-both": "labels, cross-entropy, both distributions",
    "captions-both": "captions, contrastive, both distributions",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is asked for: steps of each run, the seed, or the smoke form on shapes, which takes seconds."""

    steps: int = imagenet_captions.STEPS
    seed: int = 0
    smoke: bool = False

    def __post_init__(self):
        require(self.steps >= 2, "--steps", self.steps, "2 or more")

    def runs(self) -> Iterator[tuple[str, str, Pretraining]]:
        """The name, the kind and the settings of each run."""
        most = len(study_set("shapes" if self.smoke else "emoji").training(both=False, pictures=None, seed=0))
        shares: tuple[float, ...]
        for kind in KINDS:
            shares = LINE_SHARES if kind == ORDINARY[0] else SHARES
            if self.smoke:
                shares = SMOKE_SHARES if kind == ORDINARY[0] else SHARES[-1:]
            for share in shares[-1:] if kind.endswith("both") else shares:
                name, pictures = f"imagenet-captions-{kind}", round(share * most)
                if self.smoke:
                    made = imagenet_captions.smoke(name, pictures=pictures, seed=self.seed)
                else:
                    made = imagenet_captions.recipe(name, self.steps, pictures=pictures, seed=self.seed)
                yield f"{kind}-{pictures}", kind, made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One model as it was asked: which pictures it named rightly with one head."""

    run: str
    kind: str
    head: str
    pictures: int
    step: int
    right: np.ndarray


def run_study(config: StudyConfig, folder: Path, trackers: Sequence[Tracker] = ()) -> Record | None:
    """Do what is left in `folder`; the record, or None if a signal asked for a stop.

    Raises:
        ConfigError: if `folder` holds runs of another configuration.
    """
    asked: list[Asked] = []
    shifted = thing = None
    for name, kind, pretraining in config.runs():
        print(f"imagenet-captions: {name}", file=sys.stderr, flush=True)
        if not run_one(pretraining, folder / name, trackers):
            print("imagenet-captions: stopped; the same command goes on from there", file=sys.stderr)
            return None
        batches: Any = pretraining.batches
        study = study_set(batches.data)
        shifted, thing = study.shifted[study.asked], study.thing[study.asked]
        for step in pretraining.train.evaluate_at:
            with np.load(_kept(folder / name, step)) as right:
                asked += [
                    Asked(run=name, kind=kind, head=head, pictures=batches.pictures, step=step, right=right[head])
                    for head in HEADS
                ]
    assert shifted is not None and thing is not None
    facts = {"steps": pretraining.train.steps, "batch_size": batches.batch_size, "data": batches.data}
    record = record_of(asked, shifted, thing, classes=len(study.classes), seed=config.seed, config=facts)
    record = dataclasses.replace(record, hashes={"data": study.fingerprint})
    save_records(folder / RECORD, {PROTOCOL: record})
    return record


def run_one(pretraining: Pretraining, folder: Path, trackers: Sequence[Tracker]) -> bool:
    """Train one model as far as it is not, and keep what it names rightly; whether it is done."""
    steps = pretraining.train.evaluate_at
    if (folder / "model").is_dir() and all(_kept(folder, step).is_file() for step in steps):
        return True
    model = pretraining.initial_model()
    batches, objective = pretraining.batches.build(model), pretraining.objective.build(model)
    assert pretraining.evaluation is not None
    questions: Any = pretraining.evaluation.build(model)

    def evaluate(model: Any, step: int) -> dict[str, float]:
        right = questions.right(model)
        with files.atomic_path(_kept(folder, step)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **right)
        return questions.shares(right)

    return train(objective, batches, pretraining.train, folder, trackers=trackers, evaluate=evaluate).status == "finished"


def record_of(
    asked: Sequence[Asked], shifted: np.ndarray, thing: np.ndarray, *, classes: int, seed: int, config: dict[str, Any]
) -> Record:
    """Every model on the plane, the line, and the mean effective robustness of each kind and head with its interval.

    Args:
        shifted, thing: of each picture that was asked.

    Raises:
        DataError: if ordinary models are fewer than three, or their accuracies have no logit.
    """
    axes = [_by_thing(asked, thing, mask) for mask in (~shifted, shifted)]
    ordinary = np.array([(one.kind, one.head) == ORDINARY for one in asked])
    if ordinary.sum() < 3:
        raise DataError(f"{ordinary.sum()} ordinary models", expected="three or more for a line")
    x, y = (hits.sum(axis=1) / counts.sum() for hits, counts in axes)
    names = [f"{one.run}@{one.step}" for one in asked]
    line = fit_baseline(x[ordinary], y[ordinary], models=tuple(np.array(names)[ordinary].tolist()))
    effective = np.array([line.effective(float(a), float(b)) for a, b in zip(x, y, strict=True)])
    drawn = _drawn_effective(axes, ordinary, seed)
    measured: dict[str, Metric] = {}
    for kind in KINDS:
        for head in HEADS:
            rows = np.array([(one.kind, one.head) == (kind, head) for one in asked])
            if (kind, head) == ORDINARY or not rows.any():
                continue
            low, high = np.quantile(drawn[rows].mean(axis=0), [0.025, 0.975])
            span = Interval(float(low), float(high), 0.95, "bootstrap of things")
            mean = float(effective[rows].mean())
            measured[f"{kind}/{head}"] = Metric(value=mean, count=len(shifted), chance=0.0, interval=span)
    points = [
        {"run": one.run, "kind": one.kind, "head": one.head, "pictures": one.pictures, "step": one.step, "x": float(x[place]),
         "y": float(y[place]), "effective": float(effective[place])}
        for place, one in enumerate(asked)
    ]  # fmt: skip
    return Record(
        protocol=PROTOCOL, subject="the same pictures, labelled or captioned", metrics=measured, config=config, hashes={},
        counts={"original": int((~shifted).sum()), "shifted": int(shifted.sum()), "things": len(np.unique(thing)),
                "classes": classes, "models": len(asked)},
        seeds=(seed,),
        details={"points": points, "line": line.tree(), "range": [float(x[ordinary].min()), float(x[ordinary].max())],
                 "kinds": {kind: KINDS[kind] for kind in KINDS if any(one.kind == kind for one in asked)}},
    )  # fmt: skip


def _by_thing(asked: Sequence[Asked], thing: np.ndarray, mask: np.ndarray) -> tuple[Float[np.ndarray, "P T"], np.ndarray]:
    """Right answers of each model on each thing, and the pictures of each thing, in one distribution."""
    _, places = np.unique(thing, return_inverse=True)
    most = int(places.max()) + 1
    hits = np.stack([np.bincount(places[mask], weights=one.right[mask], minlength=most) for one in asked])
    return hits, np.bincount(places[mask], minlength=most).astype(np.float64)


def _drawn_effective(
    axes: Sequence[tuple[np.ndarray, np.ndarray]], ordinary: np.ndarray, seed: int
) -> Float[np.ndarray, "P R"]:
    """Effective robustness of each model on draws of things with replacement, the line fitted anew in each."""
    things = axes[0][0].shape[1]
    draws = numpy_generator(seed, "things").multinomial(things, np.full(things, 1 / things), size=DRAWS).astype(np.float64).T
    up, over = [], []
    for hits, counts in axes:
        total = counts @ draws
        half = 0.5 / total  # a share of 0 or 1 has no logit
        share = np.clip(hits @ draws / total, half, 1 - half)
        over.append(share)
        up.append(np.log(share) - np.log1p(-share))
    a, b = up[0][ordinary], up[1][ordinary]
    centred = a - a.mean(axis=0)
    slope = (centred * b).sum(axis=0) / np.maximum((centred * centred).sum(axis=0), 1e-12)
    at = b.mean(axis=0) + slope * (up[0] - a.mean(axis=0))
    return over[1] - 1 / (1 + np.exp(-at))


def _kept(folder: Path, step: int) -> Path:
    return folder / RIGHT / f"{step:06d}.npz"
