"""LP-FT: a linear probe first, then fine-tuning tower and head from it, so that the first steps do not distort the features.

    1.  W, b = argmin sum_i CE(W z_i + b, y_i) + 1/(2 C) ||W||^2     z = (f - m) / s with one mean m and one spread s
    2.  L = CE(f(x) W' + b, y) over the tower and the head, from W / s and b - m W 1 / s

With a head of words (`head="zero-shot"`) there is no first stage: that is plain fine-tuning, and the honest rival.
Source: Kumar et al. 2022 (arXiv:2202.10054) and its code (AnanyaKumar/transfer_learning).
Letters: N samples, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt._hand_written import with_templates
from ostension.adapt._linear import judge, rows_of, told, validation
from ostension.adapt._tuning import TunedHead, tuning
from ostension.adapt.base import TEMPLATE, AdditionPredictor, Examples, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.train.strength_search import PathProbe, whole_grid

NEVER = 20.0  # logits by which a class without pictures stays behind on all training pictures: e^-20 is nothing

SECOND: dict[str, Any] = {
    "epochs": 20, "batch_size": 64, "optimizer": "sgd", "lr": 1e-5, "weight_decay": 0.0, "clip_norm": None,
    "schedule": "cosine", "warmup_steps": 0, "select": "best",
}  # fmt: skip

SPEC = Spec(
    title="LP-FT",
    paper='Kumar, Raghunathan, Jones, Ma, Liang. "Fine-Tuning can Distort Pretrained Features and Underperform '
    'Out-of-Distribution". ICLR 2022, arXiv:2202.10054',
    trains="a head W (C, E), b (C) first; then it and the image tower",
    selects=True,
    neutral={"head": "zero-shot"},
    neutral_template=TEMPLATE,
    departures=(
        "one learning rate; the code takes the best of a sweep, 3e-7 to 1e-2 (ImageNet: 1e-5, 3e-5, 1e-4), by validation",
        "the probe goes to its optimum, not for 200 iterations",
        "pictures are cropped as in fine-tuning here, so that the head is all that differs; the number of epochs is remembered",
        "the first stage looks at no crops: features are computed once",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        head: what the second stage begins with: a probe ("probe"), or the hand-written prompts ("zero-shot").
        strength: C of the probe, on standardised features; None chooses it by validation accuracy.
        points: strengths that are tried, from 1e-7 to 1e2.
        templates: of the hand-written prompts; none takes the task's.
        groups: train only so many of the image tower's last groups; None trains all of it.
        recipe: of the second stage; 0 epochs end with the probe.
    """

    head: Literal["probe", "zero-shot"] = "probe"
    strength: float | None = None
    points: int = 100
    templates: tuple[str, ...] = ()
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: tuning(**SECOND))

    def __post_init__(self):
        require(self.strength is None or 0 < self.strength < float("inf"), "strength", self.strength, "a number above 0")
        require(self.points >= 1, "points", self.points, "1 or more")
        require(self.head == "probe" or self.strength is None, "strength", self.strength, "nothing with a zero-shot head")


class Probed(TunedHead):
    """The tuned tower and its head."""

    kind, config_type = "lp-ft", Config


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None, progress: Any = None
) -> AdditionPredictor:
    """Both stages; what the first one chose stands among the facts.

    Raises:
        ConfigError: without validation pictures where they are to choose.
    """
    config = with_templates(config, examples)
    addition = Probed(model, config, examples.class_names, seed=seed)
    facts: dict[str, Any] = {}
    if config.head == "probe":
        weight, bias, facts = probe(model, examples, config)
        with torch.no_grad():
            addition.head.weight.copy_(weight)
            addition.head.bias.copy_(bias)
    fit_addition(addition, examples.train, config.recipe, val=examples.val, seed=seed, folder=folder, progress=progress)
    predictor = addition.predictor(config.templates)
    predictor.facts |= facts
    return predictor


def probe(model: CLIP, examples: Examples, config: Config) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The first stage's head (C, E) and (C,) on unit embeddings, and what was chosen.

    A class without pictures gets a row of zeros and a bias that is never reached.
    """
    rows = rows_of(examples.train, model, "post")
    mean, spread = float(rows.mean(dtype=np.float64)), float(rows.std(dtype=np.float64))
    path = PathProbe(standardised(rows, mean, spread), examples.train.targets, len(examples.class_names))
    strength, facts = config.strength, dict[str, Any]()
    if strength is None:
        val = validation("lp-ft", examples.val)
        judged = standardised(rows_of(val, model, "post"), mean, spread)
        choice = whole_grid(judge(path, judged, val.targets), np.logspace(-7, 2, config.points).tolist())
        strength, facts = choice.strength, told(choice)
    weight, bias = (value.double() for value in path.head(strength))
    weight, bias = weight / spread, bias - mean / spread * weight.sum(dim=1)
    if not bool(bias.isfinite().all()):
        highest = (torch.from_numpy(rows).double() @ weight.T + bias).max(dim=1).values
        bias = torch.where(bias.isfinite(), bias, highest.min() - NEVER)
    return weight.float(), bias.float(), {**facts, "strength": strength}


def standardised(rows: np.ndarray, mean: float, spread: float) -> np.ndarray:
    return ((rows - mean) / spread).astype(np.float32)
