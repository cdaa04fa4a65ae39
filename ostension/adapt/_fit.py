"""The training loop of what methods add: few parameters, few pictures, seconds to minutes; the same bits every time.

Epochs, batches, views and random numbers are functions of (seed, epoch), so a fit that was stopped goes on from its last
epoch with the same result. The model's weights take no gradients while it runs. Whole towers are trained by `train.loop`.

Letters: B batch, N samples, V views, E embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ostension import files
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._hand_written import with_templates
from ostension.adapt._judge import Judge
from ostension.adapt._recipe import Recipe
from ostension.adapt.base import TEMPLATE, Addition, AdditionPredictor
from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, DataError, DivergenceError
from ostension.model.clip import CLIP
from ostension.model.modes import evaluating
from ostension.runtime import numpy_generator, seed_for, torch_generator
from ostension.shapes import Float, Int

__all__ = ["Batch", "Fit", "Recipe", "fit_addition", "fitting", "frozen"]

STATE = "fit.safetensors"
KEEP_S = 5.0  # work that a stop may lose; writing after every epoch would take longer than epochs of milliseconds
Progress = Callable[[dict[str, float]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step sees.

    Attributes:
        features: (B, E) unit rows of the frozen tower, where the addition leaves the image side alone or compares with it.
        images: (B, 3, S, S) preprocessed, where it does not leave it alone.
        targets: (B,) classes.
        domains: (B,) numbers of domains, or None.
        indices: (B,) which pictures these are.
        epoch: counted from 0.
        generator: of whatever the loss draws.
        notes: numbers that the loss may leave here; their means over an epoch are reported beside it.
    """

    features: Float[Tensor, "B E"] | None
    images: Float[Tensor, "B 3 S S"] | None
    targets: Int[Tensor, " B"]
    domains: Int[Tensor, " B"] | None
    indices: Int[np.ndarray, " B"]
    epoch: int
    generator: torch.Generator
    notes: dict[str, float] = dataclasses.field(default_factory=dict)


class Fit(Protocol):
    """A method's `fit`."""

    def __call__(
        self, model: CLIP, examples: Examples, config: Any, *, seed: int = 0, folder: Path | None = None,
        progress: Progress | None = None,
    ) -> AdditionPredictor: ...  # fmt: skip


def fitting(kind: type[Addition], complete: Callable[[Any, Examples], Recipe] | None = None) -> Fit:
    """The `fit` of a method that is an `Addition` trained on `examples.train` with `config.recipe`.

    Args:
        complete: what gives the recipe where settings leave something to a rule of the method.
    """

    def fit(
        model: CLIP, examples: Examples, config: Any, *, seed: int = 0, folder: Path | None = None,
        progress: Progress | None = None,
    ) -> AdditionPredictor:  # fmt: skip
        if getattr(config, "templates", None) == ():
            config = with_templates(config, examples)
        if getattr(config, "template", "") is None:
            config = dataclasses.replace(config, template=examples.templates[0] if len(examples.templates) == 1 else TEMPLATE)
        if complete is not None:
            config = dataclasses.replace(config, recipe=complete(config, examples))
        addition = kind(model, config, examples.class_names, seed=seed)
        fit_addition(
            addition, examples.train, config.recipe, val=examples.val, seed=seed, folder=folder, progress=progress
        )  # fmt: skip
        return addition.predictor()

    return fit


def fit_addition(
    addition: Addition,
    data: Labelled,
    recipe: Recipe,
    *,
    val: Labelled | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train an addition in place; gives the mean loss of each epoch, and its score where the best one is chosen.

    Args:
        val: what the best epoch is chosen by.
        folder: where the state is kept, after an epoch, every few seconds, so that a fit that was stopped goes on; None keeps
            none.
        progress: told after each epoch.

    Raises:
        DivergenceError: for a loss that is not finite.
        CheckpointError: for a kept state of other settings.
        ConfigError: without `val`, if an epoch is to be chosen by it.
    """
    epochs = recipe.epochs
    if epochs is None:
        raise ConfigError(f"recipe.epochs is not given, and {addition.kind} has no rule for it", expected="a number")
    if recipe.select == "best" and val is None:
        raise ConfigError("recipe.select is 'best' without validation pictures", expected="examples with some, or 'last'")
    parameters = {name: parameter for name, parameter in addition.named_parameters() if parameter.requires_grad}
    optimizer = _optimizer(parameters, recipe)
    # Rows of crops that are drawn anew each time cannot be kept beside pixels.
    wanted = not recipe.views and addition.compares if addition.needs_images else True
    cached = data.features(addition.model, recipe.views, crop=recipe.crop) if wanted else None
    identity = _identity(addition, data, val if recipe.select == "best" else None, recipe, seed)
    judge = Judge(addition, val) if recipe.select == "best" and val is not None else None
    history = [] if folder is None else _restore(folder, addition, optimizer, identity, judge)
    kept = time.monotonic()
    with frozen(addition.model):
        if judge is not None and not history:
            judge.look(-1)
        addition.train()
        for epoch in range(len(history), epochs):
            torch.manual_seed(seed_for(seed, "fit", epoch))  # dropout and the like
            losses, notes, orders = [], list[dict[str, float]](), _Orders(addition, data, recipe, seed, epoch)
            for step, batch in enumerate(orders.batches(cached)):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(epoch, step, len(orders)) * group["factor"]
                loss = addition.loss(batch)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                if not math.isfinite(value := float(loss.detach())):
                    raise DivergenceError(
                        f"the loss of {addition.kind} is {value} in epoch {epoch}", fix="lower the learning rate"
                    )
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.grad = gradient
                if recipe.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
                optimizer.step()
                losses.append(value)
                notes.append(batch.notes)
            means = {name: float(np.mean([note[name] for note in notes])) for name in notes[0]}
            history.append({"epoch": epoch, "loss": float(np.mean(losses)), "lr": recipe.rate(epoch), **means})
            if judge is not None:
                history[-1]["score"] = judge.look(epoch)
            if folder is not None and time.monotonic() - kept >= KEEP_S:
                kept = time.monotonic()
                _keep(folder, addition, optimizer, identity, history, judge)
            if progress is not None:
                progress(history[-1])
    optimizer.zero_grad(set_to_none=True)
    if judge is not None:
        judge.take_best()
        addition.facts |= {"epoch": judge.epoch, "score": judge.score}
    addition.eval()
    return history


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, its weights without gradients; as it was afterwards."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    state = torch.random.get_rng_state()
    try:
        with evaluating(model):
            yield
    finally:
        torch.random.set_rng_state(state)
        for parameter in wanted:
            parameter.requires_grad_(True)


class _Orders:
    """The batches of an epoch: which pictures, and what a step sees of them."""

    def __init__(self, addition: Addition, data: Labelled, recipe: Recipe, seed: int, epoch: int):
        self.addition, self.data, self.recipe, self.seed, self.epoch = addition, data, recipe, seed, epoch
        self.generator = numpy_generator(seed, "epoch", epoch)
        own = addition.order(data, epoch, self.generator)
        usual = _by_domain if addition.by_domain or data.by_domain else _mixed
        self.orders = list(usual(data, recipe, self.generator) if own is None else own)

    def __len__(self) -> int:
        return len(self.orders)

    def batches(self, cached: Tensor | None) -> Iterator[Batch]:
        addition, data, recipe = self.addition, self.data, self.recipe
        device, drawn = addition.model.device, torch_generator(self.seed, "epoch", self.epoch)
        domains = None if data.domains is None else torch.from_numpy(np.ascontiguousarray(data.domains)).to(device)
        wide = torch.promote_types(addition.model.dtype, torch.float32)
        for indices in self.orders:
            rows = torch.from_numpy(indices)
            features = images = None
            if cached is not None:
                views = torch.from_numpy(self.generator.integers(len(cached), size=len(rows)))
                features = cached[views, rows].to(device, wide)
            if addition.needs_images:
                epoch = self.epoch if recipe.views else None
                images = data.pixels(addition.model, indices, seed=self.seed, epoch=epoch, crop=recipe.crop).to(device)
            yield Batch(
                features=features, images=images, targets=data.labels[rows].to(device),
                domains=None if domains is None else domains[rows], indices=indices, epoch=self.epoch, generator=drawn,
            )  # fmt: skip


def _mixed(data: Labelled, recipe: Recipe, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """The pictures of each batch: a permutation in pieces, without a smaller rest."""
    order = generator.permutation(len(data))
    size = min(recipe.batch_size, len(order))
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def _by_domain(data: Labelled, recipe: Recipe, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of equal parts of every domain, as many as the largest domain fills; smaller ones begin anew."""
    if data.domains is None:
        raise DataError("the pictures have no domains", expected="a domain for each, such as a group field of the task")
    members = [np.flatnonzero(data.domains == domain) for domain in np.unique(data.domains)]
    steps = max(1, max(map(len, members)) // recipe.batch_size)
    rows = []
    for places in members:
        wanted = steps * recipe.batch_size
        rounds = [generator.permutation(places) for _ in range(-(-wanted // len(places)))]
        rows.append(np.concatenate(rounds)[:wanted].reshape(steps, recipe.batch_size))
    for step in range(steps):
        yield np.concatenate([part[step] for part in rows])


def _optimizer(parameters: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser; every epoch sets the rates."""
    members: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault(recipe.factor(name), []).append(parameter)
    groups = [{"params": found, "factor": factor} for factor, found in members.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, eps=recipe.eps, weight_decay=recipe.weight_decay)


def _identity(addition: Addition, data: Labelled, val: Labelled | None, recipe: Recipe, seed: int) -> str:
    from ostension.model.fingerprint import fingerprint

    return files.sha256_json({
        "kind": addition.kind, "config": to_tree(addition.config), "classes": list(addition.class_names), "seed": seed,
        "recipe": to_tree(recipe), "data": data.source.fingerprint(), "targets": np.asarray(data.targets).tolist(),
        "val": None if val is None else [val.source.fingerprint(), np.asarray(val.targets).tolist()],
        "model": fingerprint(addition.model), "start": files.sha256_bytes(safetensors.torch.save(addition.tensors())),
    })  # fmt: skip


def _keep(
    folder: Path, addition: Addition, optimizer: torch.optim.Optimizer, identity: str, history: list[Any], judge: Judge | None
) -> None:
    """Write parameters and the optimiser's numbers, and the best parameters so far, whole or not at all."""
    tensors = {f"own.{name}": value for name, value in addition.tensors().items()}
    facts = {"identity": identity, "history": json.dumps(history)}
    if judge is not None:
        tensors |= {f"best.{name}": value for name, value in judge.best.items()}
        facts["best"] = json.dumps([judge.score, judge.epoch])
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items() if value is not None}
    data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, facts)
    with files.writing(folder):
        files.write_bytes(folder / STATE, data)


def _restore(
    folder: Path, addition: Addition, optimizer: torch.optim.Optimizer, identity: str, judge: Judge | None
) -> list[dict[str, float]]:
    """Read what `_keep` wrote; nothing if there is nothing."""
    path = folder / STATE
    if not path.is_file():
        return []
    with safetensors.safe_open(path, "pt") as opened:
        facts = opened.metadata() or {}
        if facts.get("identity") != identity:
            raise CheckpointError("a fit of other settings or data", source=path, fix="use another folder, or remove it")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    own = {name.removeprefix("own."): value for name, value in tensors.items() if name.startswith("own.")}
    addition.load_state_dict(own)
    if judge is not None:
        judge.best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        judge.score, judge.epoch = json.loads(facts["best"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return json.loads(facts["history"])
