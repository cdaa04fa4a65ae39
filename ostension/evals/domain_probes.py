"""DomainBed's runs on frozen features: classifiers with each domain left out, as checkpoints that the rules choose among."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ostension.errors import ConfigError
from ostension.evals.domainbed import Checkpoint, choose, folder_order, split_domain, tabulate
from ostension.evals.heads import one_label, rows_of
from ostension.store import Features
from ostension.store.key import Level
from ostension.train.logistic import fit_logistic

Domains = Mapping[str, Features]  # in the order of their names, samples in folder order


def in_folder_order(domains: Domains) -> dict[str, Features]:
    """Domains sorted by name, the samples of each as torchvision lists them, which is what the published splits count."""
    ordered = {}
    for name in sorted(domains):
        features = domains[name]
        keys = [features.classes[target] for target in one_label(features)]
        ordered[name] = features.take(folder_order(keys, features.ids))
    return ordered


def probe_checkpoints(
    dataset: str,
    method: str,
    domains: Domains,
    left_out: tuple[str, ...],
    *,
    trials: int,
    holdout: float,
    level: Level,
    strengths: tuple[float, ...],
    pairs: bool,
) -> list[Checkpoint]:
    """Probes at every strength with each domain left out, and with each pair of it and another one for leave-one-domain-out.

    Among equals a rule takes the later draw, which is the stronger penalty here.
    """
    ordered = sorted(strengths, reverse=True)
    rows = {name: torch.from_numpy(rows_of(features, level)) for name, features in domains.items()}
    targets = {name: torch.from_numpy(one_label(features)) for name, features in domains.items()}
    classes = len(next(iter(domains.values())).classes)
    alone = [(name,) for name in left_out]
    both = [pair for pair in itertools.combinations(domains, 2) if set(pair) & set(left_out)] if pairs else []
    found = []
    for trial, tests in itertools.product(range(trials), [*alone, *both]):
        parts = _parts(domains, trial, holdout)
        learned = {name: torch.from_numpy(parts[name][0]) for name in domains if name not in tests}
        total = sum(map(len, learned.values()))
        weights = [torch.full((len(part),), total / (len(learned) * len(part))) for part in learned.values()]
        fit = fit_logistic(
            torch.cat([rows[name][part] for name, part in learned.items()]),
            torch.cat([targets[name][part] for name, part in learned.items()]), classes, ordered,
            sample_weights=torch.cat(weights),
        )  # fmt: skip
        for draw in range(len(ordered)):
            predicted = {name: fit.logits_of(draw, values).argmax(dim=1).numpy() for name, values in rows.items()}
            found.append(_checkpoint(dataset, method, tests, trial, draw, domains, predicted, parts))
    return found


def fixed_checkpoints(
    dataset: str,
    method: str,
    domains: Domains,
    predicted: Mapping[str, np.ndarray],
    left_out: tuple[str, ...],
    *,
    trials: int,
    holdout: float,
) -> list[Checkpoint]:
    """Checkpoints of a classifier that learns from no domain: it is the same whichever are left out."""
    both = [pair for pair in itertools.combinations(domains, 2) if set(pair) & set(left_out)]
    found = []
    for trial in range(trials):
        parts = _parts(domains, trial, holdout)
        tests = [*((name,) for name in left_out), *both]
        found += [_checkpoint(dataset, method, each, trial, 0, domains, predicted, parts) for each in tests]
    return found


def tables(checkpoints: list[Checkpoint], rules: Sequence[str]) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """{method: {rule: {domain: [mean, standard error, trials]}}}."""
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for rule in rules:
        for (_, method), table in tabulate(choose(checkpoints, rule)).items():
            row = {name: [value.mean, value.error, value.trials] for name, value in table.domains.items()}
            found.setdefault(method, {})[rule] = row
    return found


def _parts(domains: Domains, trial: int, holdout: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {
        name: split_domain(len(features), trial=trial, domain=number, holdout=holdout)
        for number, (name, features) in enumerate(domains.items())
    }
    for name, (inside, outside) in found.items():
        if not len(inside) or not len(outside):
            raise ConfigError(f"the domain {name!r} has {len(domains[name])} samples", expected="enough for both parts")
    return found


def _checkpoint(
    dataset: str,
    method: str,
    tests: tuple[str, ...],
    trial: int,
    draw: int,
    domains: Domains,
    predicted: Mapping[str, np.ndarray],
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Checkpoint:
    right = {name: predicted[name] == one_label(features) for name, features in domains.items()}
    return Checkpoint(
        dataset=dataset, method=method, test_domains=tests, trial=trial, draw=draw, step=0,
        inside={name: float(right[name][parts[name][0]].mean()) for name in domains},
        outside={name: float(right[name][parts[name][1]].mean()) for name in domains},
    )  # fmt: skip
