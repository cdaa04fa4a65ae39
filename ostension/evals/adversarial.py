"""How right a predictor is when pictures are attacked: clean and robust accuracy, by attack and against the worst of them.

    pgd        projected gradient on the cross-entropy
    cw         the same on Carlini and Wagner's margin
    apgd-ce    APGD on the cross-entropy
    apgd-dlr   APGD on the ratio of margins (the two of AutoAttack that need gradients alone)

A picture counts as robust if it is read right after every attack; each is tried on all that are read right without one. The
classes are words and stay as they are. Nothing is chosen by what comes out.

Letters: N samples, B batch, C classes, S pixels a side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostension.config import to_tree
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError, unknown_name
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy
from ostension.evals.task_splits import sample_of
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.train.attacks import Budget, apgd, pgd

BLOCK = 32
ATTACKS: dict[str, Callable[..., Tensor]] = {
    "pgd": pgd,
    "cw": functools.partial(pgd, loss="margin"),
    "apgd-ce": apgd,
    "apgd-dlr": functools.partial(apgd, loss="dlr"),
}


def robust_accuracy(
    predictor: Predictor,
    data: TaskData,
    *,
    budget: Budget,
    attacks: Sequence[str] = ("pgd", "cw", "apgd-ce", "apgd-dlr"),
    limit: int | None = None,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> Record:
    """Clean accuracy, accuracy after each attack alone, and after all of them.

    Args:
        limit: attack so many samples, of every class its share.
        told: told how many samples are done, of how many.

    Raises:
        ConfigError: for an unknown attack, a predictor that looks at batches or views, or samples with several labels.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)
    if predictor.depends in ("batch", "views"):
        raise ConfigError(
            f"a {predictor.kind!r} predictor looks at its {predictor.depends}", expected="one that reads single pictures"
        )
    if data.targets is None or data.targets.ndim != 1:
        raise ConfigError("samples have several labels", expected="one label a sample")
    chosen = np.arange(len(data)) if limit is None or limit >= len(data) else sample_of(data.targets, len(data), limit, seed)
    encoder = predictor.encoder
    config = encoder.transform.config
    mean, std = (torch.tensor(values, device=encoder.device)[:, None, None] for values in (config.mean, config.std))

    def logits(pixels: Tensor) -> Tensor:
        return predictor.forward((pixels - mean) / std)

    right: dict[str, list[np.ndarray]] = {"clean": [], "robust": [], **{name: [] for name in attacks}}
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        pixels = torch.stack([encoder.transform.pixels(data.samples.read(int(index)).image) for index in block])
        pixels = pixels.to(encoder.device).float() / 255
        targets = torch.from_numpy(data.targets[block]).to(encoder.device)
        with torch.no_grad():
            clean = logits(pixels).argmax(1) == targets
        standing = clean.clone()
        right["clean"].append(clean.cpu().numpy())
        for name in attacks:
            held = clean.clone()
            places = clean.nonzero()[:, 0]
            if len(places):
                generator = torch_generator(seed, "attack", name, start)
                changed = ATTACKS[name](logits, pixels[places], targets[places], budget, generator=generator)
                with torch.no_grad():
                    held[places] = logits(changed).argmax(1) == targets[places]
            standing &= held
            right[name].append(held.cpu().numpy())
        right["robust"].append(standing.cpu().numpy())
        if told is not None:
            told(min(start + BLOCK, len(chosen)), len(chosen))
    chance = 1 / len(data.classes)
    measured: dict[str, Metric] = {name: accuracy(np.concatenate(parts), chance=chance) for name, parts in right.items()}
    settings: dict[str, Any] = {"budget": to_tree(budget), "attacks": list(attacks), "limit": limit}
    return Record(
        protocol="adversarial", subject=predictor.kind, metrics={"robust": measured.pop("robust"), **measured}, config=settings,
        hashes={"data": data.samples.fingerprint()}, counts={"samples": len(chosen), "classes": len(data.classes)},
        seeds=(seed,), task=data.task.name, split=data.split,
    )  # fmt: skip
