"""Say how likely each pair is noise, by a mixture of two Gaussians over the losses that a model gives the pairs.

    noise(pair) = strength * P(high component | loss of the pair)                    (train.mixture, our reading of NLIP)

A pair's loss is its contrastive loss, both ways, within a batch of about `batch` pairs of its part, drawn by the seed and the
part's number, with its first caption; pairs of equal caption are not held against each other. So losses depend on the part and
never on workers. The mixture is of all parts. Losses grow with the batch: a part of far fewer rows than `batch` has lower ones.

A model that has learned the pairs by heart no longer tells them apart: take an early checkpoint, or a model of other data.

Columns: `loss`; `noise`, 0 to 1. Pairs whose noise is above `threshold`, if there is one, are dropped.
Memory: 8 bytes a pair for up to `sample` pairs, from which the mixture is fitted.

Source: Huang et al., NLIP (2023); what is our reading of it, the pages on NLIP say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import from_tree, require
from ostension.curate.base import Columns, Part
from ostension.curate.model_stage import ModelStage
from ostension.errors import require_extra
from ostension.runtime import numpy_generator

EXTRA = "curate"
LIKELY, UNREADABLE = "likely noise", "unreadable"
DIGITS = 5  # of a loss that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: a model that has begun to learn such pairs, as every command takes one.
        threshold: pairs of more noise are dropped; by default none.
        strength: lambda, the noise of a pair that surely is.
        batch: pairs that are held against each other, about.
        seed: of which they are.
        sample: pairs from which the mixture is fitted, at most.
        store: a folder that keeps embeddings (see `agreement`). Empty keeps none.
        batch_size: pictures that pass the tower together.
        device: where the model computes.
        dtype: of its weights: float32, bfloat16, or auto for what is fast on this processor.
    """

    model: str
    threshold: float | None = None
    strength: float = 1.0
    batch: int = 256
    seed: int = 0
    sample: int = 1_000_000
    store: str = ""
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        require(bool(self.model), "model", self.model, "a model's folder or file")
        require(self.threshold is None or 0 < self.threshold < 1, "threshold", self.threshold, "between 0 and 1")
        require(0 < self.strength <= 1, "strength", self.strength, "more than 0, at most 1")
        require(self.batch >= 2, "batch", self.batch, "2 or more")
        for name in ("sample", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


class Noise(ModelStage):
    """Losses of pairs, their mixture, and each pair's place in it."""

    name, config_type = "noise", Config

    def map(self, part: Part) -> Columns:
        self.need_pictures(part)
        arrow = require_extra("pyarrow", EXTRA)
        pictures, bad = self.embedder.pictures(part)
        good = np.array([row for row in range(len(part)) if row not in bad and part.texts[row]], np.int64)
        losses = np.full(len(part), np.nan)
        if len(good):
            first = [part.texts[row][0] for row in good]
            captions = self.embedder.captions(part, first)
            groups = np.unique([" ".join(text.lower().split()) for text in first], return_inverse=True)[1]
            order = numpy_generator(self.config.seed, "noise", part.number).permutation(len(good))
            for rows in np.array_split(order, max(1, round(len(good) / self.config.batch))):
                losses[good[rows]] = self._losses(pictures[good[rows]], captions[rows], groups[rows])
        return {
            "dropped": [UNREADABLE if missing else None for missing in np.isnan(losses).tolist()],
            "loss": arrow.array(losses, arrow.float64(), from_pandas=True),
        }

    def _losses(self, pictures: np.ndarray, captions: np.ndarray, groups: np.ndarray) -> np.ndarray:
        import torch

        from ostension.curate.embeddings import one_thread
        from ostension.losses import pair_losses

        # In float64, so that the order of sums is not seen in the digits that are kept.
        image, text = (torch.from_numpy(rows.astype(np.float64)) for rows in (pictures, captions))
        scale = self.embedder.model.scale().detach().double().cpu()
        with one_thread():
            found = pair_losses(image, text, scale, groups=torch.from_numpy(groups), duplicates="ignore")
        return np.round(found.numpy(), DIGITS)

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """The mixture of all losses, or of a sample of them."""
        from ostension.train.mixture import fit_mixture

        pairs = sum(len(mapped) - mapped["loss"].null_count for _, mapped in parts)
        share = min(1.0, self.config.sample / max(1, pairs))
        held = []
        for part, mapped in parts:
            losses = mapped["loss"].drop_null().to_numpy()
            drawn = numpy_generator(self.config.seed, "noise sample", part.number).random(len(losses)) < share
            held.append(losses[drawn] if share < 1 else losses)
        mixture = fit_mixture(np.concatenate(held) if held else np.empty(0))
        return {"pairs": pairs, "sampled": mixture.count, "mixture": mixture.tree()}

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        from ostension.train.mixture import Mixture

        arrow = require_extra("pyarrow", EXTRA)
        losses = mapped["loss"].to_numpy()
        known, noise = ~np.isnan(losses), np.full(len(losses), np.nan)
        noise[known] = self.config.strength * from_tree(Mixture, facts["mixture"]).posterior(losses[known])
        likely = np.zeros(len(losses), bool) if self.config.threshold is None else noise > self.config.threshold
        reasons = [LIKELY if much else reason for much, reason in zip(likely, mapped["dropped"].to_pylist(), strict=True)]
        return {"dropped": reasons, "loss": mapped["loss"], "noise": arrow.array(noise, arrow.float32(), from_pandas=True)}
