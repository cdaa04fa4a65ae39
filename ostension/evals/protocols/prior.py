"""Zero-shot as a prior for few labels: probes that are pulled towards the text classifier, as far as validation wants it.

The paper tried an L2 pull towards the text weights, and tuning drove it to plain zero-shot. Two forms:

- "pull": a probe on unit rows of the joint space whose penalty is ||W - s T||^2 with the text weights T (C,E) and the scale s.
- "offset": a probe beside zero-shot, whose logits are fixed and added, on rows before the projection.

On the same rows both are the same problem: with V = W - s T the first one *is* a probe with the zero-shot logits as offset. The
second form is for rows that see more than the joint space keeps.

The strength is chosen as in `fewshot` (both regimes), on a grid of two points a decade and zero-shot itself, which is the pull
without end; equal ones go to the stronger pull. Beside it stand zero-shot and a probe without prior on the same draws.

Metrics: the task's own at the largest k, "K_shot", and "K_shot_gain" over the better of zero-shot and the plain probe. Details:
"curve" [[k, mean, standard deviation], ...], "plain" of the probe without prior, "zero_shot", "regime", "form", "chosen" [[k,
[strength of each draw, 0 for zero-shot itself]], ...], "at_zero_shot" [[k, share of draws], ...].
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.evals.few_shots import Regime, draws, mean_metric, score_of
from ostension.evals.inputs import Inputs, class_logits
from ostension.evals.protocol import Outcome
from ostension.evals.protocols import fewshot
from ostension.evals.protocols.probe import labelled
from ostension.evals.records import Metric, Record
from ostension.evals.scores import per_sample, score_name, score_value
from ostension.shapes import Bool, Float, Int
from ostension.train.logistic import TOLERANCE
from ostension.train.strength_search import PathProbe, whole_grid

SPLITS = ("train", "test")
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-12, 13))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How many samples, and what the prior acts on.

    Attributes:
        shots: labelled samples a class.
        form: "pull" or "offset", see above.
        regime: what the strength is chosen on, as in `fewshot`.
        draws: how often samples are drawn.
        held_out: in the regime "paper", the share of train that is chosen on where there is no split "val".
        tolerance: of the solver's stop rule.
    """

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    form: Literal["pull", "offset"] = "pull"
    regime: Regime = "paper"
    draws: int = 3
    held_out: float = 0.2
    tolerance: float = TOLERANCE

    def __post_init__(self):
        rising = bool(self.shots) and self.shots[0] >= 1 and list(self.shots) == sorted(set(self.shots))
        require(rising, "shots", list(self.shots), "rising numbers from 1")
        require(self.draws >= 1, "draws", self.draws, "1 or more")
        require(0 < self.held_out < 1, "held_out", self.held_out, "a share between 0 and 1")
        require(self.tolerance > 0, "tolerance", self.tolerance, "a number above 0")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.superclass_of is not None:
        return "its zero-shot logits are pooled ones of another task's classes"
    return fewshot.reason_not(task)


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Scores on the test split by the number of shots, beside zero-shot and plain probes.

    Raises:
        ConfigError: where there are no class texts.
        DataError: for splits without labels, or nothing to choose the strength on.
    """
    task = inputs.task
    sides = {name: _side(inputs, name, config.form) for name in ("train", "val", "test") if name != "val" or inputs.has("val")}
    train, test = sides["train"], sides["test"]
    zero_shot = test.score(task, test.shown)
    seeds = tuple(range(seed, seed + config.draws))
    trials: dict[int, list[Trial]] = {k: [] for k in config.shots}
    for one in seeds:
        for draw in draws(
            train.labels, sides["val"].labels if "val" in sides else None, shots=config.shots, regime=config.regime,
            share=config.held_out, seed=one,
        ):  # fmt: skip
            few, judged = train.take(draw.train), sides[draw.judged_in].take(draw.judged)
            trials[draw.shots].append(trial(task, few, judged, test, tolerance=config.tolerance))
    measured = {
        k: mean_metric(task, [one.value for one in found], np.stack([one.right for one in found]), test.labels, seed=seed)
        for k, found in trials.items()
    }
    plain = {k: [one.plain for one in found] for k, found in trials.items()}
    gains = {
        f"{k}_shot_gain": Metric(value=one.value - max(zero_shot, float(np.mean(plain[k]))), count=one.count, chance=0.0)
        for k, one in measured.items()
    }
    details = {
        "curve": _curve({k: [one.value for one in found] for k, found in trials.items()}), "plain": _curve(plain),
        "zero_shot": zero_shot, "regime": config.regime, "form": config.form,
        "chosen": [[k, [one.strength for one in found]] for k, found in trials.items()],
        "at_zero_shot": [[k, float(np.mean([one.strength == 0 for one in found]))] for k, found in trials.items()],
    }  # fmt: skip
    record = Record(
        protocol="prior", subject=f"{inputs.model_name} on {task.title}",
        metrics={score_name(task): measured[config.shots[-1]], **{f"{k}_shot": one for k, one in measured.items()}, **gains},
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(), seeds=seeds, task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details=details,
        counts={"samples": len(test.labels), "classes": task.num_classes, "train": len(train.labels),
                "val": len(sides["val"].labels) if "val" in sides else 0, "features": test.rows.shape[1]},
    )  # fmt: skip
    said = per_sample(task, trials[config.shots[-1]][0].logits, test.labels, test.groups)
    return Outcome(record=record, samples={"id": np.array(test.ids), **said})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """Samples of one split: (N, D) rows, (N,) labels, (N, C) zero-shot logits, groups and ids."""

    rows: Float[np.ndarray, "N D"]
    labels: Int[np.ndarray, " N"]
    shown: Float[np.ndarray, "N C"]
    groups: dict[str, np.ndarray]
    ids: tuple[str, ...]

    def take(self, chosen: Int[np.ndarray, " n"]) -> Side:
        return Side(
            rows=self.rows[chosen], labels=self.labels[chosen], shown=self.shown[chosen],
            groups={name: values[chosen] for name, values in self.groups.items()}, ids=tuple(self.ids[i] for i in chosen),
        )  # fmt: skip

    def score(self, task: Task, logits: Float[np.ndarray, "N C"]) -> float:
        return score_value(task, logits, self.labels, self.groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One draw: the strength that was chosen (0: zero-shot itself), test logits, score, which are right; the plain score."""

    strength: float
    logits: Float[np.ndarray, "M C"]
    value: float
    right: Bool[np.ndarray, " M"]
    plain: float


def trial(task: Task, few: Side, judged: Side, test: Side, *, tolerance: float = TOLERANCE) -> Trial:
    """A probe with the prior and one without on a few samples, each at the strength that validation wants."""
    probe = PathProbe(few.rows, few.labels, task.num_classes, offset=few.shown, tolerance=tolerance)
    known = {0.0: judged.score(task, judged.shown)}
    known |= {one: judged.score(task, probe.logits(one, judged.rows, judged.shown)) for one in STRENGTHS}
    best = max(known, key=lambda one: (known[one], -one))
    logits = test.shown if best == 0 else probe.logits(best, test.rows, test.shown)
    plain = PathProbe(few.rows, few.labels, task.num_classes, tolerance=tolerance)
    chosen = whole_grid(score_of(task, plain, judged.rows, judged.labels, judged.groups), STRENGTHS)
    return Trial(
        strength=best, logits=logits, value=test.score(task, logits), right=logits.argmax(axis=1) == test.labels,
        plain=test.score(task, plain.logits(chosen.strength, test.rows)),
    )  # fmt: skip


def _side(inputs: Inputs, split: str, form: str) -> Side:
    """The rows that a probe of this form takes, and zero-shot's logits."""
    post = labelled(inputs, split, "post")
    return Side(
        rows=post.unit() if form == "pull" else inputs.features(split, "pre").array(), labels=np.asarray(post.targets),
        shown=class_logits(post.unit(), inputs.classifier(), inputs.scale),
        groups={name: np.asarray(values) for name, values in post.groups.items()}, ids=post.ids,
    )  # fmt: skip


def _curve(values: dict[int, list]) -> list[list]:
    return [[k, float(np.mean(several)), float(np.std(several))] for k, several in values.items()]
