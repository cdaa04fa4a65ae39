"""Contrastive adapters: a net on frozen features pulls what a first classifier gets wrong to what it gets right in a class.

    logits = scale cos(A(f), W_c),   A(f) = U relu(BatchNorm(D f)) + u,   D (H, E), U (E, H)
    L_a = - mean_p log [e^(s_ap / T) / (e^(s_ap / T) + sum_n e^(s_an / T))],   s the cosines of A's outputs

Anchors a are the pictures that the first classifier (zero-shot, or clusters) gets wrong, positives p those of the class that it
gets right, negatives n pictures of other classes among the anchor's nearest in the frozen space. Every second epoch is the
cross-entropy on as many pictures of each (class, first prediction). No groups are needed but for choosing the epoch: the one
with the best worst group (class and domain) on validation pictures.
Source: Zhang and Re 2022, "Contrastive Adapters for Foundation Model Group Robustness" (arXiv:2207.07180), and the code of the
submission.
Letters: B batch, C classes, E embedding, H hidden width, N pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._anchors import Pool, contrast
from ostension.adapt._clusters import as_classes, k_means
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt._hand_written import HandWritten, with_templates
from ostension.adapt._init import uniform
from ostension.adapt.base import AdditionPredictor, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.shapes import Float, Int

AVERAGE = 1e-3  # what the average counts for beside the worst group: it decides between equal ones

SPEC = Spec(
    title="contrastive adapters",
    paper='Zhang, Re. "Contrastive Adapters for Foundation Model Group Robustness". NeurIPS 2022, arXiv:2207.07180',
    trains="two matrices (128, E) and (E, 128) with BatchNorm on the picture's feature",
    selects=True,
    departures=(
        "one BatchNorm forward serves all anchors of a step and every picture counts once in it; in the code each anchor's "
        "pictures, placeholders too, are normalised for themselves, in 128 forwards",
        "first predictions are zero-shot's; the code's default, 2-means on UMAP, is here k-means on the features themselves "
        "(initial=clusters)",
        "a class without errors, or with nothing right, gives no anchors and the record says so; the code passes over it",
        "with fewer pictures than negatives are asked for all of them count; the code then passes over the class",
        "unit rows go in, where the code's have their length, and the cosines' multiplier is the model's own, not 100",
        "between epochs with the same worst group the average decides; no training at all is among them",
        "templates are the task's; the code's is 'This is a picture of a {}.'",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        width: H.
        temperature: T.
        positives, negatives: at most so many for an anchor.
        neighbours: negatives are drawn from so many nearest pictures; those of the anchor's own class then do not count.
        share: of the anchors in an epoch, drawn anew; 0.1 for CelebA.
        cell: pictures of each (class, first prediction) in an epoch of cross-entropy, 500 for Waterbirds; None is as many as
            the largest has.
        initial: the first predictions: "zero-shot", or "clusters", each of which stands for a class.
        templates: of W; none takes the task's.
        recipe: how it is trained; a step has `batch_size` anchors, whose losses are summed. `views` is 0.
    """

    width: int = 128
    temperature: float = 0.1
    positives: int = 2048
    negatives: int = 2048
    neighbours: int = 4096
    share: float = 1.0
    cell: int | None = None
    initial: Literal["zero-shot", "clusters"] = "zero-shot"
    templates: tuple[str, ...] = ()
    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(
            epochs=100, batch_size=128, lr=1e-3, weight_decay=5e-5, warmup_epochs=0, schedule="constant", views=0, select="best"
        )
    )

    def __post_init__(self):
        for name in ("width", "positives", "negatives", "neighbours"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.temperature > 0, "temperature", self.temperature, "more than 0")
        require(0 < self.share <= 1, "share", self.share, "above 0, at most 1")
        require(self.cell is None or self.cell >= 1, "cell", self.cell, "1 or more, or nothing")
        require(self.recipe.views == 0, "recipe.views", self.recipe.views, "0: anchors and the others are kept features")


class ContrastiveAdapter(HandWritten):
    """The net, and what of the training pictures only training uses."""

    kind, config_type = "contrastive-adapter", Config
    config: Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        width, generator = model.config.embed_dim, torch_generator(seed, "contrastive_adapter")

        def first(*shape: int, fan: int) -> nn.Parameter:
            return nn.Parameter(uniform(shape, fan**-0.5, generator).to(model.device))

        self.down = first(config.width, width, fan=width)
        self.norm = nn.BatchNorm1d(config.width, device=model.device)
        self.up, self.offset = first(width, config.width, fan=config.width), first(width, fan=config.width)
        self.pool: Pool | None = None

    def settle(self) -> None:
        self.pool = None

    def adapted(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Unit rows of A(f)."""
        hidden = self.norm(F.linear(features.to(self.down.dtype), self.down)).relu()
        return F.normalize(F.linear(hidden, self.up, self.offset), dim=-1)

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        return self.cosines(self.adapted(features), self.rows) * self.scale()

    def prepare(self, data: Labelled, seed: int) -> None:
        """Find what the first classifier gets right and wrong of the training pictures, and say it."""
        rows = data.features(self.model)[0]
        if self.config.initial == "zero-shot":
            guessed = self.cosines(rows.to(self.model.device), self.rows).argmax(1).cpu().numpy()
        else:
            clusters = k_means(rows, self.num_classes, torch_generator(seed, "contrastive_adapter", "clusters"))
            guessed = as_classes(clusters, data.targets, self.num_classes)
        self.pool = Pool(rows.to(self.model.device), data.labels.to(self.model.device), guessed)
        self.facts |= {"initial": self.config.initial, **self.pool.told(self.class_names)}

    def contrasts(self, epoch: int) -> bool:
        """Whether an epoch is one of the contrastive loss: every second, from the first, if there are anchors."""
        assert self.pool is not None
        return epoch % 2 == 0 and len(self.pool.anchors) > 0

    def order(self, data: Labelled, epoch: int, generator: np.random.Generator) -> Iterable[Int[np.ndarray, " B"]]:
        assert self.pool is not None
        size = self.config.recipe.batch_size
        if self.contrasts(epoch):
            anchors = generator.permutation(self.pool.anchors)
            anchors = anchors[: max(1, round(self.config.share * len(anchors)))]
            return [anchors[start : start + size] for start in range(0, len(anchors), size)]
        chosen = self.pool.balanced(self.config.cell, generator)
        # BatchNorm needs two pictures: a single one goes with the batch before, and one that is alone counts twice.
        chosen = np.repeat(chosen, 2) if len(chosen) == 1 else chosen
        starts = [start for start in range(0, len(chosen), max(2, size)) if start == 0 or len(chosen) - start > 1]
        return np.split(chosen, starts[1:])

    def loss(self, batch: Any) -> Tensor:
        if not self.contrasts(batch.epoch):
            return super().loss(batch)
        assert self.pool is not None
        config, pool = self.config, self.pool
        anchors = torch.from_numpy(batch.indices).to(pool.rows.device)
        positive, negative = pool.companions(anchors, config.positives, config.negatives, config.neighbours, batch.generator)
        used = torch.cat([(positive | negative).any(0).nonzero()[:, 0], anchors]).unique()
        outputs = self.adapted(pool.rows[used])
        similarities = outputs[torch.searchsorted(used, anchors)] @ outputs.T / config.temperature
        return contrast(similarities, positive[:, used], negative[:, used]).sum()

    def score(self, logits: Float[Tensor, "N C"], val: Labelled) -> float:
        """The accuracy of the worst class and domain (of the worst class without domains), then the average."""
        right = (logits.argmax(dim=1) == val.labels).numpy()
        domains = np.zeros_like(val.targets) if val.domains is None else val.domains
        _, cells = np.unique(np.stack([val.targets, domains]), axis=1, return_inverse=True)
        return float((np.bincount(cells, weights=right) / np.bincount(cells)).min() + AVERAGE * right.mean())


def fit(
    model: CLIP,
    examples: Examples,
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> AdditionPredictor:
    """The predictor of the epoch with the best worst group; the training pictures stay behind."""
    config = with_templates(config, examples)
    addition = ContrastiveAdapter(model, config, examples.class_names, seed=seed)
    addition.prepare(examples.train, seed)
    fit_addition(addition, examples.train, config.recipe, val=examples.val, seed=seed, folder=folder, progress=progress)
    return addition.predictor(config.templates)
