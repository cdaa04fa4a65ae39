"""Held-out samples by which models are chosen, mixed and mended: pictures that are decoded once for one model after another.

Choosing belongs on validation data; the split is named wherever a choice is recorded.

Letters: B batch, N samples, n of them, C classes, E embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import ostension
from ostension.data.open import open_pairs
from ostension.data.pairs import PairSource
from ostension.data.task import task_names
from ostension.errors import ConfigError, DataError
from ostension.evals.task_splits import TaskSplits
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor, unique_labels
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int
from ostension.text.prompts import compose
from ostension.text.tokenizer import pack
from ostension.weights.batch_norm import Pictures
from ostension.weights.soups import Samples
from ostension.weights.sources import is_predictor

BATCH = 64


class Decoded:
    """Pictures of a source, kept in bytes as long as models want the same of them."""

    def __init__(self, source: PairSource):
        self.source = source
        self._kept: dict[int, torch.Tensor] = {}
        self._preprocess: PreprocessConfig | None = None

    def batch(self, positions: Int[np.ndarray, " n"], model: CLIP) -> Float[torch.Tensor, "n 3 S S"]:
        """Pictures as a model wants them, where it is."""
        if model.transform.config != self._preprocess:
            self._kept, self._preprocess = {}, model.transform.config
        for place in map(int, positions):
            if place not in self._kept:
                pair = self.source.read(place)
                self._kept[place] = model.transform.pixels(pair.image, name=pair.key)
        pixels = torch.stack([self._kept[int(place)] for place in positions])
        return model.transform.normalize(pixels.to(model.device))


class HeldOut(Samples):
    """A split of a task on which models answer with the task's own prompts, and tuned predictors with their heads.

    Args:
        splits: the task's data.
        split: the split's name; the one that is measured is refused.
        device, dtype: where and how models are loaded.
        seed: of the order in which a learned soup sees the samples.

    Raises:
        ConfigError: for the test split, or a task with several labels a sample.
        DataError: if there is no such split.
    """

    def __init__(self, splits: TaskSplits, split: str = "val", *, device: str = "auto", dtype: str = "auto", seed: int = 0):
        check_not_measured(splits, split)
        if (missing := splits.missing(split)) is not None:
            raise DataError(missing, fix="name another split to choose on, such as train")
        self.data = splits.split(split)
        if self.data.targets is None or self.data.targets.ndim != 1:
            raise ConfigError(f"{splits.task.name!r} has several labels a sample", expected="a task with one label a sample")
        self.count, self.device, self.dtype, self.seed = len(self.data), device, dtype, seed
        self.targets, self._pictures = self.data.targets, Decoded(self.data.samples)
        self._rows: tuple[Any, torch.Tensor] | None = None

    @property
    def classes(self) -> list[tuple[str, ...]]:
        """The names of each class."""
        return list(self.data.task.label_names().values())

    def judge(self, model: Path) -> Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
        folder = Path(model)
        if is_predictor(folder):
            return self.judge_predictor(self._predictor(folder))
        return self.judge_model(ostension.load(model, device=self.device, dtype=self.dtype))

    def judge_model(self, model: CLIP) -> Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
        """The function that tells which of the samples (positions) a model gets right."""
        return self.judge_predictor(Predictor.zero_shot(model, self.classes, self.data.task.prompt_templates()))

    def judge_predictor(self, predictor: Predictor) -> Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
        """The function that tells which of the samples (positions) a predictor gets right."""

        @torch.no_grad()
        def right(positions: np.ndarray) -> np.ndarray:
            found = []
            for start in range(0, len(positions), BATCH):
                block = positions[start : start + BATCH]
                answers = predictor.forward(self._pictures.batch(block, predictor.encoder)).argmax(1).cpu().numpy()
                found.append(answers == self.targets[block])
            return np.concatenate(found) if found else np.zeros(0, bool)

        return right

    def accuracy(self, model: CLIP) -> float:
        """The share of all samples that a model gets right."""
        return float(self.judge_model(model)(np.arange(self.count)).mean())

    def live(self, folder: Path) -> nn.Module:
        """A model in float32, or what a predictor has tuned: what a learned soup trains in place of the average."""
        self._rows = None
        if is_predictor(folder):
            return self._predictor(folder).module  # type: ignore[attr-defined]
        return ostension.load(folder, device=self.device, dtype="float32")

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Positions of the samples of an epoch, shuffled."""
        order = numpy_generator(self.seed, "learned soup", epoch).permutation(self.count)
        for start in range(0, self.count, BATCH):
            yield order[start : start + BATCH]

    def loss(self, live: nn.Module, batch: np.ndarray) -> Float[torch.Tensor, ""]:
        """The cross-entropy of a batch of positions."""
        model = live if isinstance(live, CLIP) else live.model
        assert isinstance(model, CLIP)
        images = self._pictures.batch(batch, model)
        if isinstance(live, CLIP):
            logits = live.scale() * (live.encode_image(images, normalize=True) @ self._class_rows(live).T)
        else:
            logits = live.logits(live.image(images))  # type: ignore[operator]
        return F.cross_entropy(logits, torch.from_numpy(np.asarray(self.targets)[batch]).long().to(logits.device))

    def _class_rows(self, model: CLIP) -> Float[torch.Tensor, "C E"]:
        """W of the task's prompts, with gradients where the text tower takes some; else computed once."""
        templates = self.data.task.prompt_templates()
        if not any(parameter.requires_grad for parameter in model.text.parameters()):
            if self._rows is None or self._rows[0] is not model:
                self._rows = (model, Predictor.zero_shot(model, self.classes, templates).weights)
            return self._rows[1]
        parts = []
        for template in templates:  # what a template's prompts leave for the gradient is computed again when it is wanted
            ids = compose(model.tokenizer, [template], self.classes)
            rows = pack([row for prompts in ids for row in prompts], model.tokenizer.pad_id, model.config.text.context_length)
            embeddings = checkpoint(model.encode_text, rows.to(model.device), normalize=True, use_reentrant=False)
            parts.append(torch.stack([group.sum(0) for group in embeddings.split([len(prompts) for prompts in ids])]))
        return F.normalize(torch.stack(parts).sum(0), dim=-1)

    def _predictor(self, folder: Path) -> Predictor:
        predictor = Predictor.load(folder)
        wanted = unique_labels(self.classes)
        if predictor.class_names != wanted:
            raise ConfigError(f"{folder.name} has other classes than {self.data.task.name!r}",
                              expected=f"{', '.join(wanted[:4])}, ... in this order")  # fmt: skip
        return predictor


def check_not_measured(splits: TaskSplits, split: str) -> None:
    """Refuse the split that a task is measured on.

    Raises:
        ConfigError: for that split.
    """
    if splits.name_of("test") == split:
        raise ConfigError(f"{split!r} is the split that {splits.task.name!r} is measured on", expected="a split to choose on")


def pictures_of(what: str, data: Path | None = None, *, limit: int = 1024) -> Pictures:
    """Pictures on which batch normalisation is estimated, without their labels.

    Args:
        what: a task, its name or TOML file, perhaps with @SPLIT (by default train), or a source of pairs.
        data: the folder of all data, for tasks.
        limit: pictures at most; of a task's split every class has its share.

    Raises:
        ConfigError: for the split that a task is measured on.
        DataError: if there are no pictures.
    """
    name, _, split = what.rpartition("@") if "@" in Path(what).name else (what, "", "train")
    if name in task_names() or name.endswith(".toml"):
        splits = TaskSplits(name, data, limit=limit)
        check_not_measured(splits, split)
        source: PairSource = splits.split(split).samples
        facts = {"task": splits.task.name, "split": split}
    else:
        source, facts = open_pairs(what), {"pairs": Path(what).name}
    order = numpy_generator(0, "batch norm").permutation(len(source))[:limit]
    decoded = Decoded(source)

    def batches(model: CLIP) -> Iterator[torch.Tensor]:
        for start in range(0, len(order), BATCH):
            yield decoded.batch(order[start : start + BATCH], model)

    return Pictures(batches, {**facts, "fingerprint": source.fingerprint()})
