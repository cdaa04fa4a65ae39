"""FLYP: fine-tuning as the model was pre-trained: pictures and prompts of their classes, by the contrastive loss.

    L = the symmetric contrastive loss of f(x_i) and g(prompt of y_i)        both towers and logit_scale are trained

Each picture has one uniformly drawn template in every epoch; classes of equal name in a batch are negatives, as in the code.
Afterwards W are the prompts' rows by the tuned text tower. Progress shows the floor below which the loss cannot fall.
Source: Goyal, Kumar, Garg, Kolter, Raghunathan 2023, "Finetune like you pretrain" (arXiv:2212.00638), and its code.
"""

from __future__ import annotations

import dataclasses

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._prompt_pairs import PromptPairs
from ostension.adapt._tuning import tuning
from ostension.adapt.base import TEMPLATE, Spec
from ostension.losses import Duplicates

SPEC = Spec(
    title="FLYP",
    paper='Goyal, Kumar, Garg, Kolter, Raghunathan. "Finetune like you pretrain: improved finetuning of zero-shot vision '
    'models". CVPR 2023, arXiv:2212.00638',
    trains="both towers and logit_scale",
    neutral={},
    neutral_template=TEMPLATE,
    departures=(
        "logit_scale has the cap of its model (100 in CLIP); the code has none",
        "the warm-up of 500 steps is a quarter of all steps at most; the cosine ends at 0 (the code adds min_lr to its peak)",
        "the head is made from the tuned text tower with the same templates that it was trained with",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's for ImageNet.

    Attributes:
        templates: of the prompts; none takes the task's.
        duplicates: what pictures of one class in a batch are to each other: "separate" negatives, positives that "share" the
            target, or left out ("ignore").
        groups: train only so many of the image tower's last groups; None trains all of it.
        recipe: how it is trained; few pictures want one batch of all of them, no warm-up and select="best".
    """

    templates: tuple[str, ...] = ()
    duplicates: Duplicates = "separate"
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: tuning(lr=1e-5, clip_norm=None))


class Flyp(PromptPairs):
    """Both towers, tuned."""

    kind, config_type, parts = "flyp", Config, ("visual", "text", "logit_scale")


fit = fitting(Flyp)
