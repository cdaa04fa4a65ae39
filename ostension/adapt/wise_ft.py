"""WiSE-FT: the weights half-way between the model and what another method has tuned, which are better than both ends.

    theta = (1 - alpha) theta_0 + alpha theta_1         over all that the method trains, heads included

theta_0 is the method before its first step: zero-shot. alpha = 0.5 is recommended where nothing is known; chosen by validation
pictures it serves accuracy where the pictures are from. Either way no test split is looked at (the papers' "optimal alpha" is).
Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv:2109.01903), and its code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ostension.adapt._fit import Recipe
from ostension.adapt._hand_written import with_templates
from ostension.adapt._judge import Judge
from ostension.adapt._tuning import Tuned, tuning
from ostension.adapt.base import METHODS, TEMPLATE, AdditionPredictor, Examples, Spec
from ostension.config import from_tree, require, to_tree
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.weights.states import mixed_state

SPEC = Spec(
    title="WiSE-FT",
    paper='Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt. "Robust '
    'fine-tuning of zero-shot models". CVPR 2022, arXiv:2109.01903',
    trains="what the tuned method trains",
    selects=True,
    neutral={"alpha": 0.0},
    neutral_template=TEMPLATE,
    departures=("the Fisher weighting of the code's appendix is left out",),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        method: what tunes the other end: finetune, car-ft, lp-ft, flyp, or another that tunes a tower.
        settings: of that method, besides templates, groups and recipe.
        alpha: the share of the tuned weights; None chooses it by validation pictures from 0, 0.1, ..., 1.
        templates, groups, recipe: of that method.
    """

    method: str = "finetune"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    alpha: float | None = 0.5
    templates: tuple[str, ...] = ()
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=tuning)

    def __post_init__(self):
        require(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "0 to 1, or nothing to choose it")
        require(self.method.replace("_", "-") != "wise-ft", "method", self.method, "a method that tunes a tower")

    @property
    def chooses(self) -> bool:
        """Whether validation pictures are asked for: not where alpha is given."""
        return self.alpha is None


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None, progress: Any = None,
    start: Predictor | None = None,
) -> AdditionPredictor:  # fmt: skip
    """Tune, or take what is tuned already, and go back.

    Args:
        start: a tuned predictor for the other end, which is then not trained again.

    Raises:
        ConfigError: for a method or predictor that tunes no tower, or without validation pictures where they are to choose.
    """
    if start is None:
        method, own = METHODS.load(config.method), with_templates(config, examples)
        shared = {"templates": own.templates, "groups": own.groups, "recipe": own.recipe}
        known = {field.name for field in dataclasses.fields(method.Config)}
        tree = to_tree(method.Config()) | {name: to_tree(value) for name, value in shared.items() if name in known}
        made = from_tree(method.Config, tree | config.settings, source=f"settings of {config.method}")
        start = method.fit(model, examples, made, seed=seed, folder=folder, progress=progress)
    module = getattr(start, "module", None)
    if not isinstance(module, Tuned):
        raise ConfigError(f"{start.kind} tunes no tower", expected="finetune, car-ft, lp-ft, flyp, ...")
    assert isinstance(start, AdditionPredictor)
    before = module.untrained().state_dict()
    after = {name: value.clone() for name, value in module.state_dict().items()}

    def at(alpha: float) -> None:
        module.load_state_dict(mixed_state([before, after], [1 - alpha, alpha]))

    alpha, scores = config.alpha, []
    if alpha is None:
        if examples.val is None:
            raise ConfigError("alpha is to be chosen without validation pictures", expected="examples with some, or an alpha")
        judge = Judge(module, examples.val)
        for tenth in range(11):
            at(tenth / 10)
            scores.append((judge.look(tenth), tenth / 10))
        alpha = max(scores, key=lambda pair: (pair[0], -pair[1]))[1]
    at(alpha)
    predictor = module.predictor(start.templates)
    predictor.facts |= {"method": start.kind, "alpha": alpha, "curve": [[share, score] for score, share in scores]}
    return predictor
