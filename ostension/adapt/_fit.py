"""The training loop of what methods add: few parameters, few pictures, seconds to minutes; the same bits every time.

Epochs, batches, views and random numbers are functions of (seed, epoch), so a fit that was stopped goes on from its last
epoch with the same result. The model's weights take no gradients while it runs. Whole towers are trained by `train.loop`.

Source of the default recipe: CoOp's trainer on Dassl (SGD, momentum 0.9, weight decay 5e-4 on the contexts, one warm-up epoch
at 1e-5, then a cosine over the epochs that never reaches zero).

Letters: B batch, N samples, V views, E embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ostension import files
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt.base import TEMPLATE, Addition, AdditionPredictor
from ostension.config import require, to_tree
from ostension.errors import CheckpointError, ConfigError, DataError, DivergenceError
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator, seed_for, torch_generator
from ostension.shapes import Float, Int

STATE = "fit.safetensors"
Progress = Callable[[dict[str, float]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an addition is trained.

    Attributes:
        epochs: passes over the pictures; None is for a method that has a rule for it.
        batch_size: pictures a step; the last batch of an epoch is left out if it is smaller, as long as there is another.
        optimizer: "sgd" or "adamw".
        momentum: of "sgd".
        lr: the peak learning rate; None is for a method that has a rule for it.
        weight_decay: on everything that is trained.
        warmup_epochs, warmup_lr: first epochs at a constant low rate.
        schedule: "cosine": lr (1 + cos(pi (e - w) / T)) / 2 in epoch e of T with w of warm-up; or "constant".
        rates: factors of the learning rate by the beginning of a parameter's name; the longest beginning counts.
        views: random crops of each picture that features are computed for; 0 takes the model's own preprocessing.
    """

    epochs: int | None = 50
    batch_size: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    lr: float | None = 0.002
    weight_decay: float = 5e-4
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    views: int = 8

    def __post_init__(self):
        require(self.epochs is None or self.epochs >= 0, "recipe.epochs", self.epochs, "0 or more, or nothing")
        require(self.batch_size >= 1, "recipe.batch_size", self.batch_size, "1 or more")
        require(self.lr is None or self.lr > 0, "recipe.lr", self.lr, "more than 0")
        require(0 <= self.momentum < 1, "recipe.momentum", self.momentum, "0 up to, not including, 1")
        require(self.weight_decay >= 0, "recipe.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_epochs >= 0, "recipe.warmup_epochs", self.warmup_epochs, "0 or more")
        for prefix, factor in self.rates.items():
            require(factor > 0, f"recipe.rates[{prefix!r}]", factor, "more than 0")
        require(self.views >= 0, "recipe.views", self.views, "0 or more")

    def factor(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by."""
        prefixes = [prefix for prefix in self.rates if name.startswith(prefix)]
        return self.rates[max(prefixes, key=len)] if prefixes else 1.0

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0.

        The cosine runs over all epochs and not over those after the warm-up, so the last of 10 epochs is at 9.5 % of the peak.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.lr is None:
            raise ConfigError("recipe.lr is not given, and the method has no rule for it", expected="a number")
        if self.schedule == "constant" or self.epochs is None:
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / self.epochs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step sees.

    Attributes:
        features: (B, E) unit rows of the frozen tower, where the addition leaves the image side alone.
        images: (B, 3, S, S) preprocessed, where it does not.
        targets: (B,) classes.
        domains: (B,) numbers of domains, or None.
        indices: (B,) which pictures these are.
        epoch: counted from 0.
        generator: of whatever the loss draws.
    """

    features: Float[Tensor, "B E"] | None
    images: Float[Tensor, "B 3 S S"] | None
    targets: Int[Tensor, " B"]
    domains: Int[Tensor, " B"] | None
    indices: Int[np.ndarray, " B"]
    epoch: int
    generator: torch.Generator


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
        if getattr(config, "template", "") is None:
            config = dataclasses.replace(config, template=examples.templates[0] if len(examples.templates) == 1 else TEMPLATE)
        if complete is not None:
            config = dataclasses.replace(config, recipe=complete(config, examples))
        addition = kind(model, config, examples.class_names, seed=seed)
        fit_addition(addition, examples.train, config.recipe, seed=seed, folder=folder, progress=progress)
        return addition.predictor()

    return fit


def fit_addition(
    addition: Addition,
    data: Labelled,
    recipe: Recipe,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train an addition in place; gives the mean loss of each epoch.

    Args:
        folder: where the state is kept after every epoch, so that a fit that was stopped goes on; None keeps none.
        progress: told after each epoch.

    Raises:
        DivergenceError: for a loss that is not finite.
        CheckpointError: for a kept state of other settings.
    """
    epochs = recipe.epochs
    if epochs is None:
        raise ConfigError(f"recipe.epochs is not given, and {addition.kind} has no rule for it", expected="a number")
    parameters = dict(addition.named_parameters())
    optimizer = _optimizer(parameters, recipe)
    cached = None if addition.needs_images else data.features(addition.model, recipe.views)
    identity = _identity(addition, data, recipe, seed)
    history = [] if folder is None else _restore(folder, addition, optimizer, identity)
    with frozen(addition.model):
        addition.train()
        for epoch in range(len(history), epochs):
            torch.manual_seed(seed_for(seed, "fit", epoch))  # dropout and the like
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch) * group["factor"]
            losses = []
            for batch in _batches(addition, data, cached, recipe, seed, epoch):
                loss = addition.loss(batch)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                if not math.isfinite(value := float(loss.detach())):
                    raise DivergenceError(
                        f"the loss of {addition.kind} is {value} in epoch {epoch}", fix="lower the learning rate"
                    )
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                losses.append(value)
            history.append({"epoch": epoch, "loss": float(np.mean(losses)), "lr": recipe.rate(epoch)})
            if folder is not None:
                _keep(folder, addition, optimizer, identity, history)
            if progress is not None:
                progress(history[-1])
    optimizer.zero_grad(set_to_none=True)
    addition.eval()
    return history


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, its weights without gradients; as it was afterwards."""
    training = model.training
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    model.eval()
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)


def _batches(
    addition: Addition, data: Labelled, cached: Tensor | None, recipe: Recipe, seed: int, epoch: int
) -> Iterator[Batch]:
    """The batches of an epoch."""
    generator, drawn = numpy_generator(seed, "epoch", epoch), torch_generator(seed, "epoch", epoch)
    device = addition.model.device
    domains = None if data.domains is None else torch.from_numpy(np.ascontiguousarray(data.domains)).to(device)
    wide = torch.promote_types(addition.model.dtype, torch.float32)
    orders = _by_domain(data, recipe, generator) if addition.by_domain else _mixed(data, recipe, generator)
    for indices in orders:
        rows = torch.from_numpy(indices)
        features = images = None
        if cached is not None:
            features = cached[torch.from_numpy(generator.integers(len(cached), size=len(rows))), rows].to(device, wide)
        else:
            images = data.pixels(addition.model, indices, seed=seed, epoch=epoch if recipe.views else None).to(device)
        yield Batch(
            features=features, images=images, targets=data.labels[rows].to(device),
            domains=None if domains is None else domains[rows], indices=indices, epoch=epoch, generator=drawn,
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
    groups = [{"params": [parameter], "factor": recipe.factor(name)} for name, parameter in parameters.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.weight_decay)


def _identity(addition: Addition, data: Labelled, recipe: Recipe, seed: int) -> str:
    from ostension.model.fingerprint import fingerprint

    return files.sha256_json({
        "kind": addition.kind, "config": to_tree(addition.config), "classes": list(addition.class_names), "seed": seed,
        "recipe": to_tree(recipe), "data": data.source.fingerprint(), "targets": np.asarray(data.targets).tolist(),
        "model": fingerprint(addition.model), "start": files.sha256_bytes(safetensors.torch.save(_own(addition))),
    })  # fmt: skip


def _own(addition: Addition) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in addition.state_dict().items()}


def _keep(folder: Path, addition: Addition, optimizer: torch.optim.Optimizer, identity: str, history: list[Any]) -> None:
    """Write parameters and the optimiser's numbers, whole or not at all."""
    tensors = {f"own.{name}": value for name, value in _own(addition).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"identity": identity, "history": json.dumps(history)}
    data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, facts)
    files.write_bytes(folder / STATE, data)


def _restore(folder: Path, addition: Addition, optimizer: torch.optim.Optimizer, identity: str) -> list[dict[str, float]]:
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
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return json.loads(facts["history"])
