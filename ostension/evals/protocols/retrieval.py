"""Retrieval between images and captions both ways, with the prefix "a photo of" and without it.

Metrics: "mean_recall" of the six recalls of the captions as they are; "image_to_text_r1", "..._r5", "..._r10" (an image is
found if any of its captions is), "text_to_image_..." (for each caption), median ranks; with a prefix the same under
"prefixed_...". The paper put it before every caption, tools leave it out.

Details: "curves" {"image_to_text": [[k, recall], ...], ...}, and "prefixed_curves".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.data.task import Task
from ostension.errors import DataError, LimitError
from ostension.evals.inputs import Inputs, unit
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.retrieval import Retrieval, mean_recall, measure
from ostension.text.prompts import fill

SPLITS = ("test",)
PREFIX = "a photo of"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How captions are asked for.

    Attributes:
        prefix: put before every caption for a second measurement; empty for none.
        truncate: whether captions that are too long for the text tower are cut; otherwise they end the measurement.
    """

    prefix: str = PREFIX
    truncate: bool = False


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    return None if task.kind == "retrieval" else "the task has classes and no captions"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Recalls both ways.

    Raises:
        DataError: for an image without captions.
        LimitError: for a caption that is too long, unless it is to be cut.
    """
    task, features = inputs.task, inputs.features("test")
    if features.texts is None:
        raise DataError("the samples have no captions", source=f"{task.name}/test", expected="captions")
    counts = np.array([len(texts) for texts in features.texts])
    if not counts.all():
        where = f"{task.name}/test ({features.ids[int(counts.argmin())]})"
        raise DataError("an image without captions", source=where, expected="one at least")
    captions = [caption for texts in features.texts for caption in texts]
    owners = np.repeat(np.arange(len(features)), counts)
    images = features.unit()

    def measured(prefix: str) -> Retrieval:
        texts = caption_rows(inputs, [prefix + caption for caption in captions], config.truncate)
        return measure(images, texts, np.arange(len(features)), owners, seed=seed)

    plain = measured("")
    found: dict[str, Metric] = {"mean_recall": mean_recall(plain.metrics), **plain.metrics}
    details: dict[str, Any] = {"curves": plain.curves}
    if config.prefix:
        prefixed = measured(f"{config.prefix.rstrip()} ")
        found["prefixed_mean_recall"] = mean_recall(prefixed.metrics)
        found |= {f"prefixed_{name}": metric for name, metric in prefixed.metrics.items()}
        details["prefixed_curves"] = prefixed.curves
    record = Record(
        protocol="retrieval", subject=f"{inputs.model_name} on {task.title}", metrics=found,
        config={**to_tree(config), "captions_per_image": task.captions_per_image}, hashes=inputs.hashes(),
        counts={"images": len(features), "texts": len(captions)}, seeds=(seed,), task=task.name, model=inputs.model_name,
        split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    captions_found = np.bincount(owners, weights=plain.text_ranks < 1) / counts
    samples = {
        "id": np.array(features.ids), "correct": plain.image_ranks < 1, "rank": plain.image_ranks + 1,
        "captions_found": captions_found,
    }  # fmt: skip
    return Outcome(record=record, samples=samples)


def caption_rows(inputs: Inputs, captions: list[str], truncate: bool) -> np.ndarray:
    """Unit rows of captions in the task's templates (the mean, where there are several)."""
    distinct = list(dict.fromkeys(captions))
    templates = inputs.task.prompt_templates() or ("{}",)
    try:
        rows = sum(
            inputs.texts([fill(template, caption) for caption in distinct], truncate=truncate).astype(np.float64)
            for template in templates
        )
    except LimitError as error:
        fix = "--set retrieval.truncate=true cuts such captions"
        raise LimitError(error.what, source=error.source, expected=error.expected, fix=fix) from None
    place = {caption: index for index, caption in enumerate(distinct)}
    return unit(np.asarray(rows), distinct)[[place[caption] for caption in captions]]
