"""AdamW over the float32 masters: which weights decay, the clipped step, the exact state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ostension.config import require
from ostension.errors import ConfigError
from ostension.train.precision import Masters, copy_exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW as in the paper's appendix F; the defaults are its settings for the vision transformers.

    Attributes:
        lr: peak learning rate (5e-4 for B/32 at batch 32,768).
        beta2, eps: 0.98 and 1e-6 for vision transformers, 0.999 and 1e-8 for residual networks.
        decay_rule: "paper" decays "all weights that are not gains or biases", embeddings too; "ndim" spares every
            parameter of at most one dimension and the positional and class embeddings (open_clip since 2024).
        clip_norm: largest global norm of the gradient; None does not clip.
        lr_factors: the learning rate of every weight whose name begins with the key is multiplied by the value, e.g.
            {"text.": 0.5}; the longest key wins.
    """

    lr: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    decay_rule: Literal["paper", "ndim"] = "paper"
    clip_norm: float | None = 1.0
    lr_factors: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(self.lr > 0, "optim.lr", self.lr, "more than 0")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, f"optim.{key}", getattr(self, key), "from 0 up to, not including, 1")
        require(self.eps > 0, "optim.eps", self.eps, "more than 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "more than 0, or nothing")
        for prefix, factor in self.lr_factors.items():
            require(factor > 0, f"optim.lr_factors[{prefix!r}]", factor, "more than 0")


class MasterAdamW:
    """AdamW that moves a model's float32 masters and rounds its weights from them.

    It calls torch's fused AdamW as a function and keeps the moments itself, by name: `torch.optim.AdamW` imports torch's
    compiler when it is made, which costs more than two seconds of every start (measured: 1.3 to 2 s of processor time).
    """

    def __init__(self, masters: Masters, config: OptimConfig):
        self.masters, self.config = masters, config
        self._trained = dict(masters.trainable())
        if not self._trained:
            raise ConfigError("nothing to train: no weight of the model requires a gradient")
        self._groups = _groups(masters, config)
        self._first = {name: torch.zeros_like(master) for name, master in self._trained.items()}
        self._second = {name: torch.zeros_like(master) for name, master in self._trained.items()}
        self._count = {name: torch.zeros((), device=master.device) for name, master in self._trained.items()}

    def gradient_norm(self) -> Tensor:
        """Collect the gradients of the last backward pass; their global norm, before any clipping."""
        return nn.utils.get_total_norm(self.masters.collect_gradients())

    @torch.no_grad()
    def step(self, rate_factor: float, gradient_norm: float) -> None:
        """Clip, move the masters at `lr * rate_factor`, round the weights from them and drop the gradients."""
        clip = self.config.clip_norm
        if clip is not None and gradient_norm > clip:
            gradients = [master.grad for master in self._trained.values() if master.grad is not None]
            torch._foreach_mul_(gradients, clip / gradient_norm)
        for group in self._groups:
            names = [name for name in group.names if self._trained[name].grad is not None]
            adamw(
                [self._trained[name] for name in names],
                [self._trained[name].grad for name in names],  # type: ignore[misc]
                [self._first[name] for name in names],
                [self._second[name] for name in names],
                [],
                [self._count[name] for name in names],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=self.config.lr * group.lr_factor * rate_factor,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                eps=self.config.eps,
                weight_decay=group.weight_decay,
            )
        self.masters.publish()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients without moving anything."""
        for name, master in self._trained.items():
            master.grad = self.masters.weights[name].grad = None

    def weight_norm(self) -> Tensor:
        """The global norm of the trained weights."""
        return nn.utils.get_total_norm([master.detach() for master in self._trained.values()])

    def state(self) -> dict[str, Tensor]:
        """Both moments and the count of updates of every weight, by `first.NAME`, `second.NAME`, `count.NAME`."""
        parts = {"first": self._first, "second": self._second, "count": self._count}
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def load(self, state: Mapping[str, Tensor], source: object = None) -> None:
        """Take the moments from `state`.

        Raises:
            CheckpointError: if they are not those of these weights.
        """
        copy_exactly(self.state(), state, source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Weights of equal decay and learning rate."""

    names: tuple[str, ...]
    weight_decay: float
    lr_factor: float


def _groups(masters: Masters, config: OptimConfig) -> list[_Group]:
    """The trained weights by decay and learning rate, in the model's order."""
    for prefix in config.lr_factors:
        if not any(name.startswith(prefix) for name in masters.weights):
            raise ConfigError(f"optim.lr_factors has {prefix!r}, but no weight's name begins so", expected="such as 'text.'")
    undecayed = undecayed_names(masters.model, config.decay_rule)
    members: dict[tuple[float, float], list[str]] = {}
    for name, _ in masters.trainable():
        decay = 0.0 if name in undecayed else config.weight_decay
        prefix = max((key for key in config.lr_factors if name.startswith(key)), key=len, default="")
        members.setdefault((decay, config.lr_factors.get(prefix, 1.0)), []).append(name)
    return [_Group(names=tuple(names), weight_decay=key[0], lr_factor=key[1]) for key, names in members.items()]


def undecayed_names(model: nn.Module, rule: str) -> set[str]:
    """The parameters that weight decay leaves alone under `rule` (see `OptimConfig.decay_rule`)."""
    if rule == "ndim":
        embeddings = ("positional_embedding", "class_embedding")
        return {name for name, weight in model.named_parameters() if weight.ndim <= 1 or name.rsplit(".", 1)[-1] in embeddings}
    found = set()
    for prefix, module in model.named_modules():
        gains = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for name, weight in module.named_parameters(recurse=False):
            if gains or weight.ndim == 0 or name.endswith("bias"):
                found.add(f"{prefix}.{name}" if prefix else name)
    return found
