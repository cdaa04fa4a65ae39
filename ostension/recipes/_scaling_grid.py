"""A grid of runs: model sizes x samples seen x data sizes of one recipe, each a complete run of its own.

Everything of a recipe that is a number of steps (warm-up, cool-down, ramps, checkpoints, log) keeps its share of the run, so
each point has its own whole schedule and none is another's half.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.config import from_tree, require, to_tree
from ostension.errors import ConfigError
from ostension.evals.during_training import EvaluationConfig
from ostension.files import read_json
from ostension.model.config import ModelConfig, ResNetConfig, TextConfig, VitConfig
from ostension.model.flops import forward_gflops
from ostension.recipes import RECIPES
from ostension.recipes._emoji_batches import EmojiBatchesConfig
from ostension.train.pretraining import EvaluationConfig as EvaluationOfRun
from ostension.train.pretraining import Pretraining

# Settings that count steps, beside `train.steps` itself; those that a run has and that are not 0 keep their share of it.
STEP_COUNTS = (
    "train.schedule.warmup_steps", "train.schedule.cooldown_steps", "train.checkpoint.every", "train.log_every",
    "batches.ramp_steps",
)  # fmt: skip
MIN_STEPS = 10
FACTORS = (0.5, 0.75, 1.0)  # of the widths, where a grid names no sizes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """What is varied, and what of it is measured.

    Attributes:
        recipe: the run that all points derive from.
        settings: that all points have in place of the recipe's.
        sizes: of the model, by name: the settings of each.
        data: amounts of data, by name: the settings of each; smallest first.
        samples: samples seen, in rising order; or
        ratios: the samples seen by the smallest amount of them, which the budget then decides.
        evaluation: what is measured at the end of each point, where the recipe brings nothing of its own.
        targets: measurements (shares; the error is 1 - each) that the law is fitted to; the first is the headline.
    """

    recipe: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    sizes: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    samples: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    evaluation: EvaluationConfig | None = None
    targets: tuple[str, ...]

    def __post_init__(self):
        for key in ("sizes", "data"):
            names = list(getattr(self, key))
            require(bool(names), f"grid.{key}", names, "one or more")
            for name in names:
                require(NAME.fullmatch(name) is not None, f"grid.{key}", name, "names of letters, digits, '.', '_' and '-'")
        if (self.samples is None) == (self.ratios is None):
            raise ConfigError(f"grid.samples is {self.samples} and grid.ratios is {self.ratios}", expected="one of the two")
        for key in ("samples", "ratios"):
            values = getattr(self, key)
            if values is not None:
                rising = bool(values) and values[0] > 0 and list(values) == sorted(set(values))
                require(rising, f"grid.{key}", values, "positive numbers in rising order")
        require(bool(self.targets), "grid.targets", self.targets, "one or more")

    @property
    def amounts(self) -> tuple[float, ...]:
        """Samples seen, in the unit that is known before the budget is."""
        return self.ratios if self.samples is None else self.samples  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One run of the grid.

    Attributes:
        name: SIZE-SAMPLES-DATA, also of its run folder.
        gmac_per_pair: 1e9 multiply-adds of one picture and one text of full length, forward.
        samples_seen: whole batches.
    """

    name: str
    size: str
    data: str
    steps: int
    samples_seen: int
    gmac_per_pair: float
    pretraining: Pretraining

    @property
    def compute(self) -> float:
        """GMAC a pair x samples seen."""
        return self.gmac_per_pair * self.samples_seen


def read_grid(path: Path) -> GridConfig:
    """A grid from a JSON file.

    Raises:
        DataError, ConfigError: if it is not one.
    """
    return from_tree(GridConfig, read_json(path), path)


def widths_grid(
    recipe: str, settings: Mapping[str, Any], evaluation: EvaluationConfig | None, *, smoke: bool = False
) -> GridConfig:
    """The grid of any recipe: its widths at half, three quarters and whole, samples seen 1 : 2 : 4.

    Raises:
        ConfigError: for towers that cannot be made narrower so, or a recipe that measures nothing.
    """
    found = RECIPES.load(recipe)
    base = (found.smoke() if smoke else found.recipe()).changed(settings)
    sizes = {f"w{round(100 * factor)}": narrower(base.model, factor) for factor in FACTORS}
    if evaluation is None and base.evaluation is None:
        raise ConfigError(
            f"the recipe {recipe} measures nothing on held-out data", expected="a task to be measured on", fix="add --zero-shot"
        )
    measured = evaluation or base.evaluation
    assert measured is not None
    tasks = getattr(measured, "zero_shot", ())
    targets = tuple(f"{task.name}/top1" for task in tasks)
    targets += tuple(f"{pairs}/image_to_text_r5" for pairs in getattr(measured, "pairs", ()))
    return GridConfig(
        recipe=recipe, settings=dict(settings), sizes=sizes, data={"all": {}}, ratios=(1.0, 2.0, 4.0), evaluation=evaluation,
        targets=targets,
    )  # fmt: skip


def narrower(model: ModelConfig, factor: float) -> dict[str, Any]:
    """The settings that make both towers `factor` as wide, to whole heads.

    Raises:
        ConfigError: for a tower that is not one of ours.
    """
    found: dict[str, Any] = {}
    for key, tower in (("vision", model.vision), ("text", model.text)):
        if isinstance(tower, ResNetConfig):
            # The last map has a fixed number of channels for each of the width, and its heads must divide them.
            each = tower.channels // tower.width
            unit = math.lcm(2, tower.head_width // math.gcd(each, tower.head_width))
        elif isinstance(tower, (VitConfig, TextConfig)):
            unit = tower.head_width
        else:
            raise ConfigError(f"the {key} tower is of the kind {tower.kind!r}", expected="a grid file that names its sizes")
        found[f"model.{key}.width"] = max(1, round(tower.width * factor / unit)) * unit
    return found


def with_steps(pretraining: Pretraining, steps: int) -> Pretraining:
    """The run in another number of steps, with everything that counts steps in proportion.

    A run that is so many epochs long has no number to keep a share of; its warm-up is then what the schedule takes by itself.
    """
    tree = pretraining.tree()
    own = pretraining.train.steps
    found: dict[str, Any] = {"train.steps": steps, "train.epochs": None}
    if own is None:
        found["train.schedule.warmup_steps"] = None
    for key in STEP_COUNTS:
        value: Any = tree
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value and own is not None:
            found[key] = max(1, round(value * steps / own))
    if "train.checkpoint.every" in found:  # a checkpoint every other step of a short run costs more than it saves
        found["train.checkpoint.every"] = max(MIN_STEPS, found["train.checkpoint.every"])
    return pretraining.changed(found)


def base_run(grid: GridConfig, *, smoke: bool = False, seed: int = 0) -> Pretraining:
    """What all points derive from: the recipe with the grid's settings, measured once, at its end.

    Raises:
        ConfigError: for settings that do not exist, or a recipe that measures nothing.
    """
    recipe = RECIPES.load(grid.recipe)
    base = recipe.smoke() if smoke else recipe.recipe()
    base = able(base).changed({"train.seed": seed, "batches.seed": seed, **grid.settings}, "grid.settings")
    evaluation = grid.evaluation or base.evaluation or questions(base)
    if evaluation is None:
        raise ConfigError(f"the recipe {grid.recipe} measures nothing", source="grid.evaluation", expected="what to measure")
    # `keep`: a point needs only its newest checkpoint, and only until it is finished.
    return dataclasses.replace(base, evaluation=evaluation).changed({"train.checkpoint.keep": 1, "train.best": None})


def able(base: Pretraining) -> Pretraining:
    """The recipe; one on emoji also has `batches.share`, by which training sees fewer names."""
    from ostension.recipes._emoji_grid import SharedEmojiConfig

    if not isinstance(base.batches, EmojiBatchesConfig):
        return base
    return dataclasses.replace(base, batches=from_tree(SharedEmojiConfig, to_tree(base.batches)))


def questions(base: Pretraining) -> EvaluationOfRun | None:
    """What a recipe on emoji is asked, which brings no evaluation of its own."""
    from ostension.recipes._emoji_grid import EmojiQuestions

    return EmojiQuestions(every=base.batches.every) if isinstance(base.batches, EmojiBatchesConfig) else None


def points_of(grid: GridConfig, samples: Sequence[int], *, smoke: bool = False, seed: int = 0) -> list[GridPoint]:
    """All points, the cheapest first; of equally dear ones those with less data first.

    Raises:
        ConfigError: for settings that do not exist, or two points that would be the same.
    """
    base = base_run(grid, smoke=smoke, seed=seed)
    order = {name: place for place, name in enumerate(grid.data)}
    points = []
    for size, of_size in grid.sizes.items():
        for data, of_data in grid.data.items():
            made = base.changed(of_size, f"grid.sizes.{size}").changed(of_data, f"grid.data.{data}")
            batch_size = batch_size_of(made)
            for amount in samples:
                steps = max(MIN_STEPS, round(amount / batch_size))
                run = with_steps(made, steps)
                points.append(GridPoint(
                    name=f"{size}-{short(steps * batch_size)}-{data}", size=size, data=data, steps=steps,
                    samples_seen=steps * batch_size, gmac_per_pair=gmac_per_pair(run.model),
                    pretraining=run.changed({"train.evaluate_every": steps}),
                ))  # fmt: skip
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two points of the grid are {name}", source="grid.samples", expected="amounts that differ more")
    return sorted(points, key=lambda point: (point.compute, order[point.data]))


def batch_size_of(pretraining: Pretraining) -> int:
    """Pairs in a batch.

    Raises:
        ConfigError: if the batches' settings do not say it.
    """
    batches: Any = pretraining.batches
    if isinstance(batches, EmojiBatchesConfig):
        return batches.concepts * batches.drawings
    if not isinstance(getattr(batches, "batch_size", None), int):
        what = f"batches of the kind {type(batches).__name__} do not say how many pairs they have"
        raise ConfigError(what, expected="a recipe with batches.batch_size")
    return batches.batch_size


def gmac_per_pair(model: ModelConfig) -> float:
    """1e9 multiply-adds of one picture and one text of full length, forward: the unit of the OpenCLIP study."""
    image, text = forward_gflops(model)
    return (image + text) / 2


def short(samples: int) -> str:
    """A number of samples for a name: 950, 12.3k, 4M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if samples >= unit:
            return f"{samples / unit:.4g}{name}"
    return str(samples)
