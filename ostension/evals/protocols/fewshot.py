"""Linear probes on few labelled samples a class, in the paper's regime or with few samples to choose on as well.

Two regimes, which differ in what the strength is chosen on, and are never to be mixed in one figure:

- "paper": the whole validation split, by the paper's search of 15 fits. So did the paper, in few-shot too.
- "few": min(k, 4) validation samples a class, by CoOp's search. The choice is as poor as such few samples make it.

The k samples of a draw lie within those of every larger k. A class with fewer than k gives all that it has. Nothing is
refitted: a probe has its k samples a class, and no more.

Metrics: the task's own at the largest k, then "K_shot" for each k, means over draws; "zero_shot" beside them where there are
class texts. Details: "curve" [[k, mean, standard deviation over draws], ...], "regime", "chosen" [[k, [strength of each draw]],
...], "short" {k: classes with fewer samples}, "zero_shot", "notes". Columns are those of the first draw at the largest k, with
"right" for the share of draws in which the sample was right.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError, DataError
from ostension.evals.few_shots import Regime, draws, mean_metric, score_of, short_classes
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.protocols.probe import labelled, rows_of
from ostension.evals.records import Metric, Record
from ostension.evals.scores import per_sample, score, score_name, score_value
from ostension.evals.zero_shot import classify
from ostension.store import Features
from ostension.store.key import Level
from ostension.train.logistic import TOLERANCE
from ostension.train.strength_search import PathProbe, coop_search, paper_search

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How many samples, how they are drawn, and how the strength is chosen.

    Attributes:
        shots: labelled samples a class.
        regime: "paper" or "few", see above.
        draws: how often samples are drawn; the numbers are means.
        level: rows before the projection ("pre", as in the paper) or unit rows of the joint space ("post").
        normalise: make rows unit first; the paper does not.
        held_out: in the regime "paper", the share of train that is chosen on where there is no split "val".
        tolerance: of the solver's stop rule.
    """

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    regime: Regime = "paper"
    draws: int = 5
    level: Level = "pre"
    normalise: bool = False
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
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.takes_several:
        return "a sample may have several labels, so that so many a class cannot be drawn"
    return "no split 'train'" if "train" not in task.splits else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Scores on the test split by the number of shots.

    Raises:
        DataError: for splits without labels, or nothing to choose the strength on.
    """
    task = inputs.task
    splits = {name: labelled(inputs, name, config.level) for name in ("train", "val", "test") if inputs.has(name)}
    if "train" not in splits:
        splits["train"] = labelled(inputs, "train", config.level)  # which says why not
    test, rows = splits["test"], {name: rows_of(part, config.normalise) for name, part in splits.items()}
    labels = {name: np.asarray(part.targets) for name, part in splits.items()}
    seeds = tuple(range(seed, seed + config.draws))
    search = paper_search if config.regime == "paper" else coop_search
    values: dict[int, list[float]] = {k: [] for k in config.shots}
    strengths: dict[int, list[float]] = {k: [] for k in config.shots}
    correct: dict[int, list[np.ndarray]] = {k: [] for k in config.shots}
    unconverged, columns = 0, {}
    short: dict[str, int] = {}
    for one in seeds:
        for draw in draws(
            labels["train"], labels.get("val"), shots=config.shots, regime=config.regime, share=config.held_out, seed=one
        ):
            probe = PathProbe(
                rows["train"][draw.train], labels["train"][draw.train], task.num_classes, tolerance=config.tolerance
            )
            groups = {name: np.asarray(values)[draw.judged] for name, values in splits[draw.judged_in].groups.items()}
            choice = search(score_of(task, probe, rows[draw.judged_in][draw.judged], labels[draw.judged_in][draw.judged],
                                     groups))  # fmt: skip
            logits = probe.logits(choice.strength, rows["test"])
            values[draw.shots].append(score_value(task, logits, labels["test"], test.groups))
            strengths[draw.shots].append(choice.strength)
            correct[draw.shots].append(logits.argmax(axis=1) == labels["test"])
            unconverged += len(probe.unconverged)
            if few := short_classes(labels["train"][draw.train], draw.shots):
                short[str(draw.shots)] = few
            if one == seeds[0] and draw.shots == config.shots[-1]:
                columns = per_sample(task, logits, labels["test"], test.groups)
    by_shots = {
        k: mean_metric(task, values[k], np.stack(correct[k]), labels["test"], seed=seed) for k in config.shots
    }  # fmt: skip
    zero_shot, notes = zero_shot_beside(inputs, test, seed=seed)
    if unconverged:
        notes.append(f"{unconverged} fits stopped before their tolerance")
    last = config.shots[-1]
    measured = {score_name(task): by_shots[last], **{f"{k}_shot": one for k, one in by_shots.items()}}
    if zero_shot is not None:
        measured["zero_shot"] = zero_shot
    details = {
        "curve": [[k, float(np.mean(values[k])), float(np.std(values[k]))] for k in config.shots], "regime": config.regime,
        "chosen": [[k, strengths[k]] for k in config.shots],
        "short": short, "zero_shot": None if zero_shot is None else zero_shot.value, "notes": notes,
    }  # fmt: skip
    record = Record(
        protocol="fewshot", subject=f"{inputs.model_name} on {task.title}", metrics=measured, config=to_tree(config),
        hashes=inputs.hashes(), seeds=seeds, task=task.name, model=inputs.model_name, split=inputs.name_of("test"),
        counts={"samples": len(test), "classes": task.num_classes, "train": len(splits["train"]),
                "val": len(splits["val"]) if "val" in splits else 0, "features": test.rows.shape[1]},
        details=details,
    )  # fmt: skip
    right = np.mean(correct[last], axis=0)
    return Outcome(record=record, samples={"id": np.array(test.ids), **columns, "right": right})


def zero_shot_beside(inputs: Inputs, test: Features, *, seed: int) -> tuple[Metric | None, list[str]]:
    """Zero-shot on the same test samples; None and a note where there are no class texts."""
    try:
        logits = classify(inputs)
    except (ConfigError, DataError) as error:
        return None, [f"no zero-shot beside it: {error}"]
    return score(inputs.task, logits, np.asarray(test.targets), test.groups, seed=seed), []
