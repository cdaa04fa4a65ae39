"""What a predictor answers for the samples of a task: from rows of the store where it leaves the image side alone, else from
pictures; with the task's class names, where it takes other ones than it was made with.

Letters: N samples, C classes, E embedding, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ostension.adapt._examples import Labelled
from ostension.adapt._views import Views
from ostension.data.task import Task
from ostension.data.task_data import TaskData
from ostension.errors import DataError
from ostension.evals.store_inputs import Embedder
from ostension.model.predictor import Predictor, unique_labels
from ostension.shapes import Float
from ostension.store import Features

BLOCK = 64  # test pictures seen together; a method that looks at the batch sees so many of one domain


def names_of(task: Task) -> tuple[str, ...]:
    """One name a class, in the order of the targets; a name that two classes share gets the class's number."""
    return unique_labels(list(task.display_names().values()))


def bound(predictor: Predictor, names: Sequence[str]) -> Predictor:
    """The predictor for other class names.

    Raises:
        ConfigError: where what it has learned belongs to its own.
    """
    return predictor if tuple(names) == predictor.class_names else predictor.bind(tuple(names))


@torch.no_grad()
def rows_of(predictor: Predictor, data: TaskData, embedder: Embedder) -> Features:
    """f: rows of all samples, kept ones of the predictor's level where it leaves the image side alone, else unit ones.

    Raises:
        DataError: for a task of ready embeddings, where it does not.
    """
    if not predictor.own_images:
        return embedder.rows(data, predictor.level)
    if data.samples.embeddings is not None:
        raise DataError(
            f"a {predictor.kind!r} predictor reads pictures", source=data.samples.location, expected="pictures, not embeddings"
        )
    if predictor.takes == "videos":
        none = np.zeros(len(data), dtype=np.int64)  # nobody looks at them
        videos = Labelled(source=data.samples, targets=none, name=data.split, store=embedder.store)
        return _features(predictor.split_rows(videos), data)  # type: ignore[attr-defined]
    transform, found = embedder.transform(data.task), []
    for block in _blocks(np.arange(len(data))):
        pixels = torch.stack([transform(data.samples.read(int(index)).image) for index in block])
        found.append(F.normalize(predictor.features(pixels.to(_device(predictor))).float(), dim=-1).cpu())
    return _features(torch.cat(found), data)


def _features(rows: torch.Tensor, data: TaskData) -> Features:
    return Features(
        rows=rows.float().numpy(), targets=data.targets, classes=data.classes, groups=data.groups, ids=tuple(data.ids),
        texts=None if data.samples.texts is None else tuple(data.captions), facts={"source": str(data.samples.location)},
    )  # fmt: skip


@torch.no_grad()
def logits_of(
    predictor: Predictor, data: TaskData, embedder: Embedder, rows: Features | None = None
) -> Float[np.ndarray, "N C"]:
    """A predictor's logits on all samples.

    A method that looks at the batch sees 64 pictures of one domain at a time.

    Args:
        rows: what `rows_of` gives, if it is known.
    """
    if predictor.depends == "views":
        return _of_views(predictor, data, embedder)
    rows = rows_of(predictor, data, embedder) if rows is None else rows
    known = torch.from_numpy(rows.unit() if predictor.level == "post" else rows.array())
    found = None
    for members in _domains(data) if predictor.depends == "batch" else [np.arange(len(data))]:
        for block in map(torch.from_numpy, _blocks(members)):
            part = predictor.logits(known[block].to(_device(predictor))).float().cpu()
            if found is None:
                found = torch.empty(len(data), part.shape[1])
            found[block] = part
    assert found is not None
    return found.numpy()


def _of_views(predictor: Any, data: TaskData, embedder: Embedder) -> np.ndarray:
    """From stored views: the model's own preprocessing, then random crops; AugMix makes its views of each picture anew."""
    if predictor.module.config.mix != "none":
        samples = (data.samples.read(index).image for index in range(len(data)))
        made = Views(predictor.encoder, predictor.module.config.views, predictor.module.config.mix)
        return torch.cat([predictor.logits_of_views(made.rows(image)[None]) for image in samples]).cpu().numpy()
    count, model = predictor.module.config.views - 1, embedder.model
    none = np.zeros(len(data), dtype=np.int64)  # nobody looks at them
    pictures = Labelled(source=data.samples, targets=none, name=data.split, store=embedder.store)
    views = torch.cat([pictures.features(model), *([pictures.features(model, count)] if count else [])])
    blocks = (torch.from_numpy(block) for block in _blocks(np.arange(len(data))))
    device = _device(predictor)
    found = [predictor.logits_of_views(views[:, block].transpose(0, 1).to(device)) for block in blocks]
    return torch.cat(found).cpu().numpy()


def _blocks(members: np.ndarray) -> list[np.ndarray]:
    return [members[start : start + BLOCK] for start in range(0, len(members), BLOCK)]


def _domains(data: TaskData) -> list[np.ndarray]:
    """The samples of each domain; all of them where the task has none."""
    field = domain_field(data)
    if field is None:
        return [np.arange(len(data))]
    values = data.groups[field]
    return [np.flatnonzero(values == value) for value in np.unique(values)]


def domain_field(data: TaskData) -> str | None:
    """The first of the task's groups that the data has, whose values count as domains."""
    return next((name for name in data.task.groups if name in data.groups), None)


def _device(predictor: Predictor) -> torch.device:
    return predictor.encoder.device
