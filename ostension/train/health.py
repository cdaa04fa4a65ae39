"""Stops a run that has diverged before it can spoil anything, and writes down what there is to know about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.config import require
from ostension.errors import DivergenceError
from ostension.files import write_json
from ostension.train.batches import Batch
from ostension.train.optim import MasterAdamW
from ostension.world import ALONE, World

SKIP_WINDOW = 100
# From random weights to the end of training the norm of the weights grows two- to tenfold; a learning rate at which
# nothing is learnt throws it up by many powers of ten while every loss stays finite, as the embeddings are normalised.
MAX_WEIGHT_GROWTH = 1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One step's numbers, known before the optimiser moves.

    Attributes:
        step: of the run, from 0.
        loss: of the batch.
        grad_norm: global norm of the gradient, before clipping.
        lr: the learning rate that the step will take.
        values: what else the objective measures, such as the accuracy in the batch.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    values: Mapping[str, float]

    @property
    def finite(self) -> bool:
        """Whether the optimiser may move."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def record(self) -> dict[str, float]:
        """What the log keeps of it."""
        return {"loss": self.loss, **self.values, "grad_norm": self.grad_norm, "lr": self.lr}


def allowed_skips(policy: str) -> int:
    """How many non-finite steps in 100 may be skipped under `policy`: "stop" or "skip:N".

    Raises:
        ConfigError: for another policy.
    """
    count = policy.removeprefix("skip:")
    skips = count != policy and count.isdigit() and int(count) >= 1
    require(policy == "stop" or skips, "train.non_finite", policy, "'stop' or 'skip:N'")
    return 0 if policy == "stop" else int(count)


class Health:
    """Watches a run's losses, gradients and weights. Several processes see the same numbers and come to the same end.

    Attributes:
        skipped: the steps that were skipped.
    """

    def __init__(self, folder: Path, policy: str, optimizer: MasterAdamW, world: World = ALONE):
        self.folder, self.allowed, self.optimizer, self.world = folder, allowed_skips(policy), optimizer, world
        self.skipped: list[int] = []
        self._first_norm = float(optimizer.weight_norm())

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON."""
        return {"skipped": self.skipped, "first_norm": self._first_norm}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.skipped, self._first_norm = list(state["skipped"]), state["first_norm"]

    def skip_or_stop(self, measured: Measured, batch: Batch) -> None:
        """Count a non-finite step as skipped, or stop the run; to be called before the gradients are dropped.

        Raises:
            DivergenceError: if the policy allows no more skips.
        """
        recent = [step for step in self.skipped if step > measured.step - SKIP_WINDOW]
        if len(recent) >= self.allowed:
            after = f" after {len(recent)} skipped ones in the last {SKIP_WINDOW}" if self.allowed else ""
            self._stop(f"{_non_finite(measured)} at step {measured.step}{after}", measured, batch)
        self.skipped.append(measured.step)

    def check_weights(self, measured: Measured, batch: Batch) -> None:
        """Stop if the weights are not fit to be saved: not finite, or grown beyond all bounds.

        Raises:
            DivergenceError: before anything is saved.
        """
        norm = float(self.optimizer.weight_norm())
        if not norm <= MAX_WEIGHT_GROWTH * max(self._first_norm, 1.0):
            self._stop(f"the weights ran away by step {measured.step}", measured, batch)

    def _stop(self, what: str, measured: Measured, batch: Batch) -> None:
        cause = self._cause(measured, batch)
        bundle = self.folder / f"diverged_step_{measured.step:08d}"
        report = self._report(what, cause, measured, batch)
        if self.world.first:
            bundle.mkdir(exist_ok=True)
            write_json(bundle / "report.json", report)
        self.world.agree()  # the report is there before any process ends
        raise DivergenceError(f"training diverged: {what}", source=self.folder, fix=f"{cause}; see {bundle.name}/report.json")

    def _cause(self, measured: Measured, batch: Batch) -> str:
        broken = self._everybodys(
            [key for key, image in zip(batch.keys, batch.images, strict=True) if not torch.isfinite(image).all()]
        )
        if broken:
            return f"the image of {broken[0]} holds non-finite numbers"
        grown = float(self.optimizer.weight_norm()) / max(self._first_norm, 1e-12)
        if not grown <= 100:
            return f"the norm of the weights is {grown:.3g} times what it was: lower the learning rate ({measured.lr:.3g})"
        return "no input is broken and the weights are of ordinary size: try a lower learning rate or a longer warm-up"

    def _report(self, what: str, cause: str, measured: Measured, batch: Batch) -> dict[str, Any]:
        masters = self.optimizer.masters
        gradients = masters.gradients
        broken = {name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()}
        broken = set(self._everybodys(sorted(broken)))
        return {
            "what": what,
            "cause": cause,
            "step": measured.step,
            **{name: _json_number(value) for name, value in measured.record().items()},
            "skipped_steps": self.skipped,
            "keys": self._everybodys(list(batch.keys)),
            "non_finite_gradients": [name for name in gradients if name in broken],
            "weight_norms": norms_by_block(dict(masters.trainable()), masters.norm),
            "gradient_norms": norms_by_block(gradients, masters.norm),
        }

    def _everybodys(self, names: list[str]) -> list[str]:
        """The lists of all processes in one."""
        return [name for part in self.world.all_facts(names) for name in part]


def norms_by_block(tensors: Mapping[str, Tensor], norm: Callable[[Mapping[str, Tensor]], Tensor]) -> dict[str, float | str]:
    """The norm of each block's tensors; a block is a numbered layer with its parents, or a module of its own."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        end = number + 1 if number is not None else max(1, len(parts) - 1)
        blocks.setdefault(".".join(parts[:end]), {})[name] = tensor.detach().double()
    return {name: _json_number(float(norm(members))) for name, members in blocks.items()}


def _non_finite(measured: Measured) -> str:
    if not math.isfinite(measured.loss):
        return f"the loss is {measured.loss}"
    return f"the gradient's norm is {measured.grad_norm} with a loss of {measured.loss:.4g}"


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
