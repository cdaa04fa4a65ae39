"""Soups of the study of tuned weights: runs of one start under other settings, each alone, all averaged, and greedily chosen.

Greedy soups are chosen by validation pictures, which no run was trained on; both tests are looked at afterwards.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ostension.adapt import finetune
from ostension.adapt.base import Examples
from ostension.config import to_tree
from ostension.evals.adaptation import Plan, examples_of, logits_of
from ostension.evals.records import Metric, Record
from ostension.evals.results import Result, Results, read_result
from ostension.evals.scores import score_name, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.model.predictor import Predictor
from ostension.recipes._adapting_study import SEEDS, StudyConfig, plan_of
from ostension.weights.arithmetic import soup
from ostension.weights.soups import greedy_soup

TASK, SHOTS = "pacs_tuned_sketch", 16
GRID = tuple(itertools.product((3e-5, 1e-4, 3e-4), (5, 15)))  # learning rates and epochs of the ingredients


def soups(
    config: StudyConfig, tasks: Mapping[str, Path], embedder: Embedder, results: Results, folder: Path
) -> Iterator[Result | str]:
    """The results of every ingredient, of all averaged and of the greedy soup, for each seed."""
    splits = TaskSplits(tasks[TASK])
    for seed in SEEDS[:1] if config.smoke else SEEDS:
        plan = _plan(config, seed, GRID[0])
        identity = {"grid": [list(point) for point in GRID], "plan": to_tree(plan.config), "shots": plan.shots,
                    "seed": seed, **embedder.hashes(splits.task)}  # fmt: skip
        paths = {name: results.path(embedder.name, TASK, f"{name}-seed{seed}") for name in _names()}
        known = [read_result(path) if path.exists() else None for path in paths.values()]
        if all(result is not None and result.identity == identity for result in known):
            yield from (result for result in known if result is not None)
            continue
        began, place = time.monotonic(), folder / f"seed{seed}"
        chosen = _make(config, seed, splits, embedder, place)
        for name in _names():
            measured = _measured(Predictor.load(place / name, embedder.model), splits, embedder, seed)
            record = Record(
                protocol=f"{name}-seed{seed}", subject=name, metrics=measured,
                config={"method": name, "shots": plan.shots, "settings": to_tree(plan.config), "chosen": chosen},
                hashes=embedder.hashes(splits.task), counts={"test_samples": len(splits.split("test"))}, seeds=(seed,),
                task=TASK, model=embedder.name, split="test",
            )  # fmt: skip
            yield results.write(Result(record=record, identity=identity, seconds=round(time.monotonic() - began, 3)), {})


def _names() -> list[str]:
    return [*(f"ingredient-{number}" for number in range(len(GRID))), "soup-uniform", "soup-greedy"]


def _plan(config: StudyConfig, seed: int, point: tuple[float, int], select: str = "last") -> Plan:
    """Fine-tuning at a point of the grid; where the best epoch is asked for, pictures to choose by are held out."""
    rate, epochs = point
    settings: dict[str, Any] = {
        "recipe.lr": rate, "recipe.epochs": 1 if config.smoke else epochs, "recipe.batch_size": 16, "recipe.select": select,
    }  # fmt: skip
    return plan_of("finetune", shots=2 if config.smoke else SHOTS, seed=seed, study={}, **settings)


def _make(config: StudyConfig, seed: int, splits: TaskSplits, embedder: Embedder, place: Path) -> list[str]:
    """Train what is not there, average; the members of the greedy soup."""
    examples = examples_of(splits, embedder, _plan(config, seed, GRID[0], select="best"))
    ingredients = []
    for number, point in enumerate(GRID):
        path = place / f"ingredient-{number}"
        if not (path / "predictor.json").is_file():
            made = _plan(config, seed, point)
            run = place / f"fit-{number}"
            finetune.fit(embedder.model, examples, made.config, seed=seed * 100 + number, folder=run).save(path)
        ingredients.append(path)

    def right(path: Path) -> float:
        return _on_validation(Predictor.load(path, embedder.model), examples)

    soup(ingredients, place / "soup-uniform", overwrite=True)
    found = greedy_soup(ingredients, place / "soup-greedy", right, overwrite=True)
    return [Path(name).name for name in found.members]


def _on_validation(predictor: Predictor, examples: Examples) -> float:
    val = examples.val
    assert val is not None
    answers = predictor.predict([val.source.read(index).image for index in range(len(val))]).argmax(dim=1)
    return float((answers == val.labels).double().mean())


def _measured(predictor: Predictor, splits: TaskSplits, embedder: Embedder, seed: int) -> dict[str, Metric]:
    """Accuracy where training pictures are from, and on the shift."""
    found: dict[str, Metric] = {}
    score = score_name(splits.task)
    for name in ("test", "shift"):
        data = splits.of(name).split("test")
        assert data.targets is not None
        metrics = scores(splits.task, logits_of(predictor, data, embedder), data.targets, data.groups, seed=seed)
        found |= metrics if name == "test" else {f"{splits.task.name}@shift": metrics[score]}
    return found
