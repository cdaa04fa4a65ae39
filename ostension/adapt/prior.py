"""Zero-shot weights as a prior: a linear head that labels pull away from the words, as far as validation wants it.

    min over D, b of   mean_i CE((s T + D) x_i + b, y_i) + lambda ||D||^2          lambda = 1 / (2 C N)

x are unit embeddings, T the hand-written prompts' rows and s the model's scale, so D = W - W_zs. What is kept is D: where it is
zero, the logits are zero-shot's to the bit. The fit knows zero-shot as fixed logits, and all strengths share one path.
Source: Radford et al. 2021 (arXiv:2103.00020), section 3.1.5: tuning led to zero-shot itself; no figures.
Letters: N samples, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostension.adapt._linear import Head, judge, right, rows_of, told, validation
from ostension.adapt.base import METHODS, TEMPLATE, AdditionPredictor, Examples, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.train.strength_search import GRID, PathProbe, whole_grid
from ostension.weights.line import GRID as ALPHAS
from ostension.weights.line import head_line, ratio_of_spreads

STRENGTHS = GRID[::4]

SPEC = Spec(
    title="zero-shot weights as a prior",
    paper='Radford et al. "Learning Transferable Visual Models From Natural Language Supervision". ICML 2021, '
    "arXiv:2103.00020; the CLIP paper's section 3.1.5",
    trains="the difference from the zero-shot head (C, E) and b (C)",
    selects=True,
    neutral={"strength": 0.0, "templates": [TEMPLATE]},
    neutral_template=TEMPLATE,
    departures=(
        "the paper says no more than that the penalty is L2 and the weights are zero-shot's; scale and bias are decided here",
        "zero-shot itself is among what is chosen from, and of equal validation accuracies the one nearest to it is taken",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        strength: C, the inverse of the pull beside the sum of the losses; 0 is zero-shot itself (lambda without end), None
            chooses it by validation accuracy, among two a decade from 1e-6 to 1e6 and 0.
        templates: of the hand-written prompts; None takes the task's.
    """

    strength: float | None = None
    templates: tuple[str, ...] | None = None

    def __post_init__(self):
        require(self.strength is None or 0 <= self.strength < float("inf"), "strength", self.strength, "0 or a number above it")
        require(self.templates is None or len(self.templates) > 0, "templates", self.templates, "one or more, or nothing")


class Prior(Head):
    """D and b beside the zero-shot head.

    Args:
        words: the zero-shot predictor, if it is there.
    """

    kind, config_type = "prior", Config
    hand_written: Tensor

    def __init__(
        self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0, words: Predictor | None = None
    ):
        super().__init__(model, config, class_names, seed=seed)
        words = words or model.classifier(self.class_names, config.templates or (TEMPLATE,))
        self.register_buffer("hand_written", words.weights, persistent=False)

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.model.scale().item() * self.hand_written + self.weight

    def wide_logits(self, features: Tensor) -> Tensor:
        # Two products and not one of the sum: zero-shot's logits stay what they are, bit for bit, where D is zero.
        words = self.model.scale().item() * (features @ self.hand_written.double().T)
        return words + super().wide_logits(features)


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None, progress: Any = None
) -> AdditionPredictor:
    """The predictor; `seed`, `folder` and `progress` are of methods that train, and do nothing here.

    A class without a picture keeps its words and gets no bias. Beside a strength that was chosen stand its rivals: zero-shot,
    the pull at its weakest ("unpulled"), a probe without prior on the same rows ("probe"), the best point of the line between
    both heads' weights ("wise"), and the best mixture of their logits, the probe's brought to the spread of zero-shot's first
    ("mix"). Without that a probe of a strong penalty, whose logits are small, is not heard until the end of the line.

    Raises:
        ConfigError: without validation pictures where the strength is to be chosen.
    """
    config = dataclasses.replace(config, templates=config.templates or examples.templates)
    words = model.classifier(examples.class_names, config.templates or ())
    rows = rows_of(examples.train, model, "post")
    known = shown(words, rows)
    path = PathProbe(rows, examples.train.targets, len(examples.class_names), offset=known)
    if config.strength is not None:
        return pulled(words, config, path, config.strength)
    val = validation("prior", examples.val)
    judged = rows_of(val, model, "post")
    offset = shown(words, judged)
    choice = whole_grid(judge(path, judged, val.targets, offset), STRENGTHS)
    plain = right(offset, val.targets)
    predictor = pulled(words, config, path, 0.0 if plain >= choice.score else choice.strength)
    method = METHODS.load("probe")
    probe = method.fit(model, examples, method.Config(level="post"))
    size = ratio_of_spreads(known, shown(probe, rows))
    facts: dict[str, Any] = {}
    lines = {"wise": 1.0, "mix": size}
    for name, factor in lines.items():
        ends = offset, factor * shown(probe, judged)
        curve = {alpha: right(head_line(*ends, alpha), val.targets) for alpha in ALPHAS}
        facts[f"{name}_curve"] = [list(point) for point in curve.items()]
        facts[name] = max(curve, key=lambda alpha: (curve[alpha], -alpha))
    predictor.facts |= {
        **told(choice), "validation": max(plain, choice.score), "validation_zero_shot": plain, **facts, "spread": size,
        "probe_strength": probe.facts["strength"],
    }  # fmt: skip
    predictor.rivals = {
        "zero-shot": words, "unpulled": pulled(words, config, path, STRENGTHS[-1]), "probe": probe,
        **{name: mixed(words, config, probe, facts[name], factor) for name, factor in lines.items()},
    }  # fmt: skip
    return predictor


@torch.no_grad()
def shown(predictor: Predictor, rows: np.ndarray) -> np.ndarray:
    """The logits of rows."""
    return predictor.logits(torch.from_numpy(rows).to(predictor.encoder.device)).cpu().numpy()


def pulled(words: Predictor, config: Config, path: PathProbe, strength: float) -> AdditionPredictor:
    """The predictor at a strength; zero-shot at 0."""
    made = Prior(words.encoder, dataclasses.replace(config, strength=strength), words.class_names, words=words)
    facts: dict[str, Any] = {"strength": strength, "penalty": None}
    if strength > 0:
        path.approach(strength)
        weight, bias = path.head(strength)
        # A class without a picture has its optimum at minus infinity, which is not what its words say.
        made.put(weight, torch.where(bias.isfinite(), bias, 0.0))
        facts |= {"penalty": 1 / (2 * strength * path.path.total), "gradient_norm": path.gradient_norms[strength]}
    predictor = made.predictor(words.templates)
    predictor.facts = facts
    return predictor


def mixed(words: Predictor, config: Config, probe: Any, alpha: float, factor: float = 1.0) -> AdditionPredictor:
    """The head (1 - alpha) W_zs + alpha k W_probe, and alpha k b, for the factor k."""
    made = Prior(words.encoder, config, words.class_names, words=words)
    if alpha > 0:
        made.put(alpha * (factor * probe.module.weight - made.weights()), alpha * factor * probe.module.bias)
    return made.predictor(words.templates)
