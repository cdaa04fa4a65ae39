"""DomainBed's protocol for methods that adapt: each domain left out in turn, runs that go on where they were, the three rules.

Every domain is cut 80 to 20 by (trial, domain); a method learns from the in parts of the training domains, with as many
pictures of each in a batch, may choose by their out parts, and is measured on both parts of every domain
(`evals.domainbed`). Draws are settings of the recipe: draw 0 is what is given, the others change the learning rate and the
weight decay as far as DomainBed's ranges lie around its defaults. With the rule leave-one-domain-out there are also runs
without two domains.

A method gives one predictor a run, so that there is one step to choose: its last epoch, or with recipe.select=best its best by
the out parts of the training domains, all pictures alike.

Source: Gulrajani and Lopez-Paz 2021; facebookresearch/DomainBed, commit b93c22a (hparams_registry.py, train.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.adapt._examples import CROPS, Examples, Labelled
from ostension.adapt._recipe import Recipe
from ostension.adapt._tuning import tuning
from ostension.adapt.base import METHODS
from ostension.config import from_tree, require, to_tree
from ostension.data.pairs import Joined, Subset
from ostension.data.sets.base import SelectedSet
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError, DataError, OstensionError, unknown_name
from ostension.evals.adaptation import ZERO_SHOT
from ostension.evals.answers import logits_of, names_of
from ostension.evals.domain_probes import tables
from ostension.evals.domainbed import HOLDOUT, RULES, TRIALS, Checkpoint, folder_order, seed_hash, split_domain
from ostension.evals.identity import method_sha256, task_sha256
from ostension.evals.records import Metric, Record
from ostension.evals.results import Result, Results
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits, measured_splits
from ostension.files import read_json, write_json
from ostension.image.augment import CropConfig
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float
from ostension.store.key import Level

FIELD = "domain"  # the group that says a sample's domain
Defaults = Literal["method", "domainbed", "recommended"]
STEPS = 5001
# log10 factors of the learning rate and log10 of the weight decay that DomainBed draws from; its default rate is 5e-5.
RATE_FACTORS, WEIGHT_DECAYS = (-5 - np.log10(5e-5), -3.5 - np.log10(5e-5)), (-6.0, -2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainPlan:
    """One method on the domains of a task.

    Attributes:
        method, config: as in `adaptation.Plan`.
        defaults: where the recipe comes from: the method's settings as they are; "domainbed", Adam at 5e-5 for 5,001 steps of
            32 pictures a domain, which tunes CLIP to below zero-shot; "recommended", as many at 1e-5 (`recommended`).
        trials: splits that are drawn.
        draws: settings that are tried in each trial.
        rules: that choose; leave-one-domain-out needs runs without two domains.
        test: the domains that are left out; none leaves out each in turn.
        holdout: the share of the out parts.
    """

    method: str
    config: Any = None
    defaults: Defaults = "method"
    trials: int = TRIALS
    draws: int = 1
    rules: tuple[str, ...] = ("training-domain", "oracle")
    test: tuple[str, ...] = ()
    holdout: float = HOLDOUT

    def __post_init__(self):
        require(self.trials >= 1, "trials", self.trials, "1 or more")
        require(self.draws >= 1, "draws", self.draws, "1 or more")
        require(0 < self.holdout < 1, "holdout", self.holdout, "above 0, below 1")
        require(bool(self.rules), "rules", self.rules, f"some of {', '.join(RULES)}")
        if unknown := [rule for rule in self.rules if rule not in RULES]:
            raise unknown_name("rule of selection", unknown[0], RULES)
        if self.defaults != "method" and self.recipe is None:
            raise ConfigError(f"defaults are {self.defaults!r}, but {self.method} has no recipe", expected="defaults 'method'")

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the settings, if they have one."""
        return getattr(self.config, "recipe", None)

    @property
    def name(self) -> str:
        """The protocol under which its record is kept."""
        kind = "" if self.defaults == "method" else f"-{self.defaults}"
        return f"domains-{self.method}{kind}"

    @property
    def num_draws(self) -> int:
        """Draws that differ: without a recipe, or a rate of its own, there is one."""
        return self.draws if self.recipe is not None and self.recipe.lr is not None else 1

    def settings(self, draw: int, *, trial: int, tests: Sequence[str], steps: int) -> Any:
        """The method's settings in a draw.

        Args:
            steps: of one epoch, where the pictures of each domain make batches of `batch_size`.
        """
        recipe = self.recipe
        if recipe is None:
            return self.config
        if self.defaults != "method":
            recipe = dataclasses.replace(recipe, **(published if self.defaults == "domainbed" else recommended)(steps))
        if draw:
            generator = numpy_generator(seed_hash(self.method, trial, draw, *tests), "domains draw")
            factor, decay = (10 ** generator.uniform(*ends) for ends in (RATE_FACTORS, WEIGHT_DECAYS))
            assert recipe.lr is not None
            recipe = dataclasses.replace(recipe, lr=float(recipe.lr * factor), weight_decay=float(decay))
        return dataclasses.replace(self.config, recipe=recipe)


def published(steps: int) -> dict[str, Any]:
    """The recipe's settings that are DomainBed's defaults, with `steps` an epoch.

    Adam without weight decay is AdamW without it. Of its augmentation, crops of 0.7 to 1 with a flip are taken over; jitter
    and grey are not.
    """
    crop = CropConfig(kind="resized", scale=(0.7, 1.0), mirror=True)
    return {
        "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.0, "batch_size": 32, "schedule": "constant", "warmup_epochs": 0,
        "warmup_steps": 0, "clip_norm": None, "epochs": -(-STEPS // steps), "crop": crop,
    }  # fmt: skip


def recommended(steps: int) -> dict[str, Any]:
    """The same batches and steps with what CLIP wants: a learning rate of 1e-5, and else WiSE-FT's recipe (`_tuning.tuning`).

    With DomainBed's defaults CLIP's B/16 came to 65.3 on the mean of VLCS, PACS, OfficeHome and Terra Incognita, below the 73.7
    of its zero-shot classifier (khanrc/miro, issue 6; Cheng et al., DPL).
    """
    own = tuning(lr=1e-5, batch_size=32, epochs=-(-STEPS // steps))
    return {name: getattr(own, name) for name in published(steps)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainPictures(Labelled):
    """Some pictures of several domains; features are taken from whole domains, which the store has once for all trials.

    Attributes:
        parts: each domain with the positions of its pictures.
    """

    parts: tuple[tuple[Labelled, np.ndarray], ...] = ()

    def features(
        self, model: CLIP, views: int = 0, progress: Callable | None = None, crop: CropConfig = CROPS, level: Level = "post"
    ) -> Float[Tensor, "V N E"]:
        whole = [(part.features(model, views, progress, crop, level), rows) for part, rows in self.parts]
        return torch.cat([found[:, torch.from_numpy(rows)] for found, rows in whole], dim=1)


def domains_of(splits: TaskSplits) -> dict[str, TaskData]:
    """The samples of each domain in torchvision's folder order, domains sorted by name.

    Domains are the record's splits that select one value of the group "domain".

    Raises:
        DataError: for fewer than three.
    """
    task = splits.task
    names = {}
    for name in measured_splits(task):
        values = task.splits[name].select.get(FIELD, ())
        if set(task.splits[name].select) == {FIELD} and len(values) == 1:
            names[values[0]] = name
    if len(names) < 3:
        what = f"{len(names)} of its splits are one value of the group {FIELD!r} each"
        raise DataError(what, source=task.name, expected="three domains or more: one for test, two to learn from")
    found = {}
    for domain in sorted(names):
        data = splits.of(names[domain]).split("test")
        if data.targets is None or data.targets.ndim != 1:
            raise ConfigError(f"{task.name!r} has several labels a sample", expected="a task with one label a sample")
        order = folder_order([data.classes[target] for target in data.targets], data.ids)
        groups = {name: values[order] for name, values in data.groups.items()}
        ordered = SelectedSet(data.samples, order)
        found[domain] = dataclasses.replace(data, samples=ordered, targets=data.targets[order], groups=groups)
    return found


def run_domains(
    plan: DomainPlan, splits: TaskSplits, embedder: Embedder, results: Results
) -> Iterator[Checkpoint | str | Result]:
    """The checkpoint of every run as it is made or found, or in one line why there is none; last the record of all, if whole.

    Raises:
        ConfigError, DataError: if there are too few domains, or one in `plan.test` is not there.
    """
    domains = domains_of(splits)
    left_out = plan.test or tuple(domains)
    if unknown := [name for name in left_out if name not in domains]:
        raise ConfigError(f"no domain {unknown[0]!r} in {splits.task.name!r}", expected=", ".join(domains))
    tests: list[tuple[str, ...]] = [(name,) for name in left_out]
    if "leave-one-domain-out" in plan.rules:
        tests += [pair for pair in itertools.combinations(domains, 2) if set(pair) & set(left_out)]
    folder = results.path(embedder.name, splits.task.name, plan.name).with_suffix(".runs")
    common = _identity(plan, splits, embedder, domains)
    checkpoints, failed = [], False
    for trial, test, draw in itertools.product(range(plan.trials), tests, range(plan.num_draws)):
        where = f"trial{trial}-without-{'-'.join(test)}-draw{draw}"
        try:
            config = plan.settings(draw, trial=trial, tests=test, steps=_steps(plan, domains, test, trial))
            identity = {**common, "run": where, "config": None if config is None else to_tree(config)}
            found = _known(folder / f"{where}.json", identity)
            if found is None:
                found = _run(plan, config, splits, embedder, domains, test, trial, draw, folder / where)
                write_json(folder / f"{where}.json", {"identity": identity, "checkpoint": to_tree(found)})
        except OstensionError as error:
            failed = True
            yield f"{embedder.name}: {splits.task.name} {plan.method} {where}: {error}"
            continue
        checkpoints.append(found)
        yield found
    if not failed:
        record = record_of(plan, splits, embedder, domains, checkpoints)
        yield results.write(Result(record=record, identity={**common, "split": "test", "trials": plan.trials}), {})


def record_of(
    plan: DomainPlan, splits: TaskSplits, embedder: Embedder, domains: Mapping[str, TaskData], found: Sequence[Checkpoint]
) -> Record:
    """What the rules make of a plan's checkpoints: DomainBed's table, the mean over left-out domains by each rule."""
    task, table = splits.task, tables(list(found), plan.rules)
    rules = next(iter(table.values()), {})
    left_out = plan.test or tuple(domains)
    count = sum(round((1 - plan.holdout) * len(domains[name])) for name in left_out)
    measured = {
        f"accuracy_{rule.replace('-', '_')}": Metric(
            value=float(np.mean([row[0] for row in rows.values()])), count=count, chance=1 / task.num_classes
        )
        for rule, rows in rules.items()
    }
    settings = {name: value for name, value in to_tree(plan).items() if name != "config"}
    return Record(
        protocol=plan.name, subject=f"{plan.method} on left-out domains of {task.title}", metrics=measured,
        config={**settings, "settings": None if plan.config is None else to_tree(plan.config)}, hashes=embedder.hashes(task),
        counts={"samples": sum(map(len, domains.values())), "classes": task.num_classes, "domains": len(domains)},
        seeds=tuple(range(plan.trials)), task=task.name, model=embedder.name,
        details={"checkpoints": [to_tree(one) for one in found], "table": table,
                 "domains": {name: len(data) for name, data in domains.items()}},
    )  # fmt: skip


def _run(
    plan: DomainPlan, config: Any, splits: TaskSplits, embedder: Embedder, domains: Mapping[str, TaskData],
    tests: Sequence[str], trial: int, draw: int, folder: Path,
) -> Checkpoint:  # fmt: skip
    """Fit on the in parts of the other domains, and measure every part of every domain."""
    task, names = splits.task, names_of(splits.task)
    parts = _parts(plan, domains, trial)
    if plan.method == ZERO_SHOT:
        predictor = embedder.model.classifier(list(names), task.prompt_templates())
    else:
        learned = {name: parts[name] for name in domains if name not in tests}
        examples = Examples(
            class_names=names, templates=task.prompt_templates(),
            train=_pictures(domains, {name: inside for name, (inside, _) in learned.items()}, embedder, by_domain=True),
            val=_pictures(domains, {name: outside for name, (_, outside) in learned.items()}, embedder, by_domain=False),
            facts={"task": task.name, "shots": 0, "seed": trial, "selection": "out parts of the training domains"},
        )  # fmt: skip
        seed = seed_hash(task.name, plan.method, *tests, draw, trial)
        predictor = METHODS.load(plan.method).fit(embedder.model, examples, config, seed=seed, folder=folder / "fit")
    right = {name: logits_of(predictor, data, embedder).argmax(axis=1) == data.targets for name, data in domains.items()}
    label = plan.name.removeprefix("domains-")
    return Checkpoint(
        dataset=task.name, method=label, test_domains=tuple(tests), trial=trial, draw=draw, step=_epochs(config),
        inside={name: float(right[name][parts[name][0]].mean()) for name in domains},
        outside={name: float(right[name][parts[name][1]].mean()) for name in domains},
    )  # fmt: skip


def _epochs(config: Any) -> int:
    recipe = getattr(config, "recipe", None)
    return 0 if recipe is None or recipe.epochs is None else recipe.epochs


def _pictures(
    domains: Mapping[str, TaskData], chosen: Mapping[str, np.ndarray], embedder: Embedder, *, by_domain: bool
) -> DomainPictures:
    parts, targets, numbers, sources = [], [], [], []
    for number, (name, rows) in enumerate(chosen.items()):
        data = domains[name]
        assert data.targets is not None
        whole = Labelled(source=data.samples, targets=data.targets, name=data.split, store=embedder.store)
        parts.append((whole, rows))
        targets.append(data.targets[rows])
        numbers.append(np.full(len(rows), number))
        sources.append(Subset(data.samples, rows))
    return DomainPictures(
        source=Joined(sources), targets=np.concatenate(targets), domains=np.concatenate(numbers), by_domain=by_domain,
        parts=tuple(parts),
    )  # fmt: skip


def _parts(plan: DomainPlan, domains: Mapping[str, TaskData], trial: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {
        name: split_domain(len(data), trial=trial, domain=number, holdout=plan.holdout)
        for number, (name, data) in enumerate(domains.items())
    }
    for name, (inside, outside) in found.items():
        if not len(inside) or not len(outside):
            raise ConfigError(f"the domain {name!r} has {len(domains[name])} samples", expected="enough for both parts")
    return found


def _steps(plan: DomainPlan, domains: Mapping[str, TaskData], tests: Sequence[str], trial: int) -> int:
    """Steps of an epoch with DomainBed's batches: what the largest training domain fills."""
    parts = _parts(plan, domains, trial)
    return max(1, max(len(parts[name][0]) for name in domains if name not in tests) // 32)


def _identity(
    plan: DomainPlan, splits: TaskSplits, embedder: Embedder, domains: Mapping[str, TaskData]
) -> dict[str, Any]:
    code = None if plan.method == ZERO_SHOT else method_sha256(plan.method)
    return {
        "method": plan.method, "code": code, "holdout": plan.holdout, "task": task_sha256(splits.task),
        "data": {name: data.samples.fingerprint() for name, data in domains.items()}, **embedder.hashes(splits.task),
    }  # fmt: skip


def _known(path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of a run that was made with the same identity."""
    if not path.is_file():
        return None
    try:
        tree = read_json(path)
        return from_tree(Checkpoint, tree["checkpoint"], source=path) if tree["identity"] == identity else None
    except (DataError, ConfigError, KeyError, TypeError):
        return None  # damaged: it is made anew
