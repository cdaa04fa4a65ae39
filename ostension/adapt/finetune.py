"""Fine-tuning: the image tower and a head that begins as the hand-written classifier, by cross-entropy.

    L = CE(f(x) W' + b, y)        W = exp(logit_scale) times the prompts' rows and b = 0 at first

The control for everything else: it raises accuracy where its pictures are from, and usually lowers it elsewhere.
Source: the zero-shot initialised fine-tuning of Wortsman et al. 2022 (arXiv:2109.01903, section 2) and its code.
Letters: C classes, E embedding.
"""

from __future__ import annotations

import dataclasses

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._tuning import TunedHead, tuning
from ostension.adapt.base import TEMPLATE, Spec

SPEC = Spec(
    title="fine-tuning",
    paper='Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt. "Robust '
    'fine-tuning of zero-shot models". CVPR 2022, arXiv:2109.01903',
    trains="the image tower and a head W (C, E), b (C)",
    neutral={},
    neutral_template=TEMPLATE,
    departures=(
        "the warm-up of 500 steps is a quarter of all steps at most",
        "names that the head does not have are read with the hand-written prompts before the tuned tower",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are WiSE-FT's for ImageNet.

    Attributes:
        templates: of the head's first rows; none takes the task's.
        groups: train only so many of the image tower's last groups (`Tuned`); None trains all of it.
        recipe: how it is trained; few pictures want lr=1e-5.
    """

    templates: tuple[str, ...] = ()
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=tuning)


class FineTuned(TunedHead):
    """The tuned tower and its head."""

    kind, config_type = "finetune", Config


fit = fitting(FineTuned)
