"""Held-out samples by which models are chosen: zero-shot answers of one model after another on the same pictures, decoded once.

Choosing belongs on validation data; the split is named wherever a choice is recorded.

Letters: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ostension
from ostension.errors import ConfigError, DataError
from ostension.evals.task_splits import TaskSplits
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.shapes import Bool, Int
from ostension.weights.soups import Samples

BATCH = 64


class HeldOut(Samples):
    """A split of a task on which models answer with the task's own prompts.

    Args:
        splits: the task's data.
        split: the split's name; the one that is measured is refused.
        device, dtype: where and how models are loaded.

    Raises:
        ConfigError: for the test split, or a task with several labels a sample.
        DataError: if there is no such split.
    """

    def __init__(self, splits: TaskSplits, split: str = "val", *, device: str = "auto", dtype: str = "auto"):
        if splits.name_of("test") == split:
            raise ConfigError(
                f"{split!r} is the split that {splits.task.name!r} is measured on", expected="a split to choose on"
            )
        if (missing := splits.missing(split)) is not None:
            raise DataError(missing, fix="name another split to choose on, such as train")
        self.data = splits.split(split)
        if self.data.targets is None or self.data.targets.ndim != 1:
            raise ConfigError(f"{splits.task.name!r} has several labels a sample", expected="a task with one label a sample")
        self.count, self.device, self.dtype = len(self.data), device, dtype
        self._decoded: dict[int, torch.Tensor] = {}
        self._preprocess: PreprocessConfig | None = None

    def judge(self, model: Path) -> Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
        return self.judge_model(ostension.load(model, device=self.device, dtype=self.dtype))

    def judge_model(self, model: CLIP) -> Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
        """The function that tells which of the samples (positions) a model gets right."""
        task, targets = self.data.task, self.data.targets
        assert targets is not None
        predictor = Predictor.zero_shot(model, list(task.label_names().values()), task.prompt_templates())

        @torch.no_grad()
        def right(positions: np.ndarray) -> np.ndarray:
            found = []
            for start in range(0, len(positions), BATCH):
                block = positions[start : start + BATCH]
                pixels = torch.stack([self._pixels(int(place), model) for place in block]).to(model.device)
                answers = predictor.forward(model.transform.normalize(pixels)).argmax(1).cpu().numpy()
                found.append(answers == targets[block])
            return np.concatenate(found) if found else np.zeros(0, bool)

        return right

    def accuracy(self, model: CLIP) -> float:
        """The share of all samples that a model gets right."""
        return float(self.judge_model(model)(np.arange(self.count)).mean())

    def _pixels(self, place: int, model: CLIP) -> torch.Tensor:
        """A picture in bytes as the model wants it; kept as long as models want the same."""
        config = model.transform.config
        if config != self._preprocess:
            self._decoded, self._preprocess = {}, config
        if place not in self._decoded:
            pair = self.data.samples.read(place)
            self._decoded[place] = model.transform.pixels(pair.image, name=pair.key)
        return self._decoded[place]
