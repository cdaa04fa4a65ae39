"""What an exported encoder loses against its model: agreement on pictures, and accuracy where labels are known.

Letters: N pictures, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostension.data.pictures import PictureFolder
from ostension.errors import DataError
from ostension.export.calibration import BATCH, TEMPLATE, prompts
from ostension.model.clip import CLIP
from ostension.text.prompts import class_names

NEAR = 0.95  # mean cosine below which an int8 tower is another model for most uses; vision transformers keep 0.99 and more


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The two encoders on the same pictures.

    Attributes:
        count: pictures.
        top1: share of pictures to which both give the same class of ImageNet's, by one prompt each.
        mean_cosine, least_cosine: between a picture's two embeddings.
        text_cosine: the least between a prompt's two embeddings.
    """

    count: int
    top1: float
    mean_cosine: float
    least_cosine: float
    text_cosine: float

    @property
    def warning(self) -> str:
        """What should be said beside the numbers; empty if they are near."""
        if min(self.mean_cosine, self.text_cosine) >= NEAR:
            return ""
        return "these embeddings are far from the model's: measure what that costs (--measure), or leave --int8 out"

    def line(self) -> str:
        """In words."""
        return (
            f"{self.count} pictures that did not calibrate: the same of ImageNet's classes for {100 * self.top1:.1f} %, "
            f"cosine {self.mean_cosine:.5f} on average and {self.least_cosine:.5f} at least (prompts {self.text_cosine:.5f})"
        )


@dataclasses.dataclass(frozen=True)
class Loss:
    """Accuracy before and after."""

    what: str
    count: int
    before: float
    after: float

    def line(self) -> str:
        """In words."""
        change = 100 * (self.after - self.before)
        before, after = 100 * self.before, 100 * self.after
        return f"{self.what} ({self.count} pictures): {before:.2f} % before, {after:.2f} % after, {change:+.2f} points"


@torch.no_grad()
def agreement(model: CLIP, encoder: CLIP, pixels: Tensor) -> Agreement:
    """How far two encoders agree on pictures (N, 3, S, S)."""
    texts = prompts(model) or [TEMPLATE.format(name) for name in class_names("imagenet")[:1]]
    ones, twos = (one.embed_texts(texts, truncate=True).double() for one in (model, encoder))
    parts = pixels.split(BATCH)
    one, two = (torch.cat([each.encode_image(part, normalize=True) for part in parts]).double() for each in (model, encoder))
    cosines = (one * two).sum(-1)
    same = (one @ ones.T).argmax(1) == (two @ twos.T).argmax(1)
    least = float((ones * twos).sum(-1).min())
    return Agreement(len(pixels), float(same.double().mean()), float(cosines.mean()), float(cosines.min()), least)


def losses(model: CLIP, encoder: CLIP, what: str, *, data: str | None = None, limit: int | None = None) -> list[Loss]:
    """Zero-shot accuracy of both, on a task, or on a folder with a folder of pictures for each class.

    Raises:
        DataError: for data that is missing, or a folder without classes.
    """
    if Path(what).is_dir():
        return [_folder_loss(model, encoder, Path(what))]
    from ostension.evals.evaluate import evaluate

    found = [evaluate(one, [what], protocols=["zeroshot"], data=data, limit=limit) for one in (model, encoder)]
    before, after = ({(record.task, record.split): record for record in records} for records in found)
    return [
        Loss(f"{task}@{split}", int(record.headline.count), record.headline.value, after[task, split].headline.value)
        for (task, split), record in before.items()
    ]


def _folder_loss(model: CLIP, encoder: CLIP, folder: Path) -> Loss:
    source = PictureFolder(folder)
    labels = [source.key(index).split("/")[0] for index in range(len(source)) if "/" in source.key(index)]
    names = sorted(set(labels))
    if len(names) < 2 or len(labels) != len(source):
        raise DataError("no folder for each class", source=folder, expected="FOLDER/class name/picture, two classes or more")
    targets = np.array([names.index(label) for label in labels])
    right = [_correct(one, folder, source, names, targets) for one in (model, encoder)]
    return Loss(folder.name, len(labels), *right)


def _correct(encoder: CLIP, folder: Path, source: PictureFolder, names: Sequence[str], targets: np.ndarray) -> float:
    paths = [folder / source.key(index) for index in range(len(source))]
    found: Any = encoder.classifier(names, (TEMPLATE,)).predict(paths)
    return float((found.argmax(dim=1).numpy() == targets).mean())
