"""The study of methods that adapt, from packs to the record; the same command again goes on where it was stopped.

    ostension adapt study --data DATA -o WORK       # under two hours on two cores; docs/papers/adapting.md has what came

WORK gets `sets/` (see `_adapting_sets`), `pairs-*/` and the runs `lite0/` and `vit/` (see `_adapting_models`), `store/`,
`results/` (a file for each fit) and `adapting.json`, the record. Settings of methods are the published ones except for what
`SETTINGS` says. Nothing is chosen on a test split.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ostension.config import require, to_tree
from ostension.evals.adaptation import ZERO_SHOT, Plan, bind_to, plan_with, run_plan
from ostension.evals.adaptation_runs import run_all
from ostension.evals.adversarial import robust_accuracy
from ostension.evals.identity import method_sha256
from ostension.evals.records import Metric, Record, save_records
from ostension.evals.results import Result, Results, file_name, read_result
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.files import read_json, write_json
from ostension.formats.load import load
from ostension.recipes import _adapting_models as models
from ostension.recipes._adapting_sets import DOMAINS, write_sets
from ostension.recipes._study_pairs import write_pairs
from ostension.store import Store
from ostension.train.attacks import Budget

RECORD, COSTS = "adapting.json", "processor-time"
SEEDS, SHOTS = (1, 2, 3), (1, 2, 4, 8, 16)
LAST = ("attack", "checks")  # parts that are no comparison of methods side by side
PACS = tuple(f"pacs_without_{domain}" for domain in DOMAINS)
Name = Literal["lite0", "vit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Methods compared on some tasks with one model.

    Attributes:
        few: measure half of each test split, for methods that read pictures again after every fit.
        settings: of its methods, besides `SETTINGS`.
        sources: other tasks that methods learn from besides.
    """

    model: Name
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    shots: tuple[int, ...] = (16,)
    seeds: tuple[int, ...] = SEEDS
    base_to_new: bool = False
    few: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()


# MVLPT's contexts without image tokens, on lite0; the paper's 200 epochs are 20, for time.
CONTEXTS: Mapping[str, Any] = {"family": "text", "recipe.epochs": 20}
OTHERS = ("fashion_small", "caltech26")
PARTS: Mapping[str, Part] = {
    "shots": Part(
        model="lite0", methods=(ZERO_SHOT, "probe", "coop", "kgcoop"),
        tasks=("cifar10_small", "fashion_small", "emoji_styles"), shots=SHOTS,
    ),
    "shots-many": Part(
        model="lite0", methods=(ZERO_SHOT, "probe", "coop", "kgcoop"), tasks=("caltech26",), shots=SHOTS
    ),
    "conditional": Part(model="lite0", methods=("cocoop", "cpl"), tasks=("cifar10_small",), shots=SHOTS),
    "alone": Part(model="lite0", methods=("mvlpt",), tasks=("cifar10_small",), settings=CONTEXTS),
    "sources": Part(model="lite0", methods=("mvlpt",), tasks=("cifar10_small",), settings=CONTEXTS, sources=OTHERS),
    "halves": Part(
        model="lite0", methods=(ZERO_SHOT, "coop", "cocoop", "kgcoop", "cpl"), tasks=("cifar10_small", "caltech26"),
        base_to_new=True,
    ),
    "shift": Part(model="lite0", methods=(ZERO_SHOT, "probe", "coop", "kgcoop"), tasks=PACS),
    "shift-domains": Part(model="lite0", methods=("dpl",), tasks=PACS[:2]),
    "image-shots": Part(
        model="vit", methods=(ZERO_SHOT, "probe", "coop", "vpt", "ivlp", "maple"), tasks=("cifar10_small",),
        shots=SHOTS, few=True,
    ),
    "image-long": Part(model="vit", methods=("dpt", "mvlpt"), tasks=("cifar10_small",), few=True),
    "image-styles": Part(
        model="vit", methods=(ZERO_SHOT, "probe", "coop", "vpt", "ivlp", "maple"), tasks=("emoji_styles",), few=True
    ),
    # One seed: TPT's views are a function of the picture.
    "views": Part(model="vit", methods=(ZERO_SHOT, "tpt"), tasks=("cifar10_small",), seeds=SEEDS[:1], few=True),
    "views-shift": Part(model="lite0", methods=(ZERO_SHOT, "tpt"), tasks=PACS[:2], seeds=SEEDS[:1], few=True),
    "image-halves": Part(
        model="vit", methods=(ZERO_SHOT, "coop", "vpt", "ivlp", "maple"), tasks=("cifar10_small",), base_to_new=True, few=True
    ),
}  # fmt: skip
# Where the study departs from what is published, and why.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "coop": {"recipe.epochs": 50},  # the paper's for one shot; up to 200 with more, for time
    "cocoop": {"recipe.batch_size": 4},  # 1, for time
    "cpl": {"recipe.batch_size": 4},  # 1, for time
    "dpl": {"recipe.epochs": 300},  # one step an epoch here; 5,001 steps, for time
    "dpt": {"recipe.epochs": 10, "alone_epochs": 5},  # 60 and 30, for time
    "mvlpt": {"recipe.epochs": 10},  # 200, for time
}
ATTACK = Budget(epsilon=1 / 255, step=0.25 / 255, steps=10)
ATTACKED = ("tiny_imagenet20", "cifar10_small", "caltech26")  # trained on the first, carried over to the others
ATTACK_SAMPLES = 120
# TeCoA's ten epochs on ImageNet are 50,000 steps at 1e-5; here they are 60, on logits of a tenth of the scale.
TECOA: Mapping[str, Any] = {"recipe.batch_size": 32, "recipe.epochs": 5, "recipe.lr": 1e-2}
# The frame is as wide for 96 pixels as the published one for 224; ten tokens beside 36 patches, 100 beside 49.
PROMPTS: Mapping[str, Any] = {"train": "prompts", "frame_px": 12, "tokens": 10, "recipe.batch_size": 32, "recipe.epochs": 5}
DEFENCES: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # method and settings
    ZERO_SHOT: (ZERO_SHOT, {}), "tecoa": ("tecoa", TECOA), "tecoa, prompts": ("tecoa", PROMPTS),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One method again with other settings, to find the reason of what is seen."""

    model: Name
    method: str
    task: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...] = SEEDS


# Published rates are for logits of CLIP's scale, 100; lite0's is 16 and the vision transformer's 10.
CHECKS: Mapping[str, Check] = {
    "coop, ten times the rate": Check(model="lite0", method="coop", task="cifar10_small", settings={"recipe.lr": 0.02}),
    "kgcoop, ten times the rate": Check(model="lite0", method="kgcoop", task="cifar10_small", settings={"recipe.lr": 0.02}),
    "dpl, ten times the rate": Check(
        model="lite0", method="dpl", task="pacs_without_photo", settings={"recipe.lr": 0.01}, seeds=SEEDS[:1]
    ),
    "vpt, ten times the rate": Check(model="vit", method="vpt", task="cifar10_small", settings={"recipe.lr": 0.025}),
    "maple, ten times the rate": Check(model="vit", method="maple", task="cifar10_small", settings={"recipe.lr": 0.035}),
    "coop, 200 epochs": Check(model="lite0", method="coop", task="cifar10_small", settings={"recipe.epochs": 200}),
    "coop, contexts of each class": Check(
        model="lite0", method="coop", task="cifar10_small", settings={"class_specific": True}
    ),
    "probe on embeddings": Check(model="lite0", method="probe", task="cifar10_small", settings={"level": "post"}),
    "kgcoop, weight 1": Check(model="lite0", method="kgcoop", task="cifar10_small", settings={"weight": 1.0}),
    "tpt, ten times the step": Check(model="vit", method="tpt", task="cifar10_small", settings={"lr": 0.05}, seeds=SEEDS[:1]),
    "dpl, no step": Check(model="lite0", method="dpl", task="pacs_without_photo", settings={"recipe.epochs": 0}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is asked for.

    Attributes:
        data: the folder of packs.
        lite0, vit: models made before, instead of training them.
        parts: which parts; none for all.
        smoke: tiny models, one task a part, one seed, one shot: shows that everything runs.
    """

    data: Path
    lite0: Path | None = None
    vit: Path | None = None
    parts: tuple[str, ...] = ()
    smoke: bool = False


def run_study(config: StudyConfig, folder: Path) -> Path:
    """Do what is left in `folder`; the record.

    Raises:
        DataError: for a pack that is missing.
        MissingExtraError: without pyarrow, or the package of weights.
        ConfigError: for an unknown part.
    """
    for name in config.parts:
        require(name in (*PARTS, *LAST), "--part", name, ", ".join((*PARTS, *LAST)))
    tasks = {path.stem: path for path in write_sets(config.data, folder / "sets")}
    results = Results(folder / "results")
    made: dict[tuple[Name, str], Embedder] = {}

    def embedder(name: Name, dtype: str = "auto") -> Embedder:
        if (name, dtype) not in made:
            model = load(model_folder(name, config, folder), dtype=dtype)
            made[name, dtype] = Embedder(model, Store(folder / "store"), name=name)
        return made[name, dtype]

    for name in config.parts or (*PARTS, *LAST):
        done: list[Result] = []
        if name in PARTS:
            do = _part(PARTS[name], config, tasks, embedder(PARTS[name].model), results)
        elif name == "attack":  # small rates move nothing in bfloat16
            do = _attacks(config, tasks, embedder("vit", "float32"), results)
        else:
            do = _checks(config, tasks, embedder, folder / "checks")
        for step in do:
            say(step if isinstance(step, str) else line_of(step))
            done += [] if isinstance(step, str) else [step]
        timed = [result.processor_seconds for result in done if result.processor_seconds]
        _note_cost(folder, name, sum(timed), len(done), len(timed))
    found = {f"{result.record.model}/{result.target}/{result.record.protocol}": lean(result.record) for result in results}
    for name in CHECKS:
        for result in Results(folder / "checks" / file_name(name)):
            record = dataclasses.replace(lean(result.record), subject=name)
            found[f"check/{name}/{record.protocol}"] = record
    found |= _costs(folder)
    save_records(folder / RECORD, found)
    return folder / RECORD


def plan_of(
    method: str, *, shots: int, seed: int, base_to_new: bool = False, study: Mapping[str, Mapping[str, Any]] = SETTINGS,
    **settings: Any,
) -> Plan:  # fmt: skip
    """A plan with a study's settings, and others."""
    return plan_with(method, {**study.get(method, {}), **settings}, shots=shots, seed=seed, base_to_new=base_to_new)


def _part(
    part: Part, config: StudyConfig, tasks: Mapping[str, Path], embedder: Embedder, results: Results
) -> Iterator[Result | str]:
    """The results of a part, task after task."""
    if config.smoke:
        part = dataclasses.replace(part, tasks=part.tasks[:1], shots=(1,), seeds=part.seeds[:1])
    for task in part.tasks:
        splits = TaskSplits(tasks[task], measured="few" if part.few else "test")
        plans = [
            dataclasses.replace(
                plan_of(
                    method, shots=count, seed=seed, base_to_new=part.base_to_new,
                    **{**part.settings, **_smoke(method, config)},
                ),
                sources=part.sources,
            )
            for method in part.methods
            for count in (part.shots[:1] if method in (ZERO_SHOT, "tpt") else part.shots)
            for seed in (part.seeds[:1] if method == ZERO_SHOT else part.seeds)
        ]  # fmt: skip
        others = [TaskSplits(tasks[name]) for name in part.sources]
        yield from run_all(plans, splits, embedder, results, sources=others)


def _checks(
    config: StudyConfig, tasks: Mapping[str, Path], embedder: Callable[[Name], Embedder], folder: Path
) -> Iterator[Result | str]:
    """The results of all checks, 16 shots each, every check in a folder of its own."""
    for name, check in list(CHECKS.items())[: 1 if config.smoke else None]:
        plans = [
            plan_of(check.method, shots=16, seed=seed, **{**check.settings, **_smoke(check.method, config)})
            for seed in check.seeds[: 1 if config.smoke else None]
        ]
        splits = TaskSplits(tasks[check.task], measured="few" if check.model == "vit" else "test")
        yield from run_all(plans, splits, embedder(check.model), Results(folder / file_name(name)))


def _attacks(config: StudyConfig, tasks: Mapping[str, Path], embedder: Embedder, results: Results) -> Iterator[Result | str]:
    """Clean and robust accuracy of zero-shot and of TeCoA's tower, on the task it was trained on and on others."""
    model = embedder.model
    train = TaskSplits(tasks[ATTACKED[0]])
    samples = 4 if config.smoke else ATTACK_SAMPLES
    for label, (method, own) in DEFENCES.items():
        for seed in SEEDS[:1] if config.smoke or method == ZERO_SHOT else SEEDS:
            plan = plan_of(method, shots=0, seed=seed, **{**own, **_smoke(method, config)})
            protocol = f"attack-{plan.name}".replace(plan.method, file_name(label))
            identity = {
                "plan": to_tree(dataclasses.replace(plan, config=None)), "samples": samples, "budget": to_tree(ATTACK),
                "settings": None if plan.config is None else to_tree(plan.config), "code": method_sha256(method),
                **embedder.hashes(train.task),
            }  # fmt: skip
            predictor = None
            for task in ATTACKED:
                splits = TaskSplits(tasks[task])
                path = results.path(embedder.name, task, protocol)
                known = read_result(path) if path.exists() else None
                if known is not None and known.identity == identity:
                    yield known
                    continue
                began, worked = time.monotonic(), time.process_time()
                if predictor is None and method != ZERO_SHOT:
                    predictor = run_plan(plan, train, embedder, folder=path.with_suffix(".fit"))[1]
                bound = bind_to(predictor, model, splits.task)
                found = robust_accuracy(bound, splits.split("test"), budget=ATTACK, attacks=("pgd",), limit=samples, seed=0)
                record = dataclasses.replace(
                    found, protocol=protocol, model=embedder.name, seeds=(seed,),
                    config={**found.config, "method": label, "settings": identity["settings"], "trained_on": train.task.name},
                )  # fmt: skip
                result = Result(
                    record=record, identity=identity, seconds=round(time.monotonic() - began, 3),
                    processor_seconds=round(time.process_time() - worked, 3),
                )  # fmt: skip
                yield results.write(result, {})


def model_folder(name: Name, config: StudyConfig, folder: Path) -> Path:
    """The model's folder; trained if it is not there."""
    given = config.lite0 if name == "lite0" else config.vit
    path = folder / name / "model"
    if given is not None or path.is_dir():
        return given or path
    pairs = folder / f"pairs-{name}"
    small = {"photos": 8, "names": 4, "pictures": 2} if config.smoke else {}
    if name == "lite0":
        counts = {"names": 200, **small}
        run = models.lite0(pairs, folder / "features", smoke=config.smoke)
    else:
        taught_by = folder / "teacher"
        if not taught_by.is_dir():
            models.teacher(model_folder("lite0", config, folder), taught_by, smoke=config.smoke)
        counts = {"names": 200, "pictures": 50, "clip_art": 6000, **small, **({"clip_art": 4} if config.smoke else {})}
        run = models.vit(pairs, taught_by, smoke=config.smoke)
    if not (pairs / "names.json").is_file():
        write_pairs(config.data, pairs, **counts)
    say(f"training {name}")
    worked = time.process_time()
    run.run(folder / name)
    _note_cost(folder, name, time.process_time() - worked, 1, 1)
    return path


def _note_cost(folder: Path, name: str, seconds: float, count: int, timed: int) -> None:
    """Keep what the timed fits of a part took, or the training of a model."""
    write_json(folder / COSTS / f"{name}.json", {"seconds": round(seconds, 1), "count": count, "timed": timed})
    say(f"{name}: {seconds / 60:.1f} minutes of processor time")


def _costs(folder: Path) -> dict[str, Record]:
    """What was kept of all parts, as a record: seconds of the fits that were timed, and how many there are."""
    kept = {path.stem: read_json(path) for path in (folder / COSTS).glob("*.json")}
    costs = {
        name: Metric(value=kept[name]["seconds"], count=kept[name]["timed"], direction="lower")
        for name in ("lite0", "vit", *PARTS, *LAST) if name in kept
    }  # fmt: skip
    counts = {name: kept[name]["count"] for name in costs}
    subject = "seconds of processor time"
    return {COSTS: Record(protocol=COSTS, subject=subject, metrics=costs, config={}, hashes={}, counts=counts)}


def _smoke(method: str, config: StudyConfig) -> dict[str, Any]:
    """Settings with which a method only shows that it runs."""
    if not config.smoke or method in (ZERO_SHOT, "probe"):
        return {}
    if method == "tpt":
        return {"views": 4, "keep": 0.5}
    return {"recipe.epochs": 1}


def lean(record: Record) -> Record:
    return dataclasses.replace(record, details={})


def line_of(result: Result) -> str:
    record = result.record
    values = ", ".join(f"{name} {100 * metric.value:.1f}" for name, metric in record.metrics.items())
    return f"{record.model}: {result.target} {record.protocol}: {values} ({result.seconds:.1f} s)"


def say(text: str) -> None:
    print(f"study: {text}", file=sys.stderr, flush=True)
