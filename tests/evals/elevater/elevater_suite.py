"""A small suite of planted tasks: rows around class means before a projection, prompts near them after it."""

from __future__ import annotations

import numpy as np

from ostension.data.task import Task
from ostension.evals.inputs import ArrayInputs, unit
from ostension.store import Features

WIDTH, JOINT = 16, 8
TEMPLATES = ("a photo of a {}.", "the {}.")


def planted(
    name: str, classes: int = 4, *, per_class: int = 16, tests: int = 12, several: bool = False, seed: int = 0,
    noise: float = 1.2, away: float = 4.0, knowledge: dict[str, list[str]] | None = None,
) -> ArrayInputs:  # fmt: skip
    """Inputs of one task. Prompts are off the class means; those with knowledge (all words of `knowledge`) lie nearer.

    Args:
        away: how far off the prompts are.
        knowledge: by class name, the prompts that knowledge makes.
    """
    generator = np.random.default_rng([seed, len(name)])
    keys = tuple(f"c{index}" for index in range(classes))
    task = Task(
        title=name.title(), name=name, version=1, kind="multilabel" if several else "classify",
        metric="map_11_point" if several else "accuracy", classes={key: (f"thing {key}",) for key in keys},
        templates=TEMPLATES, licence="none", citation="ours",
    )  # fmt: skip
    matrix = generator.normal(size=(WIDTH, JOINT)).astype(np.float32) / WIDTH**0.5
    means = generator.normal(size=(classes, WIDTH)) * 1.5

    def rows(count: int, offset: int) -> dict[str, Features]:
        if several:
            targets = (generator.random((count * classes, classes)) < 0.3).astype(np.int64)
            centres = targets @ means
        else:
            targets = np.tile(np.arange(classes), count)
            centres = means[targets]
        before = (centres + generator.normal(size=centres.shape) * noise).astype(np.float32)
        shared = {"targets": targets, "classes": keys, "ids": tuple(f"{offset + row}" for row in range(len(before)))}
        after = unit(before @ matrix, [""] * len(before))
        return {"pre": Features(rows=before, **shared), "post": Features(rows=after, **shared)}

    splits = {"train": rows(per_class, 0), "test": rows(tests, 10_000)}
    prompts = {}
    for place, key in enumerate(keys):
        centre = means[place] @ matrix
        off = generator.normal(size=JOINT)
        for template in TEMPLATES:
            plain = template.format(f"thing {key}")
            prompts[plain] = centre + away * off
        for prompt in (knowledge or {}).get(f"thing {key}", []):
            prompts[prompt] = centre + 0.2 * off
    return ArrayInputs(
        task, {(split, level): found for split, levels in splits.items() for level, found in levels.items()},
        prompt_rows=prompts, projection=(matrix, np.zeros(JOINT, np.float32)), scale=20.0, model_name="planted",
        parameters={"visual": 5_000, "backbone": 9_000},
    )  # fmt: skip
