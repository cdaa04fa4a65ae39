"""LiT as fine-tuning: the image tower stays locked, and the text tower learns to read it, by the contrastive loss.

    L = the symmetric contrastive loss of f(x_i) and g(prompt of y_i)        g and logit_scale are trained

The locked tower's rows are kept, so training is of text alone. To learn from captions, or without a text tower to begin with,
pre-train with locks instead (the recipe `lit`).
Source: Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning" (arXiv:2111.07991), and big_vision's settings
for training on one labelled or captioned set.
"""

from __future__ import annotations

import dataclasses

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._prompt_pairs import PromptPairs
from ostension.adapt._tuning import tuning
from ostension.adapt.base import TEMPLATE, Spec
from ostension.losses import Duplicates

SPEC = Spec(
    title="LiT",
    paper='Zhai, Wang, Mustafa, Steiner, Keysers, Kolesnikov, Beyer. "LiT: Zero-Shot Transfer with Locked-image text Tuning". '
    "CVPR 2022, arXiv:2111.07991",
    trains="the text tower and logit_scale",
    neutral={},
    neutral_template=TEMPLATE,
    departures=(
        "the captions are prompts of the classes, drawn as FLYP draws them",
        "the tower's rows of 8 random crops are kept; the published runs crop anew",
        "AdamW, where big_vision's Adam scales its decay by the schedule",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are big_vision's, with a learning rate for a text tower that is trained already.

    Attributes:
        templates: of the prompts; none takes the task's.
        duplicates: what pictures of one class in a batch are to each other: "separate" negatives, positives that "share" the
            target, or left out ("ignore").
        recipe: how it is trained; a text tower from random weights wants lr=1e-3.
    """

    templates: tuple[str, ...] = ()
    duplicates: Duplicates = "separate"
    recipe: Recipe = dataclasses.field(default_factory=lambda: tuning(lr=1e-4, weight_decay=0.01, warmup_steps=100, views=8))


class Lit(PromptPairs):
    """The text tower, tuned."""

    kind, config_type, parts, needs_images = "lit", Config, ("text", "logit_scale"), False


fit = fitting(Lit)
