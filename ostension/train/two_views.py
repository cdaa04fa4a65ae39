"""The objective "two-views": a picture and its altered copy together, those of different pictures apart. No captions.

With unit rows x_i of the B pictures, y_i of their copies and a fixed temperature t, the n-pair loss (InfoNCE) both ways is
the one of `losses` with the multiplier 1 / t. Files with the same bytes are not each other's negatives.

Source: CLIP, Appendix C (t = 0.07, fixed; the changes of the copies are in `image.copies`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.config import require, to_tree
from ostension.data.layout import USUAL, Layout
from ostension.data.loader import Loader
from ostension.data.pairs import Pair, PairSource
from ostension.data.pictures import open_pictures
from ostension.data.sampler import Sampler
from ostension.formats.duplicate_detector import save_detector
from ostension.image.copies import CopyConfig, altered_copy
from ostension.image.decode import open_image
from ostension.image.transforms import Transform
from ostension.losses import LossConfig, batch_loss
from ostension.model.duplicate_detector import DuplicateDetector
from ostension.train.batches import Batch
from ostension.train.objective import Embedded, Objective, StepLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViewBatchesConfig:
    """How batches of pictures and their copies are made.

    Attributes:
        data: what `open_pictures` opens, or a list of such. A recipe may leave it empty, for the user to name.
        layout: what holds the images, where that is not as usual.
        batch_size: pictures in a global batch.
        seed: of the order and the copies.
        copies: how copies are altered.
        replacement: draw pictures with replacement.
    """

    kind: Literal["two-views"] = "two-views"
    data: str | tuple[str, ...]
    layout: Layout = USUAL
    batch_size: int = 128
    seed: int = 0
    copies: CopyConfig = dataclasses.field(default_factory=CopyConfig)
    replacement: bool = False

    def __post_init__(self):
        require(self.batch_size >= 2, "batches.batch_size", self.batch_size, "2 or more, for there to be a negative")

    def build(self, model: Any) -> TwoViewBatches:
        """The batches for a detector: its transform.

        Raises:
            DataError: if the data cannot be opened, or is smaller than one batch.
        """
        require(bool(self.data), "batches.data", self.data, "one or more sources")
        return TwoViewBatches(open_pictures(self.data, layout=self.layout), self, model.transform)


class TwoViewBatches:
    """A `BatchSource` whose images are (B, 2, 3, S, S), picture and copy; it has no tokens, and groups by the files' bytes."""

    worker_kind: Literal["processes", "threads"] = "processes"

    def __init__(self, source: PairSource, config: TwoViewBatchesConfig, transform: Transform):
        self.source, self.config = source, config
        self.order = Sampler(len(source), config.batch_size, config.seed, config.replacement)
        decode = TwoViewDecode(transform, config.copies)
        self._loader = Loader(source, self.order, decode, seed=config.seed, digests=True)

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def num_samples(self) -> int:
        """Pictures that an epoch visits: whole batches."""
        return self.order.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        # Not the path: the same data may lie elsewhere tomorrow.
        settings = {name: value for name, value in to_tree(self.config).items() if name != "data"}
        return {**settings, "fingerprint": self.source.fingerprint(), "num_pairs": len(self.source)}

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        loaded = self._loader.load(step, rank=rank, world_size=world_size)
        assert loaded.digests is not None
        return Batch(
            images=torch.from_numpy(loaded.images),
            tokens=torch.zeros(len(loaded), 0, dtype=torch.int64),
            keys=loaded.keys,
            groups=torch.from_numpy(loaded.digests.view(np.int64)),
            rejects=loaded.rejects,
        )


@dataclasses.dataclass(frozen=True)
class TwoViewDecode:
    """A picture as the detector sees it, and a random copy of it: (2, 3, S, S)."""

    transform: Transform
    copies: CopyConfig

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        config = self.transform.config
        picture = open_image(
            pair.image, max_pixels=config.max_pixels, max_bytes=config.max_bytes, exif=config.exif, alpha=config.alpha,
            name=pair.key,
        )  # fmt: skip
        copy = altered_copy(picture, self.copies, generator)
        return np.stack([self.transform(view, name=pair.key).numpy() for view in (picture, copy)]), ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViewsConfig:
    """Pictures and their copies.

    Attributes:
        temperature: t, fixed.
        loss: duplicates are the files with the same bytes.
    """

    kind: Literal["two-views"] = "two-views"
    temperature: float = 0.07
    loss: LossConfig = dataclasses.field(default_factory=lambda: LossConfig(duplicates="ignore"))

    def __post_init__(self):
        require(self.temperature > 0, "objective.temperature", self.temperature, "more than 0")
        require(self.loss.kind == "contrastive", "objective.loss.kind", self.loss.kind, "'contrastive'")

    def build(self, model: Any) -> TwoViews:
        return TwoViews(model, self)


class TwoViews(Objective):
    """Trains a detector. It measures `copy_accuracy`, the share of views whose other view is nearest, the mean of both ways."""

    def __init__(self, detector: DuplicateDetector, config: TwoViewsConfig | None = None):
        self.module = self.detector = detector
        # A run asks a model for its settings only, and the evaluations of this one are given a detector.
        self.model = detector  # type: ignore[assignment]
        self.config = config or TwoViewsConfig()

    def embed(self, batch: Batch) -> Embedded:
        """Unit rows of both views, in one pass."""
        rows = self.detector.encode_image(batch.images.flatten(0, 1), normalize=True).unflatten(0, (-1, 2))
        return Embedded(rows={"original": rows[:, 0], "copy": rows[:, 1]})

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        original, copy = embedded.rows["original"], embedded.rows["copy"]
        scale = torch.tensor(1 / self.config.temperature, dtype=original.dtype, device=original.device)
        found = batch_loss(original, copy, scale, config=self.config.loss, groups=groups)
        return StepLoss(found.loss, {"copy_accuracy": (found.image_accuracy + found.text_accuracy) / 2})

    def identity(self) -> Mapping[str, object]:
        return to_tree(self.config)

    def save(self, folder: Path) -> None:
        save_detector(self.detector, folder, overwrite=True)
