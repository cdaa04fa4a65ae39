"""ELEVATER: zero-shot, then tuned probes on 5, 20, 50 and all images a class, three draws each.

The head starts at random, at the class texts, or merged with the projection; settings are searched for automatically; the
prompts may carry knowledge. See `evals.elevater` for the parts and for its two modes; a result in faithful mode has its best
epoch chosen on the test images and says so ("not_for_reporting"). Every image ("full", -1) is trained on once, with the
first seed.

The score is that of the last of `shots`, the mean over seeds; `N_shot` and `N_shot_std` are each setting's.

Details: "curve" [[images a class, mean, std], ...] and "shots" beside it; "runs" [{shots, seed, score, rate, decay, epoch,
drawn, held_out, notes, trials [[rate, decay, score, error], ...]}, ...]; "parameters" {trainable, total, visual, backbone}
(the last three where the model is known); "rows", what the head stood on; "not_for_reporting" where it is so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.evals.elevater.parameters import parameter_efficiency
from ostension.evals.elevater.probing import FULL, labels_of, value_of
from ostension.evals.elevater.runs import Run, Settings, shots_name, trials_tree
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import per_sample, score_name, scores

SPLITS = ("train", "test")
WARNING = "faithful mode: the best epoch was chosen on the test images; not for reporting"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """ELEVATER's settings.

    Attributes:
        shots: images a class: 0 for zero-shot, -1 for all.
        seeds: of the draws.
    """

    shots: tuple[int, ...] = (0, 5, 20, 50, FULL)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        super().__post_init__()
        ordered = sorted(set(self.shots), key=lambda shots: (shots == FULL, shots))
        require(bool(self.shots) and min(self.shots) >= FULL, "shots", self.shots, "0, -1 for all, or images a class")
        require(list(self.shots) == ordered, "shots", self.shots, "different ones, ascending, -1 last")
        require(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "different ones")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.superclass_of is not None:
        return "its classes are pools of another task's, which a head is not trained on"
    return None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The curve over images a class.

    Raises:
        ConfigError: for rows or a projection that are not known, or knowledge that is not there.
        DivergenceError: if every trial of a search fails.
    """
    task, test, work = inputs.task, inputs.features("test"), Run(inputs, config)
    targets, name = labels_of(test), score_name(inputs.task)
    zero_shot = work.zero_shot()
    first = scores(task, zero_shot, targets, test.groups, seed=seed)[name]
    measured: dict[str, Metric] = {}
    runs: list[dict[str, Any]] = []
    curve, shown = [], zero_shot
    for shots in config.shots:
        if shots == 0:
            measured[shots_name(0)] = first
            curve.append([0.0, first.value, 0.0])
            continue
        values, drawn = [], []
        for place, one in enumerate(config.seeds if shots != FULL else config.seeds[:1]):
            probed = work.probed(shots, one)
            value = value_of(task, probed.logits, test, config.probe.mode)
            values.append(value)
            drawn.append(probed.drawn)
            shown = probed.logits if place == 0 else shown
            runs.append({
                "shots": shots, "seed": one, "score": value, "rate": probed.trial.learning_rate,
                "decay": probed.trial.weight_decay, "epoch": probed.epoch, "drawn": probed.drawn,
                "held_out": probed.held_out, "notes": list(probed.notes), "trials": trials_tree(probed),
            })  # fmt: skip
        mean, std = float(np.mean(values)), float(np.std(values))
        measured[shots_name(shots)] = Metric(value=mean, count=len(test), chance=first.chance)
        if len(values) > 1:
            measured[f"{shots_name(shots)}_std"] = Metric(value=std, count=len(values), direction="lower")
        curve.append([float(shots) if shots != FULL else drawn[0] / task.num_classes, mean, std])
    last = config.shots[-1]
    trained = work.trainable if last != 0 else 0
    headline = {name: measured[shots_name(last)]}
    measured["parameter_efficiency"] = Metric(
        value=parameter_efficiency(headline[name].value, trained), count=len(test), chance=None
    )
    counted = work.parameters(zero_shot=last == 0)
    details = {
        "curve": curve, "shots": list(config.shots), "runs": runs,
        "rows": "before the projection" if config.head.init == "merged" else config.rows,
        "parameters": {"trainable": trained} if counted is None else to_tree(counted),
    }  # fmt: skip
    faithful = config.probe.mode == "faithful" and last != 0
    if faithful:
        details["not_for_reporting"] = WARNING
    record = Record(
        protocol="elevater", subject=f"{inputs.model_name} on {task.title}" + (f" ({WARNING})" if faithful else ""),
        metrics=headline | measured, config={**to_tree(config), "scale": inputs.scale},
        hashes={**inputs.hashes(), **work.hashes},
        counts={"samples": len(test), "classes": task.num_classes, "trained_parameters": trained},
        seeds=(seed, *config.seeds), task=task.name, model=inputs.model_name, split="test", details=details,
    )  # fmt: skip
    return Outcome(record=record, samples={"id": np.array(test.ids), **per_sample(task, shown, targets, test.groups)})
