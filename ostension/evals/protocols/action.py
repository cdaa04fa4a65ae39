"""Actions in videos from frames: predictions averaged over each video's frames, beside its middle frame alone.

The probabilities of all frames of a video are averaged, as the paper did for zero-shot on Kinetics; the middle frame is what it
trained and tested probes on. Frames belong to the video that stands before the last slash of their id ("archery/v_01/0007.jpg"
is of "archery/v_01"), or to the value of a group; within a video they are ordered by id, numbers by their value.

Metrics: the task's own, of all frames; "middle_frame", the same of the middle frames; "gain" of averaging, paired over videos;
with a training split "probe", a linear probe on middle frames. Counts are videos. Details: those of `zero_shot.measure`,
"frames" {"fewest", "most"} a video, and "strength" of the probe.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from ostension.config import to_tree
from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals.action import mean_over_frames, middle_frames
from ostension.evals.heads import head_of_labels, one_label, split_off
from ostension.evals.inputs import Inputs
from ostension.evals.metrics import bootstrap_interval
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import per_sample, score, score_name, softmax
from ostension.evals.zero_shot import OWN, classify, measure, words
from ostension.image.video import natural_order
from ostension.store import Features
from ostension.store.key import Level

SPLITS = ("test",)
OF_PREDICTORS = True
LOG_FLOOR = 1e-300  # of a probability that underflowed; it keeps the order of the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How frames are read.

    Attributes:
        video: the group that names a frame's video; empty for what stands before the last slash of its id.
        templates: as for zero-shot.
        probe: whether a probe on middle frames is fitted beside, where there is a training split.
        level: rows that the probe looks at.
    """

    video: str = ""
    templates: str = OWN
    probe: bool = True
    level: Literal["pre", "post"] = "pre"


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind != "video":
        return "its samples are no frames of videos"
    return "its frames are scored with their neighbours, by pm-k" if task.takes_several else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Scores of videos.

    Raises:
        DataError: for frames that do not say their video, or videos whose frames have different labels.
    """
    task, frames = inputs.task, inputs.features("test")
    videos, order = videos_of(frames, config.video)
    logits = classify(inputs, "test", words(task, config.templates))
    names, probabilities = mean_over_frames(softmax(logits.astype(np.float64)), videos)
    middle = middle_frames(videos, order)
    targets = _target_of_videos(one_label(frames), videos, names)
    # The logarithm of a mean probability is a logit whose softmax is that probability again.
    averaged = np.log(np.maximum(probabilities, LOG_FLOOR)).astype(np.float32)
    measured, details = measure(task, averaged, targets, None, seed=seed)
    metric = score_name(task)
    measured["middle_frame"] = score(task, logits[middle], targets, None, seed=seed)
    right = averaged.argmax(axis=1) == targets
    gains = right.astype(np.float64) - (logits[middle].argmax(axis=1) == targets)
    measured["gain"] = Metric(
        value=float(gains.mean()), count=len(names), chance=0.0, interval=bootstrap_interval(gains, seed=seed)
    )
    lengths = np.unique(videos, return_counts=True)[1]
    details["frames"] = {"fewest": int(lengths.min()), "most": int(lengths.max())}
    if config.probe and inputs.has("train"):
        measured["probe"], details["strength"] = _probe(inputs, config, seed)
    record = Record(
        protocol="action", subject=f"{inputs.model_name} on {task.title}, all frames", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale, "metric": metric}, hashes=inputs.hashes(),
        counts={"videos": len(names), "frames": len(frames), "classes": task.num_classes}, seeds=(seed,), task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    samples = {"id": np.array(names), **per_sample(task, averaged, targets, None)}
    samples["correct_middle_frame"] = logits[middle].argmax(axis=1) == targets
    return Outcome(record=record, samples=samples)


def videos_of(frames: Features, field: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(N,) the video of each frame, and (N,) places by which the frames of a video are ordered.

    Raises:
        DataError: for an id without a slash, or a group that the frames do not have.
    """
    if field:
        if field not in frames.groups:
            raise DataError(f"the frames have no group {field!r}", expected=f"one of {', '.join(frames.groups) or 'none'}")
        videos = np.asarray(frames.groups[field]).astype(str)
    else:
        alone = [name for name in frames.ids if "/" not in name]
        if alone:
            raise DataError(f"the id {alone[0]!r} names no video", expected="VIDEO/FRAME, or the setting action.video")
        videos = np.array([name.rpartition("/")[0] for name in frames.ids])
    ranks = {name: rank for rank, name in enumerate(sorted(frames.ids, key=natural_order))}
    return videos, np.array([ranks[name] for name in frames.ids])


def _target_of_videos(targets: np.ndarray, videos: np.ndarray, names: list[str]) -> np.ndarray:
    place = {name: number for number, name in enumerate(names)}
    found = np.full(len(names), -1, dtype=np.int64)
    for target, video in zip(targets, videos, strict=True):
        number = place[str(video)]
        if found[number] not in (-1, target):
            raise DataError(f"frames of the video {video!r} have different labels", expected="one label a video")
        found[number] = target
    return found


def _probe(inputs: Inputs, config: Config, seed: int) -> tuple[Metric, float | None]:
    """A linear probe learned and measured on middle frames."""
    level: Level = config.level

    def middle(split: str) -> Features:
        frames = inputs.features(split, level)
        return frames.take(middle_frames(*videos_of(frames, config.video)))

    train, test = middle("train"), middle("test")
    train, held = (train, middle("val")) if inputs.has("val") else split_off(train, seed=seed)
    head = head_of_labels(train, held, level=level, refit=True)
    strength = None if head.choice is None else head.choice.strength
    return score(inputs.task, head.logits(test), one_label(test), None, seed=seed), strength
