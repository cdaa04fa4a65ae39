"""Linear probe: logistic regression with an L2 penalty on frozen features, to its optimum.

    min over W, b of   sum_i CE(W x_i + b, y_i) + 1/(2 C) ||W||^2

x are rows of the image tower before the projection, as in the paper, or unit embeddings; C is scikit-learn's. It is chosen on
validation pictures unless it is given. There is nothing random in it.
Source: Radford et al. 2021 (arXiv:2103.00020), section 3.2 and appendix A.3; docs/decisions/solver.md for the solver.
Letters: N samples, C classes, D width of a row.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.adapt._linear import Head, judge, rows_of, told, validation
from ostension.adapt.base import AdditionPredictor, Examples, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.train.strength_search import PathProbe, paper_search, whole_grid

SPEC = Spec(
    title="linear probe",
    paper='Radford et al. "Learning Transferable Visual Models From Natural Language Supervision". ICML 2021, '
    "arXiv:2103.00020; the CLIP paper's few-shot study",
    trains="W (C, D) and b (C) on frozen rows of the image tower",
    selects=True,
    departures=(
        "fitted to a gradient of 1e-5, not for 1,000 iterations of another solver; the optimum is the same",
        "with K pictures a class the strength is chosen on min(K, 4) others a class, not on a whole validation split",
        "validation pictures are not learned from in the end unless `refit`: with few of them that is more labels than K",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the paper's.

    Attributes:
        level: rows before the projection ("pre"), or unit embeddings ("post"), on which zero-shot and the probe are heads of
            the same kind.
        strength: C, the inverse of the penalty beside the sum of the losses; None chooses it by validation accuracy.
        search: at most 15 strengths from 1e-6 to 1e6 as the paper searches, or all 97 ("grid").
        refit: fit again on training and validation pictures together once the strength is chosen, as the paper does.
    """

    level: Literal["pre", "post"] = "pre"
    strength: float | None = None
    search: Literal["paper", "grid"] = "paper"
    refit: bool = False

    def __post_init__(self):
        require(self.strength is None or 0 < self.strength < float("inf"), "strength", self.strength, "a number above 0")
        require(self.strength is None or not self.refit, "refit", self.refit, "false with a strength that is given")


class Probe(Head):
    """W and b on rows of the tower."""

    kind, config_type = "probe", Config


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None, progress: Any = None
) -> AdditionPredictor:
    """The predictor; `seed`, `folder` and `progress` are of methods that train, and do nothing here.

    A class without a picture has its optimum at a bias of minus infinity: it is never predicted.

    Raises:
        ConfigError: without validation pictures where the strength is to be chosen.
    """
    rows, targets, count = rows_of(examples.train, model, config.level), examples.train.targets, len(examples.class_names)
    path = PathProbe(rows, targets, count)
    facts: dict[str, Any] = {}
    if config.strength is None:
        val = validation("probe", examples.val)
        judged = rows_of(val, model, config.level)
        choice = (paper_search if config.search == "paper" else whole_grid)(judge(path, judged, val.targets))
        facts = told(choice)
        if config.refit:
            path = PathProbe(np.concatenate([rows, judged]), np.concatenate([targets, val.targets]), count)
        config = dataclasses.replace(config, strength=choice.strength, refit=False)
    assert config.strength is not None
    path.approach(config.strength)
    probe = Probe(model, config, examples.class_names)
    probe.put(*path.head(config.strength))
    predictor = probe.predictor()
    predictor.facts = {**facts, "strength": config.strength, "gradient_norm": path.gradient_norms[config.strength]}
    return predictor
