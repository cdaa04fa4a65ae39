"""The ImageNet-Captions study on emoji: the same pictures learned from labels or from captions, and from another distribution.

    ostension imagenet-captions --out study                  # all runs, the record and the plot; some 20 minutes on one core
    ostension train --recipe imagenet-captions-captions --run runs/captions

What differs is the loss and the text (cross-entropy with labels; CLIP with the labels as captions; CLIP with captions), how
many pictures are learned from, and whether they are of the original distribution or of both. Image tower, batches, views,
optimiser and images seen are the same in all.

Source: Fang et al. 2022, Data Determines Distributional Robustness in Contrastive Language Image Pre-training (CLIP).
"""

from __future__ import annotations

import dataclasses

from ostension.losses import LossConfig
from ostension.recipes import demo
from ostension.recipes._captions_batches import StudyBatchesConfig
from ostension.recipes._captions_data import Source, study_set
from ostension.recipes._captions_questions import StudyQuestionsConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.freeze import FreezeConfig, TowerLock
from ostension.train.labels import LabelsConfig
from ostension.train.objective import ContrastiveConfig, ObjectiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

OFFERS = {
    "imagenet-captions-labels": "ImageNet-Captions study: cross-entropy with labels",
    "imagenet-captions-label-captions": "ImageNet-Captions study: CLIP, whose captions are the labels",
    "imagenet-captions-captions": "ImageNet-Captions study: CLIP with captions",
    "imagenet-captions-labels-both": "ImageNet-Captions study: cross-entropy with labels, pictures of both distributions",
    "imagenet-captions-captions-both": "ImageNet-Captions study: CLIP with captions, pictures of both distributions",
}
STEPS = 320  # of 128 pictures
HALVINGS = 2  # measured at STEPS, STEPS / 2, STEPS / 4
TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}", "a picture of {}", "an icon of {}")
WIDTHS = {"model.vision.width": 24, "model.text.width": 128, "model.embed_dim": 128, "model.vision.head_width": 32,
          "model.text.head_width": 32}  # fmt: skip
SMOKE_STEPS = 60


def recipe(
    name: str, steps: int = STEPS, *, pictures: int | None = None, seed: int = 0, data: Source = "emoji"
) -> Pretraining:
    """One run.

    Args:
        pictures: how many to learn from; None takes all.
    """
    kind = name.removeprefix("imagenet-captions-")
    labels = kind.startswith("labels")
    batches = StudyBatchesConfig(
        data=data, texts="captions" if kind.startswith("captions") else "labels", both=kind.endswith("both"),
        pictures=pictures, seed=seed, ramp_steps=round(demo.RAMP * steps), augment=demo.AUGMENT, templates=TEMPLATES,
    )  # fmt: skip
    objective: ObjectiveConfig = ContrastiveConfig(loss=LossConfig(duplicates="share"))
    if labels:
        objective = LabelsConfig(classes=len(study_set(data).classes), seed=seed)
    train = TrainConfig(
        steps=steps,
        seed=seed,
        optim=OptimConfig(lr=1.5e-3, beta2=0.98, eps=1e-8, weight_decay=0.1, decay_rule="ndim", clip_norm=1.0),
        # Constant, and a running average is measured: each point is what a run that ended there would give, nearly.
        schedule=ScheduleConfig(kind="constant", warmup_steps=min(40, steps // 2)),
        average=0.98,
        checkpoint=CheckpointConfig(every=max(1, steps // 4), keep=1),
        log_every=max(1, min(20, steps // 4)),
        evaluate_at=tuple(sorted({max(1, steps >> halving) for halving in range(HALVINGS + 1)})),
    )
    made = Pretraining(
        model=demo.model(), batches=batches, train=train, objective=objective,
        freeze=FreezeConfig(text=TowerLock(locked=labels)),
        evaluation=StudyQuestionsConfig(batches=batches, templates=TEMPLATES),
    )  # fmt: skip
    return made.changed(WIDTHS)


def smoke(name: str, steps: int = SMOKE_STEPS, *, pictures: int | None = None, seed: int = 0) -> Pretraining:
    """A few steps on shapes that are drawn on the spot."""
    made = recipe(name, steps, pictures=pictures, seed=seed, data="shapes").changed(
        {"model.vision.width": 8, "model.text.width": 64, "model.embed_dim": 64, "batches.batch_size": 32,
         "train.checkpoint.every": steps, "train.evaluate_at": [steps // 2, steps]}
    )  # fmt: skip
    assert isinstance(made.batches, StudyBatchesConfig)
    return dataclasses.replace(made, evaluation=StudyQuestionsConfig(batches=made.batches, templates=TEMPLATES))
