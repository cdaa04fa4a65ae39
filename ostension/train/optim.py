"""AdamW over the float32 masters: which weights decay, the clipped step, the exact state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ostension.config import require
from ostension.errors import CheckpointError, ConfigError
from ostension.train.precision import Masters, copy_exactly

MOMENTS = {"exp_avg": "first", "exp_avg_sq": "second", "step": "count"}


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
    """AdamW that moves a model's float32 masters and rounds its weights from them."""

    def __init__(self, masters: Masters, config: OptimConfig):
        self.masters, self.config = masters, config
        self._named = dict(masters.trainable())
        if not self._named:
            raise ConfigError("nothing to train: no weight of the model requires a gradient")
        self._optimizer = torch.optim.AdamW(
            _groups(masters, config), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
        )

    def gradient_norm(self) -> Tensor:
        """Collect the gradients of the last backward pass; their global norm, before any clipping."""
        return nn.utils.get_total_norm(self.masters.collect_gradients())

    def step(self, rate_factor: float, gradient_norm: float) -> None:
        """Clip, move the masters at `lr * rate_factor`, round the weights from them and drop the gradients."""
        clip = self.config.clip_norm
        if clip is not None and gradient_norm > clip:
            gradients = [master.grad for master in self._named.values() if master.grad is not None]
            torch._foreach_mul_(gradients, clip / gradient_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor
        self._optimizer.step()
        self.masters.publish()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients without moving anything."""
        for name, master in self._named.items():
            master.grad = self.masters.weights[name].grad = None

    def weight_norm(self) -> Tensor:
        """The global norm of the trained weights."""
        return nn.utils.get_total_norm([master.detach() for master in self._named.values()])

    def state(self) -> dict[str, Tensor]:
        """Both moments and the count of updates of every weight, by `first.NAME`, `second.NAME`, `count.NAME`."""
        return {
            f"{MOMENTS[moment]}.{name}": value
            for name, master in self._named.items()
            for moment, value in self._optimizer.state.get(master, {}).items()
        }

    def load(self, state: Mapping[str, Tensor], source: object = None) -> None:
        """Take the moments from `state`.

        Raises:
            CheckpointError: if they are not those of these weights.
        """
        for name, master in self._named.items():
            if f"count.{name}" in state:  # absent for a weight that never had a gradient
                count = torch.zeros_like(state[f"count.{name}"], device=master.device)
                fresh = {"step": count, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
                self._optimizer.state[master] = {moment: value.detach() for moment, value in fresh.items()}
        if unknown := set(state) - set(self.state()):
            raise CheckpointError(f"the moment {min(unknown)!r} is of no trained weight", source=source)
        copy_exactly(self.state(), state, source)


def _groups(masters: Masters, config: OptimConfig) -> list[dict]:
    """Parameter groups of equal decay and learning rate, in the model's order."""
    for prefix in config.lr_factors:
        if not any(name.startswith(prefix) for name in masters.weights):
            raise ConfigError(f"optim.lr_factors has {prefix!r}, but no weight's name begins so", expected="such as 'text.'")
    undecayed = undecayed_names(masters.model, config.decay_rule)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, master in masters.trainable():
        decay = 0.0 if name in undecayed else config.weight_decay
        prefix = max((key for key in config.lr_factors if name.startswith(key)), key=len, default="")
        groups.setdefault((decay, config.lr_factors.get(prefix, 1.0)), []).append(master)
    return [
        {"params": members, "weight_decay": decay, "peak": config.lr * factor} for (decay, factor), members in groups.items()
    ]


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
