"""Robustness to a change of pictures: accuracy in distribution against accuracy on shifts, on the same classes.

What is compared follows from the task:

- its classes are kept or pooled by other tasks (ImageNet): on each of those its accuracy on *their* classes, pooled as theirs
  (x), and, where their data is there, the accuracy on them (y);
- it keeps or pools another task's classes (ImageNet-A, ObjectNet): y, with the names of the other task pooled and with its own;
  x where the other task's data is there;
- it has several splits (PACS's domains, styles): one of them is the reference, each other one a shift, both measured on the
  classes that both have.

Probes learn from the reference's training samples only ("adapting to ImageNet"), from k a class or all; with no split "train"
they learn from four fifths of the reference, and every x is then measured on the rest. The summary `effective-robustness`
compares with the published test bed.

Metrics, of the zero-shot classifier: "shifted" and "reference" (means over shifts), "drop" and "error_ratio" where both are
known, "own_names_gain" where a task has names of its own. Details: "rows" [{"shift", "kind", "x", "y", "pm_0", "pm_10"}, ...]
with accuracies as [share, samples], "reference" (what x is of), "strengths" {kind: [strength of each draw]}, "notes",
"testbed".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.evals import metrics
from ostension.evals.class_maps import class_map, pool
from ostension.evals.few_shots import draws
from ostension.evals.heads import HELD_OUT, Head, Search, head_of_labels, head_of_words, one_label, split_off
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.shifts import (
    FULL,
    OWN_NAMES,
    ZERO_SHOT,
    Reading,
    drop_metrics,
    mean_reading,
    read_pooled,
    read_shift,
    right,
    share,
    shift_tasks,
)
from ostension.runtime import seed_for
from ostension.store import Features
from ostension.store.key import Level

SPLITS = ("test",)
FILES = ("frames", "shifts", "testbed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared with what.

    Attributes:
        shifts: tasks that keep or pool the measured task's classes, by name or TOML file; by default all that ship.
        reference: of a task with several splits, the one in distribution; by default "id_test" if there is one, else the first.
        shots: also probes on so many training samples a class of the reference (the paper: 1, 2, 4, ..., 128).
        draws: of those samples; the numbers are means.
        full: also a probe on all training samples.
        level: the rows of the probes: before ("pre") or after ("post") the projection.
        search: for their strength: at most 15 fits as the paper searches, or the whole grid of 97.
        frames: a folder with the published lists of frames of ImageNet-Vid-Robust or YTBB-Robust, or with a folder of them for
            each task, for pm-10.
        testbed: a test bed of one's own (CSV) for the summary; the published one by default.
    """

    shifts: tuple[str, ...] = ()
    reference: str = ""
    shots: tuple[int, ...] = ()
    draws: int = 1
    full: bool = False
    level: Level = "pre"
    search: Search = "paper"
    frames: str = ""
    testbed: str = ""

    def __post_init__(self):
        require(all(k >= 1 for k in self.shots), "shots", self.shots, "numbers from 1")
        require(self.draws >= 1, "draws", self.draws, "1 or more")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.kind == "multilabel":
        return "samples have several labels"
    if _source(task) or len(_places(task)) > 1 or shift_tasks(task.name):
        return None
    return "there is no shift: no second split, and no task that keeps or pools its classes"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Accuracies in distribution and on shifts.

    Raises:
        ConfigError: for a shift of other classes, an unknown split, or probes without samples to learn from.
    """
    task = inputs.task
    if _source(task):
        readings, samples, about = _of_a_shift(inputs, config, seed)
    elif len(_places(task)) > 1:
        readings, samples, about = _between_splits(inputs, config, seed)
    else:
        readings, samples, about = _of_a_reference(inputs, config, seed)
    plain = [one for one in readings if one.kind == ZERO_SHOT]
    measured = drop_metrics(plain) | about.pop("metrics")
    record = Record(
        protocol="robustness", subject=f"{inputs.model_name} under the shifts of {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(),
        counts={"shifts": len({one.shift for one in readings if one.y or one.parts}), "classes": task.num_classes},
        seeds=(seed,), task=task.name, model=inputs.model_name, split=inputs.name_of("test"),
        details={"rows": [one.tree() for one in readings], "testbed": config.testbed, **about},
    )  # fmt: skip
    return Outcome(record=record, samples=samples)


Found = tuple[list[Reading], dict[str, np.ndarray], dict[str, Any]]


def _of_a_reference(inputs: Inputs, config: Config, seed: int) -> Found:
    """ImageNet's role: x of every shift, y where the shift's data is there."""
    shifts = [read_task(name) for name in config.shifts] or shift_tasks(inputs.task.name)
    for shift in shifts:
        class_map(shift, inputs.task.name)  # says what is wrong with one that is none
    others = {shift.name: inputs.other(shift) for shift in shifts}
    missing = [name for name, other in others.items() if other is None]
    readings: list[Reading] = []
    reference = inputs.features("test", "post")
    kinds = _heads(inputs, inputs, config, seed)
    for heads in kinds:
        of_kind: dict[str, list[Reading]] = {shift.name: [] for shift in shifts}
        for head in heads:
            rows = reference if head.level == "post" else inputs.features("test", head.level)
            logits = head.logits(rows)
            for shift in shifts:
                other = others[shift.name]
                samples = None if other is None else other.features("test", head.level)
                of_kind[shift.name].append(read_pooled(head, shift, logits, rows, samples, frames=config.frames))
        readings += [mean_reading(several) for several in of_kind.values()]
    whole = share(right(head_of_words(inputs).logits(reference), one_label(reference)), 1 / inputs.task.num_classes)
    about = {
        "metrics": {"accuracy": whole}, "reference": f"{inputs.task.name}/test", "strengths": _strengths(kinds),
        "notes": [f"no data of {', '.join(missing)}: only the accuracy in distribution"] if missing else [],
    }  # fmt: skip
    return readings, {}, about


def _of_a_shift(inputs: Inputs, config: Config, seed: int) -> Found:
    """The role of one of the shifts: y with pooled and with own names, x where the source's data is there."""
    task, source = inputs.task, read_task(_source(inputs.task))
    origin = inputs.other(source)
    features = inputs.features("test", "post")
    pooling = task.superclass_of is not None
    kinds = [[_source_head(inputs, source)]] if pooling or origin is not None else []
    if (config.shots or config.full) and origin is None:
        raise ConfigError(f"no data of {source.name!r} to learn from", expected=f"data of {source.name!r}, or no probes")
    if origin is not None:
        kinds += list(_heads(inputs, origin, config, seed))[1:]
    readings = []
    for heads in kinds:
        several = []
        for head in heads:
            reference = None if origin is None else origin.features("test", head.level)
            logits = None if reference is None else head.logits(reference)
            samples = inputs.features("test", head.level)
            several.append(read_pooled(head, task, logits, reference, samples, frames=config.frames))
        readings.append(mean_reading(several))
    own = head_of_words(inputs).logits(features)
    kind = OWN_NAMES if pooling else ZERO_SHOT
    said = read_shift(task, own, features, frames=config.frames, kind=kind)
    if pooling or not readings:
        readings.append(said)
    notes = [] if origin is not None else [f"no data of {source.name}: the accuracy in distribution is not known"]
    extra: dict[str, Metric] = {}
    assert features.targets is not None
    correct = right(own, features.targets)
    samples_out = {"id": np.array(features.ids), "predicted": np.array(list(task.display_names()))[own.argmax(axis=1)],
                   "correct": correct}  # fmt: skip
    if pooling:
        # Frame by frame: what lists of frames leave out of pm-0 counts here.
        before = _right_pooled(_source_head(inputs, source), task, features)
        gain = correct.astype(np.float64) - before
        interval = metrics.bootstrap_interval(gain, seed=seed)
        extra["own_names_gain"] = Metric(value=float(gain.mean()), count=len(gain), chance=0.0, interval=interval)
        samples_out["correct_pooled"] = before
    about = {"metrics": extra, "reference": f"{source.name}/test", "strengths": _strengths(kinds), "notes": notes}
    return readings, samples_out, about


def _between_splits(inputs: Inputs, config: Config, seed: int) -> Found:
    """One split against others of the same task."""
    task, places = inputs.task, _places(inputs.task)
    reference = config.reference or ("id_test" if "id_test" in places else places[0])
    if reference not in places:
        raise unknown_name("reference split", reference, places)
    measured = inputs.name_of("test")
    others = [measured] if measured in places and measured != reference else [name for name in places if name != reference]
    others = [name for name in others if inputs.has(name)]
    origin = _Reference(inputs, reference, seed, held=bool(config.shots or config.full))
    readings, kinds = [], _heads(inputs, origin, config, seed)
    notes = ["no test bed of ordinary models exists for these shifts: there is no effective robustness, only what is lost"]
    for heads in kinds:
        for name in others:
            several = [_read_pair(head, origin, inputs, name) for head in heads]
            if (pair := [one for one in several if one is not None]) != several or not pair:
                notes.append(f"{reference} and {name} have no class in common")
                continue
            readings.append(mean_reading([dataclasses.replace(one, shift=f"{reference} -> {name}") for one in pair]))
    part = ", the fifth that no probe learns from" if origin.held else ""
    notes = list(dict.fromkeys(notes))
    if not readings:
        raise DataError("; ".join(notes[1:]), source=task.name, expected="splits with classes in common")
    about = {"metrics": {}, "reference": f"{task.name}/{reference}{part}", "strengths": _strengths(kinds), "notes": notes}
    return readings, {}, about


def _read_pair(head: Head, origin: _Reference, inputs: Inputs, split: str) -> Reading | None:
    """x and y on the samples of those classes that both splits have; None if there is none."""
    known, shifted = origin.features("test", head.level), inputs.features(split, head.level)
    targets = one_label(known), one_label(shifted)
    kept = np.isin(targets[0], targets[1]), np.isin(targets[1], targets[0])
    if not kept[0].any():
        return None
    x = share(right(head.logits(known), targets[0])[kept[0]])
    y = share(right(head.logits(shifted), targets[1])[kept[1]], 1 / inputs.task.num_classes)
    return Reading(shift=split, kind=head.kind, x=x, y=y)


class _Reference:
    """A split as a reference: its training samples, which are another split or a part of it, and its test samples."""

    def __init__(self, inputs: Inputs, split: str, seed: int, *, held: bool):
        self._inputs, self._split, self._seed = inputs, split, seed
        self.held = held and not inputs.has("train")

    def has(self, split: str) -> bool:
        return split == "train" or (split == "val" and not self.held and self._inputs.has("val"))

    def features(self, split: str = "test", level: Level = "post") -> Features:
        if not self.held:
            return self._inputs.features(self._split if split == "test" else split, level)
        kept, out = split_off(self._inputs.features(self._split, level), seed=seed_for(self._seed, "reference"))
        return kept if split == "train" else out


def _heads(inputs: Inputs, origin: Inputs | _Reference, config: Config, seed: int) -> Sequence[list[Head]]:
    """The zero-shot head, then the probes by kind, each of one head or one a draw."""
    kinds = [[head_of_words(inputs)]]
    if not (config.shots or config.full):
        return kinds
    if not origin.has("train"):
        raise ConfigError("there are no training samples to learn from", expected="a split 'train', or no probes")
    train = origin.features("train", config.level)
    val = origin.features("val", config.level) if origin.has("val") else None
    by_kind: dict[str, list[Head]] = {f"{k}-shot": [] for k in config.shots}
    for number in range(config.draws if config.shots else 0):
        drawn = draws(
            one_label(train), None if val is None else one_label(val), shots=config.shots, regime="paper", share=HELD_OUT,
            seed=seed_for(seed, "draw", number),
        )  # fmt: skip
        for one in drawn:
            judged = (train if val is None else val).take(one.judged)
            head = head_of_labels(
                train.take(one.train), judged, level=config.level, kind=f"{one.shots}-shot", search=config.search
            )
            by_kind[head.kind].append(head)
    kinds += by_kind.values()
    if config.full:
        kept, judged = (train, val) if val is not None else split_off(train, seed=seed)
        kinds.append([
            head_of_labels(kept, judged, level=config.level, kind=FULL, search=config.search, refit=True)
        ])  # fmt: skip
    return kinds


def _strengths(kinds: Sequence[Sequence[Head]]) -> dict[str, list[float]]:
    """The chosen strengths of the heads that have one, by kind."""
    chosen = [[head for head in heads if head.choice is not None] for heads in kinds]
    return {heads[0].kind: [head.choice.strength for head in heads if head.choice] for heads in chosen if heads}


def _source(task: Task) -> str:
    """The task whose classes this one keeps or pools."""
    return task.superclass_of or task.classes_of or ""


def _places(task: Task) -> list[str]:
    """Splits that can be a reference or a shift."""
    return [name for name in task.splits if name not in ("train", "val")]


def _source_head(inputs: Inputs, source: Task) -> Head:
    """The zero-shot head of the source's classes, with the task's templates, as the published pools are asked."""
    return head_of_words(inputs, source.label_names(), inputs.task.prompt_templates())


def _right_pooled(head: Head, task: Task, features: Features) -> np.ndarray:
    assert features.targets is not None
    return right(pool(head.logits(features), task), features.targets)
