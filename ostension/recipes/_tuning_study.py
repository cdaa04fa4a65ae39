"""The study of methods that tune weights, from packs to the record; the same command again goes on where it was stopped.

    ostension adapt tuning-study --data DATA -o WORK      # under two hours on two cores; docs/papers/tuning.md has what came

WORK gets `sets/` (see `_tuning_sets`), the models `lite0/` and `vit/` (see `_adapting_models`; those of the study of prompts
serve, too), `store/`, `results/` (a file for each fit) and `tuning.json`, the record. Settings are published ones except for
what `SETTINGS` says. Nothing is chosen on a test split.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ostension.config import require
from ostension.data.task import read_task
from ostension.evals.adaptation import ZERO_SHOT, Plan
from ostension.evals.adaptation_runs import run_all
from ostension.evals.records import Record, save_records
from ostension.evals.results import Result, Results
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import load
from ostension.recipes import _adapting_sets
from ostension.recipes._adapting_study import Name, StudyConfig, lean, line_of, model_folder, plan_of, say
from ostension.recipes._tuning_sets import write_sets
from ostension.recipes._tuning_soups import soups
from ostension.store import Store

RECORD = "tuning.json"
SEEDS, SHOTS = (1, 2, 3), 16
ALPHAS = (0.25, 0.5, 0.75)  # 0 is zero-shot and 1 the tuned model
FEATURES = (ZERO_SHOT, "probe", "prior", "clip-adapter", "tip-adapter", "tip-adapter-f", "lit")  # on kept rows: cheap
TOWERS = ("finetune", "lp-ft", "flyp", "car-ft")
TASKS = ("pacs_tuned_photo", "pacs_tuned_sketch", "emoji_vendors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Methods compared on some tasks with one model, each measured where training pictures are from and on the shift."""

    model: Name
    methods: tuple[str, ...]
    tasks: tuple[str, ...]


PARTS: Mapping[str, Part] = {
    "features": Part(model="lite0", methods=FEATURES, tasks=TASKS),
    "vit-features": Part(model="vit", methods=FEATURES, tasks=TASKS),
    "towers": Part(model="lite0", methods=TOWERS, tasks=TASKS),
    "vit-towers": Part(model="vit", methods=TOWERS, tasks=TASKS),
    "groups": Part(
        model="lite0", methods=(ZERO_SHOT, "probe", "clip-adapter", "contrastive-adapter"), tasks=("emoji_backgrounds",)
    ),
}  # fmt: skip
OTHERS = ("soups", "patches")
PATCH, KEEP = "fashion_small", ("cifar10_small", "caltech26")  # what is learned, and what is to stay
# Small sets and few pictures: smaller batches than 512, and no more steps than two hours hold.
TUNING: Mapping[str, Any] = {"recipe.epochs": 10, "recipe.batch_size": 16, "recipe.lr": 1e-4}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("finetune", "flyp", "car-ft"), TUNING),
    # `within`, which the paper does not have, holds the kept tasks to the point that it claims.
    "paint": {**TUNING, "recipe.epochs": 4, "recipe.batch_size": 32, "within": 0.01},
    "lp-ft": {"recipe.epochs": 10, "recipe.batch_size": 16},
    "lit": {"recipe.epochs": 20, "recipe.batch_size": 32},
}


def run_study(config: StudyConfig, folder: Path) -> Path:
    """Do what is left in `folder`; the record.

    Raises:
        DataError: for a pack that is missing.
        MissingExtraError: without pyarrow, or the package of weights.
    """
    for name in config.parts:
        require(name in (*PARTS, *OTHERS), "--part", name, ", ".join((*PARTS, *OTHERS)))
    paths = [*write_sets(config.data, folder / "sets"), *_adapting_sets.write_sets(config.data, folder / "sets")]
    tasks = {path.stem: path for path in paths}
    results = Results(folder / "results")
    made: dict[Name, Embedder] = {}
    for name in config.parts or (*PARTS, *OTHERS):
        model: Name = PARTS[name].model if name in PARTS else "lite0"
        if model not in made:
            path = model_folder(model, config, folder)
            made[model] = Embedder(load(path, dtype="float32"), Store(folder / "store"), name=model)
        began = time.monotonic()
        if name in PARTS:
            steps = _part(PARTS[name], config, tasks, made[model], results)
        elif name == "soups":
            steps = soups(config, tasks, made[model], results, folder / "soups")
        else:
            steps = _patches(config, tasks, made[model], results)
        for step in steps:
            say(step if isinstance(step, str) else line_of(step))
        say(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes")
    found = {f"{result.record.model}/{result.target}/{result.record.protocol}": _kept(result.record) for result in results}
    save_records(folder / RECORD, found)
    return folder / RECORD


def _kept(record: Record) -> Record:
    """What the record of the study has of a result: of patches the whole line, of the others the scores."""
    return record if record.config["method"].startswith("paint") else lean(record)


def _part(
    part: Part, config: StudyConfig, tasks: Mapping[str, Path], embedder: Embedder, results: Results
) -> Iterator[Result | str]:
    """The results of a part, task after task."""
    seeds = SEEDS[:1] if config.smoke else SEEDS
    for task in part.tasks[:1] if config.smoke else part.tasks:
        splits = TaskSplits(tasks.get(task) or read_task(task))
        targets = [splits.of("shift")] if "shift" in splits.task.splits else []
        plans = [
            plan
            for method in part.methods
            for seed in (seeds[:1] if method == ZERO_SHOT else seeds)
            for plan in [_plan(method, seed, config, tuned=method in TOWERS, shots=SHOTS if targets else 0)]
        ]
        yield from run_all(plans, splits, embedder, results, targets=targets)


def _patches(config: StudyConfig, tasks: Mapping[str, Path], embedder: Embedder, results: Results) -> Iterator[Result | str]:
    """PAINT: a new task learned while two stay, all measured on their tests; zero-shot beside it."""
    splits, kept = TaskSplits(tasks[PATCH]), [TaskSplits(tasks[name]) for name in KEEP]
    smoke: dict[str, Any] = {"recipe.epochs": 1, "grid": 2, "val_limit": 4} if config.smoke else {}
    plans = [plan_of(ZERO_SHOT, shots=0, seed=SEEDS[0], study=SETTINGS)]
    for seed in SEEDS[:1] if config.smoke else SEEDS:
        plan = plan_of("paint", shots=2 if config.smoke else 64, seed=seed, study=SETTINGS, **smoke)
        plans.append(dataclasses.replace(plan, keep=KEEP))
    yield from run_all(plans, splits, embedder, results, targets=kept, keep=kept)


def _plan(method: str, seed: int, config: StudyConfig, *, tuned: bool, shots: int) -> Plan:
    smoke: dict[str, Any] = {"recipe.epochs": 1} if config.smoke and (tuned or method in ("lit", "clip-adapter")) else {}
    plan = plan_of(method, shots=2 if config.smoke and shots else shots, seed=seed, study=SETTINGS, **smoke)
    return dataclasses.replace(plan, alphas=ALPHAS if tuned else ())
