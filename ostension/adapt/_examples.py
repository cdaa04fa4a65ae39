"""What a method learns from: labelled pictures of a task, as features of the frozen tower or as pixels, in several views.

Features of a frozen tower are computed once, for the model's own preprocessing (view 0) and for K random crops of each picture
(views 1 to K), and kept in a store if there is one. An epoch takes a random one of the K; that repeats crops where the
published code draws new ones, and costs a fraction.

Letters: N samples, V views, E embedding, S pixels a side, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.data.pairs import PairSource
from ostension.errors import DataError
from ostension.image.augment import CropConfig, RandomView
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int
from ostension.store import Store, embed
from ostension.store.key import Level

CROPS = CropConfig(kind="resized", scale=(0.08, 1.0), mirror=True)  # Dassl's random resized crop and flip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Pictures with a class each.

    Attributes:
        source: the pictures.
        targets: (N,) positions among the class names.
        domains: (N,) numbers of domains, or None.
        name: of the split, for the store.
        store: where features are kept; None keeps them in memory.
        by_domain: whether a training batch is to hold as many pictures of every domain, whatever the method; a recipe's
            `batch_size` then counts those of one.
        none: there are no pictures, which only a method that learns from none can do with.
    """

    source: PairSource
    targets: Int[np.ndarray, " N"]
    domains: Int[np.ndarray, " N"] | None = None
    name: str = ""
    store: Store | None = None
    by_domain: bool = False
    none: bool = False

    def __post_init__(self):
        for what, values in (("targets", self.targets), ("domains", self.domains)):
            if values is not None and len(values) != len(self.source):
                raise DataError(f"{len(values)} {what}", expected=f"{len(self.source)}, one a picture")
        if not len(self.source) and not self.none:
            raise DataError("no pictures to learn from", expected="one at least")

    def __len__(self) -> int:
        return len(self.source)

    def features(
        self, model: CLIP, views: int = 0, progress: Callable | None = None, crop: CropConfig = CROPS, level: Level = "post"
    ) -> Float[Tensor, "V N E"]:
        """Rows of view 0, or of the random views 1 to `views`: unit ones, or at the level "pre" those before the projection."""
        numbers = tuple(range(1, views + 1)) or (0,)
        given: dict[str, Any] = {"levels": (level,), "views": numbers, "crop": crop, "progress": progress}
        if self.store is not None:
            sets = embed(self.store, model, self.source, split=self.name, **given)
            rows = [np.asarray(sets[level, number].rows) for number in numbers]
        else:
            with tempfile.TemporaryDirectory() as folder:
                sets = embed(Store(folder), model, self.source, stored="float32", **given)
                rows = [np.array(sets[level, number].rows) for number in numbers]
        found = torch.from_numpy(np.stack(rows)).float()
        return F.normalize(found, dim=-1) if level == "post" else found

    def pixels(
        self, model: CLIP, indices: np.ndarray, *, seed: int = 0, epoch: int | None = None, crop: CropConfig = CROPS
    ) -> Float[Tensor, "B 3 S S"]:
        """Preprocessed pictures; with an `epoch` a random crop of each: a function of seed, epoch and picture."""
        if epoch is None:
            return torch.stack([model.transform(self.source.read(int(index)).image) for index in indices])
        view, found = RandomView(model.transform.config, crop), []
        for index in indices.tolist():
            pair = self.source.read(index)
            found.append(view(pair.image, numpy_generator(seed, "view", epoch, index), name=pair.key))
        return torch.stack(found)

    @functools.cached_property
    def labels(self) -> Int[Tensor, " N"]:
        """The targets as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self.targets))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """A vocabulary and the pictures to learn it from.

    Attributes:
        class_names: one name a class, in the order of the targets.
        train: what is learned from.
        val: what settings may be chosen by; never the test split. None where there is none.
        templates: hand-written templates of the task, for methods that hold on to zero-shot.
        facts: what it is of (task, split, shots, seed), for the record.
    """

    class_names: tuple[str, ...]
    train: Labelled
    val: Labelled | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for split in (self.train, self.val):
            if split is not None and len(split) and not 0 <= split.targets.min() <= split.targets.max() < len(self.class_names):
                what = f"targets from {split.targets.min()} to {split.targets.max()}"
                raise DataError(what, source=split.name or "examples", expected=f"0 to {len(self.class_names) - 1}")
