"""DomainBed's protocol: splits of domains, and the three rules that choose a checkpoint without or with the test domain.

Every domain is cut into an *in* and an *out* part, 80 to 20, by a seed made of trial and domain. One domain is for test; a
method learns from the in parts of the others; **test accuracy is that of the test domain's in part**. The rules choose the
hyper-parameters and the step of each trial by

- training-domain: the mean accuracy on the out parts of the training domains;
- leave-one-domain-out: the mean accuracy on each training domain's in part when it was left out too, which needs runs with
  two test domains;
- oracle: the accuracy on the test domain's out part, at the last step only.

Source: Gulrajani and Lopez-Paz 2021, In Search of Lost Domain Generalization; facebookresearch/DomainBed, commit b93c22a, whose
splits (positions in torchvision's folder order) and tables are reproduced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ostension.errors import DataError, unknown_name
from ostension.shapes import Int

Rule = Literal["training-domain", "leave-one-domain-out", "oracle"]
RULES: tuple[Rule, ...] = get_args(Rule)
HOLDOUT = 0.2
TRIALS = 3


def seed_hash(*values: int | str) -> int:
    """A seed below 2^31 made of values, as DomainBed makes it."""
    return int(hashlib.md5(str(values).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def split_domain(
    count: int, *, trial: int, domain: int, holdout: float = HOLDOUT
) -> tuple[Int[np.ndarray, " I"], Int[np.ndarray, " O"]]:
    """Positions of the in part and of the out part of a domain with `count` samples.

    Args:
        trial: from 0.
        domain: its number among the data set's domains, which are sorted by name.
        holdout: the share of the out part, rounded down.

    The generator is the one that DomainBed seeds, so that the parts are the published ones where the samples are in
    `folder_order`.
    """
    positions = list(range(count))
    np.random.RandomState(seed_hash(trial, domain)).shuffle(positions)
    cut = int(count * holdout)
    return np.array(positions[cut:], dtype=np.int64), np.array(positions[:cut], dtype=np.int64)


def folder_order(labels: Sequence[str], ids: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Positions of samples in the order in which torchvision lists a folder: by class folder, then by path."""
    return np.array(sorted(range(len(ids)), key=lambda row: (labels[row], ids[row])), dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one step of one run reached.

    Attributes:
        dataset, method: what was run.
        test_domains: those that it never saw: one, or two for leave-one-domain-out.
        trial: seeds the splits.
        draw: number of the hyper-parameters' draw; of a method without any, 0.
        step: of training.
        inside, outside: accuracy on the in and out part of every domain, by its name.
    """

    dataset: str
    method: str
    test_domains: tuple[str, ...]
    trial: int
    draw: int
    step: int
    inside: dict[str, float]
    outside: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a rule chose in one trial: by `validation`, with test accuracy `accuracy`."""

    dataset: str
    method: str
    test_domain: str
    trial: int
    draw: int
    step: int
    validation: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class MeanError:
    """A mean over trials with its standard error, std / sqrt(trials) (std with N below the line, as published)."""

    mean: float
    error: float
    trials: int


@dataclasses.dataclass(frozen=True)
class DomainTable:
    """A row of the published tables: each test domain, and the mean over them."""

    domains: Mapping[str, MeanError]
    average: MeanError


def choose(checkpoints: Iterable[Checkpoint], rule: str) -> list[Chosen]:
    """The checkpoint that `rule` chooses for each data set, method, test domain and trial; none where its runs are missing.

    Among equals the later draw and the earlier step win, as published.
    """
    if rule not in RULES:
        raise unknown_name("rule of selection", rule, RULES)
    groups: dict[tuple[str, str, str, int], list[Checkpoint]] = defaultdict(list)
    for one in checkpoints:
        for domain in one.test_domains:
            groups[one.dataset, one.method, domain, one.trial].append(one)
    found = []
    for (_, _, domain, _), several in sorted(groups.items(), key=lambda group: group[0]):
        draws: dict[int, list[Checkpoint]] = defaultdict(list)
        for one in several:
            draws[one.draw].append(one)
        best = [_best_step(draws[draw], domain, rule) for draw in sorted(draws, reverse=True)]
        candidates = [one for one in best if one is not None]
        if candidates:
            found.append(max(candidates, key=lambda one: one.validation))
    return found


def tabulate(chosen: Iterable[Chosen]) -> dict[tuple[str, str], DomainTable]:
    """Means and errors over trials by data set and method; the average's error is over the trials' means over domains.

    The mean over domains is only of trials that have all of them.
    """
    rows: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in chosen:
        rows[one.dataset, one.method][one.test_domain][one.trial] = one.accuracy
    tables = {}
    for name, domains in rows.items():
        whole = set.intersection(*(set(trials) for trials in domains.values()))
        over = [float(np.mean([trials[trial] for trials in domains.values()])) for trial in sorted(whole)]
        tables[name] = DomainTable(
            {domain: mean_error(list(trials.values())) for domain, trials in sorted(domains.items())},
            mean_error(over) if over else MeanError(math.nan, math.nan, 0),
        )
    return tables


def tabulate_all(checkpoints: Sequence[Checkpoint], rules: Sequence[str] = RULES) -> list[tuple[str, str, DomainTable]]:
    """The rows of a data set's table: (method, rule, table), methods as they first occur; rules whose runs are missing are
    left out."""
    tables = {rule: tabulate(choose(checkpoints, rule)) for rule in rules}
    methods = dict.fromkeys((one.dataset, one.method) for one in checkpoints)
    return [(key[1], rule, tables[rule][key]) for key in methods for rule in rules if key in tables[rule]]


def mean_error(values: Sequence[float]) -> MeanError:
    """The mean and its standard error."""
    return MeanError(float(np.mean(values)), float(np.std(values) / math.sqrt(len(values))), len(values))


def read_sweep(folder: str | os.PathLike, domains: Sequence[str] | None = None) -> list[Checkpoint]:
    """The checkpoints of a folder of DomainBed's runs (`RUN/results.jsonl`).

    Args:
        domains: names of the domains in their order; by default their numbers.

    Raises:
        DataError: for a folder without runs, or a line of another form.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.glob("*/results.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                found.append(_checkpoint(json.loads(line), domains))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                what = f"line {number} is no checkpoint ({type(error).__name__}: {error})"
                raise DataError(what, source=path, expected="args, step and env0_in_acc, env0_out_acc, ...") from None
    if not found:
        raise DataError("no run", source=folder, expected="folders with results.jsonl")
    return found


def _checkpoint(tree: Mapping[str, Any], domains: Sequence[str] | None) -> Checkpoint:
    count = sum(f"env{index}_out_acc" in tree for index in range(len(tree)))
    names = [str(index) for index in range(count)] if domains is None else list(domains)[:count]
    args = tree["args"]
    return Checkpoint(
        dataset=args["dataset"],
        method=args["algorithm"],
        test_domains=tuple(names[index] for index in args["test_envs"]),
        trial=int(args["trial_seed"]),
        draw=int(args["hparams_seed"]),
        step=int(tree["step"]),
        inside={name: float(tree[f"env{index}_in_acc"]) for index, name in enumerate(names)},
        outside={name: float(tree[f"env{index}_out_acc"]) for index, name in enumerate(names)},
    )


def _best_step(run: Sequence[Checkpoint], domain: str, rule: str) -> Chosen | None:
    """The best step of one draw of hyper-parameters."""
    alone = sorted((one for one in run if one.test_domains == (domain,)), key=lambda one: one.step)
    if not alone:
        return None
    if rule == "oracle":
        return _chosen(alone[-1], domain, alone[-1].outside[domain])
    if rule == "training-domain":
        means = [float(np.mean([value for name, value in one.outside.items() if name != domain])) for one in alone]
        return max((_chosen(one, domain, mean) for one, mean in zip(alone, means, strict=True)), key=lambda one: one.validation)
    found = []
    for one in alone:
        left = {
            other: pair.inside[other]
            for pair in run
            if pair.step == one.step and len(pair.test_domains) == 2
            for other in pair.test_domains
            if other != domain
        }
        if set(left) == set(one.inside) - {domain}:
            found.append(_chosen(one, domain, float(np.mean(list(left.values())))))
    return max(found, key=lambda one: one.validation, default=None)


def _chosen(one: Checkpoint, domain: str, validation: float) -> Chosen:
    return Chosen(
        dataset=one.dataset, method=one.method, test_domain=domain, trial=one.trial, draw=one.draw, step=one.step,
        validation=validation, accuracy=one.inside[domain],
    )  # fmt: skip
