"""Several tasks learned as one, to begin a target task with or to serve them all (MVLPT).

All class names make one vocabulary, each name once. The loss is the cross-entropy over it, or (`restrict`) over the classes of
a picture's own task, the others' logits being minus infinity. The epoch with the best mean of the tasks' accuracies on
validation pictures counts, each among its own classes. Then

    transfer   what was learned on the sources with several seeds is averaged, number by number; the target goes on from there
    joint      the target is one of the tasks

Letters: T tasks, C classes of all, N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._fit import fit_addition
from ostension.adapt.base import Addition, AdditionPredictor
from ostension.data.pairs import Joined
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.shapes import Bool, Float


class OfTasks(Addition):
    """What can be learned on several tasks; its settings say `restrict`, `joint` and `source_seeds`.

    Attributes:
        tasks: which classes (T, C) belong to each task, for training; None for one task.
    """

    tasks: Bool[Tensor, "T C"] | None = None

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        if self.tasks is None or not self.config.restrict:
            return super().loss(batch)
        logits = self.logits(self.image(batch.images) if self.needs_images else batch.features)
        return F.cross_entropy(logits.masked_fill(~self.tasks[batch.domains], -torch.inf), batch.targets)

    def score(self, logits: Float[Tensor, "N C"], val: Labelled) -> float:
        if self.tasks is None:
            return super().score(logits, val)
        domains = torch.as_tensor(val.domains)
        right = logits.masked_fill(~self.tasks.cpu()[domains], -torch.inf).argmax(1) == val.labels
        return float(torch.stack([right[domains == task].double().mean() for task in domains.unique()]).mean())

    def settle(self) -> None:
        self.tasks = None


def joined(tasks: Sequence[Examples]) -> tuple[Examples, Bool[Tensor, "T C"]]:
    """The tasks as one, with tasks for domains, and which classes are each one's.

    Validation pictures are there if every task has some.
    """
    names = tuple(dict.fromkeys(name for task in tasks for name in task.class_names))
    place = {name: index for index, name in enumerate(names)}
    places = [np.array([place[name] for name in task.class_names]) for task in tasks]
    members = torch.zeros(len(tasks), len(names), dtype=torch.bool)
    for row, own in enumerate(places):
        members[row, torch.from_numpy(own)] = True
    val = [task.val for task in tasks if task.val is not None]
    together = Examples(
        class_names=names, train=_one_after_the_other([task.train for task in tasks], places),
        val=_one_after_the_other(val, places) if len(val) == len(tasks) else None,
        templates=tasks[0].templates, facts={"tasks": len(tasks)},
    )  # fmt: skip
    return together, members


def _one_after_the_other(parts: Sequence[Labelled], places: Sequence[np.ndarray]) -> Labelled:
    return Labelled(
        source=Joined([part.source for part in parts]),
        targets=np.concatenate([own[part.targets] for part, own in zip(parts, places, strict=True)]),
        domains=np.repeat(np.arange(len(parts)), [len(part) for part in parts]), name="joined", store=parts[0].store,
    )  # fmt: skip


def learn(
    kind: type[OfTasks], model: CLIP, tasks: Sequence[Examples], config: Any, *, seed: int = 0, **run: Any
) -> OfTasks:  # fmt: skip
    """What several tasks together teach; `run` is as for `fit_addition`."""
    together, members = joined(tasks)
    addition = kind(model, config, together.class_names, seed=seed)
    addition.tasks = members.to(model.device)
    fit_addition(addition, together.train, config.recipe, val=together.val, seed=seed, **run)
    return addition


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states, number by number; of equal ones the same bits."""
    first = states[0]
    if all(torch.equal(state[name], first[name]) for state in states for name in first):
        return dict(first)
    return {name: torch.stack([state[name].double() for state in states]).mean(0).to(first[name]) for name in first}


def fitting_tasks(kind: type[OfTasks]) -> Any:
    """The `fit` of a method that takes other tasks as `sources`."""

    def fit(
        model: CLIP, examples: Examples, config: Any, *, sources: Sequence[Examples] = (), seed: int = 0,
        folder: Path | None = None, **run: Any,
    ) -> AdditionPredictor:  # fmt: skip
        if config.joint and not sources:
            raise ConfigError("joint is set, and there is one task alone", expected="other tasks, as sources")
        if config.joint:
            found = learn(kind, model, [examples, *sources], config, seed=seed, folder=folder, **run)
            return found.bound(examples.class_names).predictor()
        addition = kind(model, config, examples.class_names, seed=seed)
        if sources:
            learned = []
            for number in config.source_seeds:
                place = None if folder is None else folder / f"source-{number}"
                learned.append(learn(kind, model, sources, config, seed=number, folder=place, **run).state_dict())
            addition.load_state_dict(average(learned))
        fit_addition(addition, examples.train, config.recipe, val=examples.val, seed=seed, folder=folder, **run)
        return addition.predictor()

    return fit
