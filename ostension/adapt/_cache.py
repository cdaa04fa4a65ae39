"""A cache of training pictures that vote beside the zero-shot classifier: what Tip-Adapter and Tip-Adapter-F share.

    logits_c = scale f @ W_c + alpha sum_i exp(-beta (1 - f . k_i)) [c = y_i]

alpha says how much the cache counts, beta how fast a vote fades with the distance. These are the names of the paper and of its
later code; in older code, and in what was copied from it, the two are swapped.

All pairs of a grid come from one matrix of affinities f . k_i: the steps of beta are equal, so the votes at the next beta are
those at the last times exp(-step (1 - f . k_i)), and the votes of a class are a sum over neighbours once keys lie by class.

Letters: B batch, C classes, E embedding, N cached pictures, M validation pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._hand_written import HandWritten
from ostension.config import require
from ostension.errors import ConfigError
from ostension.image.augment import CropConfig
from ostension.shapes import Float, Int
from ostension.store import embed

CROPS = CropConfig(kind="resized", scale=(0.5, 1.0), mirror=True)
LOWEST = 0.1  # of both grids
VOTES = 1 << 22  # in float64 at a time: 32 MB
BLOCK = 4096  # pictures that are projected together
C = TypeVar("C", bound="Cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voting:
    """Settings of a cache; the grids' are those published for ImageNet.

    Attributes:
        alpha: how much the cache counts beside zero-shot; 0 is zero-shot, None chooses it.
        beta: how fast a vote fades with the distance; None chooses it.
        alpha_most, alpha_steps, beta_most, beta_steps: the grids, from 0.1 in so many equal steps up to, not including, the
            most. The published most, (beta, alpha), is (7, 3), and another one for most data sets, up to (50, 50).
        selection: what is chosen by: "val" pictures, or the "test" split itself, as the published ImageNet results were (and
            the epochs of Tip-Adapter-F on all sets). A record of "test" is no estimate of anything but itself.
        templates: of W; none takes the task's.
    """

    alpha: float | None = None
    beta: float | None = None
    alpha_most: float = 3.0
    alpha_steps: int = 20
    beta_most: float = 7.0
    beta_steps: int = 200
    selection: Literal["val", "test"] = "val"
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or more, or nothing")
            require(getattr(self, f"{name}_most") > LOWEST, f"{name}_most", getattr(self, f"{name}_most"), "more than 0.1")
            require(getattr(self, f"{name}_steps") >= 1, f"{name}_steps", getattr(self, f"{name}_steps"), "1 or more")

    @property
    def chooses(self) -> bool:
        return self.alpha is None or self.beta is None

    def grid(self, name: Literal["alpha", "beta"]) -> Float[np.ndarray, " G"]:
        """The values to try: the one that is given, or the grid."""
        if (value := getattr(self, name)) is not None:
            return np.array([value])
        most, steps = getattr(self, f"{name}_most"), getattr(self, f"{name}_steps")
        return LOWEST + np.arange(steps) * (most - LOWEST) / steps


class Cache(HandWritten):
    """Keys (N, E) with their classes; a subclass makes the keys a buffer or a parameter."""

    binds = False
    config: Voting
    keys: Tensor
    labels: Tensor

    def hold(self, keys: Float[Tensor, "N E"], labels: Int[Tensor, " N"]) -> None:
        """Take these keys."""
        self.keys = torch.nn.Parameter(keys) if isinstance(self.keys, torch.nn.Parameter) else keys
        self.labels = labels

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        # Only the tensors say how many pictures there are.
        if {"keys", "labels"} <= tensors.keys():
            self.hold(torch.empty_like(tensors["keys"]), torch.empty_like(tensors["labels"]))
        super().receive(tensors)

    def affinities(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B N"]:
        """f . k_i."""
        return self.cosines(features, self.keys)

    def zero_shot(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        return self.cosines(features, self.rows) * self.scale()

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        alpha, beta = self.config.alpha, self.config.beta
        assert alpha is not None and beta is not None
        votes = ((self.affinities(features) - 1) * beta).exp()
        values = F.one_hot(self.labels, self.num_classes).to(votes.dtype)
        return self.zero_shot(features) + alpha * (votes @ values)

    def choose(self, val: Labelled, asked: Voting) -> dict[str, Any]:
        """Set alpha and beta to the best pair by the accuracy on validation pictures; of equal ones the first, betas outside.

        Gives what was found.
        """
        wide = torch.promote_types(self.model.dtype, torch.float32)
        rows = val.features(self.model)[0].to(self.model.device, wide)
        alphas, betas = asked.grid("alpha"), asked.grid("beta")
        with torch.no_grad():
            table = grid_accuracies(
                self.zero_shot(rows).double().cpu().numpy(), self.affinities(rows).double().cpu().numpy(),
                self.labels.cpu().numpy(), val.targets, alphas, betas,
            )  # fmt: skip
        first, second = np.unravel_index(table.argmax(), table.shape)
        alpha, beta = float(alphas[second]), float(betas[first])
        self.config = dataclasses.replace(self.config, alpha=alpha, beta=beta)
        told = {"alpha": alpha, "beta": beta, "accuracy": float(table.max())}
        return {**told, "pictures": len(val), "selection": asked.selection}


def grid_accuracies(
    zero_shot: Float[np.ndarray, "M C"], affinities: Float[np.ndarray, "M N"], labels: Int[np.ndarray, " N"],
    targets: Int[np.ndarray, " M"], alphas: Float[np.ndarray, " A"], betas: Float[np.ndarray, " G"],
) -> Float[np.ndarray, "G A"]:  # fmt: skip
    """The accuracy at each pair of a beta and an alpha; betas must be in equal steps."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    right = np.zeros((len(betas), len(alphas)), dtype=np.int64)
    size = max(1, VOTES // len(labels))
    for start in range(0, len(targets), size):
        block = slice(start, start + size)
        distance = 1 - affinities[block][:, order]
        votes = np.exp(-betas[0] * distance)
        fading = np.exp(-(betas[1] - betas[0]) * distance) if len(betas) > 1 else None
        for place in range(len(betas)):
            if place:
                votes *= fading
            sums = np.zeros_like(zero_shot[block])
            sums[:, classes] = np.add.reduceat(votes, starts, axis=1)
            for number, alpha in enumerate(alphas):
                right[place, number] += ((zero_shot[block] + alpha * sums).argmax(axis=1) == targets[block]).sum()
    return right / len(targets)


def filled(cache: C, examples: Examples, views: int) -> C:
    """The cache with the training pictures' keys, of the mean over so many random crops; 0 takes the model's own view."""
    model, train = cache.model, examples.train
    if train.store is not None:  # what is trained afterwards needs the unit rows of the same crops: one pass gives both
        numbers = tuple(range(1, views + 1)) or (0,)
        embed(train.store, model, train.source, split=train.name, levels=("pre", "post"), views=numbers, crop=CROPS)
    rows = train.features(model, views, crop=CROPS, level="pre")
    with torch.no_grad():
        made = torch.cat([model.project_image(part).float().cpu() for part in rows.flatten(0, 1).split(BLOCK)])
    cache.hold(keys_of(made.view(*rows.shape[:2], -1)).to(model.device), train.labels.to(model.device))
    return cache


def keys_of(embeddings: Float[Tensor, "V N E"]) -> Float[Tensor, "N E"]:
    """Unit rows of the mean over views, which is taken of embeddings with their lengths."""
    return F.normalize(embeddings.mean(dim=0), dim=-1)


def to_choose_by(examples: Examples, config: Voting, kind: str) -> Labelled:
    """What alpha, beta and the epoch may be chosen by: the test split only if settings and examples both say so.

    Raises:
        ConfigError: where one says so and the other does not, or there is nothing.
    """
    found = "test" if examples.facts.get("selection") == "test" else "val"
    if found != config.selection:
        raise ConfigError(
            f"{kind} is to choose by {config.selection!r}, and the pictures to choose by are of {found!r}",
            expected="selection=test with the test split, which is the published protocol, or neither",
        )
    if examples.val is None:
        raise ConfigError(f"{kind} has no pictures to choose by", fix="give alpha and beta, or a task with some")
    return examples.val
