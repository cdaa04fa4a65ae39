"""DomainBed's protocol on frozen features: each domain left out in turn, zero-shot and a probe trained on the other domains.

The probe is logistic regression on the in parts of the training domains, which count alike whatever their sizes (as one
mini-batch of each domain a step makes them). Its strengths are what DomainBed draws as hyper-parameters; the three rules of
`evals.domainbed` choose among them. Accuracies are those of the test domain's in part, means over trials, which are other
splits. Where a domain is the split that is measured, only it is left out here; the summary `domains` puts them together.

Details: "checkpoints" [...] (`domainbed.Checkpoint`: all that the rules look at), "table" {method: {rule: {domain: [mean,
standard error, trials]}}}, "strengths" [...] by number of the draw, "domains" {name: samples}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import DataError, unknown_name
from ostension.evals.domain_probes import fixed_checkpoints, in_folder_order, probe_checkpoints, tables
from ostension.evals.domainbed import HOLDOUT, RULES, TRIALS, Rule
from ostension.evals.heads import head_of_words
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.store import Features
from ostension.store.key import Level

SPLITS = ("test",)
FIELD = "domain"  # the group that says a sample's domain
ZERO_SHOT, PROBE = "zero-shot", "probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how it is chosen.

    Attributes:
        test: the domains that are left out in turn; by default the one that is measured, or all.
        trials: splits that are drawn, as DomainBed draws them.
        holdout: share of the out parts.
        level: the rows of the probe: before ("pre") or after ("post") the projection.
        strengths: that are tried.
        rules: by which one is chosen; the first is the headline of the probe.
        zero_shot: whether the zero-shot classifier is measured on the same parts.
    """

    test: tuple[str, ...] = ()
    trials: int = TRIALS
    holdout: float = HOLDOUT
    level: Level = "pre"
    strengths: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    rules: tuple[Rule, ...] = RULES
    zero_shot: bool = True

    def __post_init__(self):
        require(self.trials >= 1, "trials", self.trials, "1 or more")
        require(0 < self.holdout < 1, "holdout", self.holdout, "above 0, below 1")
        require(bool(self.strengths) and min(self.strengths) > 0, "strengths", self.strengths, "numbers above 0")
        require(bool(self.rules) and len(set(self.rules)) == len(self.rules), "rules", self.rules, "one or more, each once")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.takes_several:
        return "samples have several labels"
    return None if FIELD in task.groups else f"its record has no group {FIELD!r}"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Checkpoints of every domain left out, and what each rule makes of them. The seeds are the trials' numbers.

    Raises:
        ConfigError: for a domain that is not there.
        DataError: for fewer than three domains, or samples without one label each.
    """
    task = inputs.task
    domains = domains_of(inputs, config.level)
    left_out = _left_out(inputs, config, domains)
    checkpoints = probe_checkpoints(
        task.name, PROBE, domains, left_out, trials=config.trials, holdout=config.holdout, level=config.level,
        strengths=config.strengths, pairs="leave-one-domain-out" in config.rules,
    )  # fmt: skip
    if config.zero_shot:
        head = head_of_words(inputs)
        rows = domains if config.level == "post" else domains_of(inputs, "post")
        predicted = {name: head.logits(features).argmax(axis=1) for name, features in rows.items()}
        checkpoints += fixed_checkpoints(
            task.name, ZERO_SHOT, domains, predicted, left_out, trials=config.trials, holdout=config.holdout
        )
    table = tables(checkpoints, config.rules)
    sizes = sum(round((1 - config.holdout) * len(domains[name])) for name in left_out)
    measured = {}
    for method, rule in [(ZERO_SHOT, config.rules[0])] * config.zero_shot + [(PROBE, rule) for rule in config.rules]:
        values = [row[0] for row in table[method].get(rule, {}).values()]
        if values:
            name = "zero_shot" if method == ZERO_SHOT else f"probe_{rule.replace('-', '_')}"
            measured[name] = Metric(value=float(np.mean(values)), count=sizes, chance=1 / task.num_classes)
    record = Record(
        protocol="domains", subject=f"{inputs.model_name} on the domains of {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(),
        counts={"samples": sum(map(len, domains.values())), "classes": task.num_classes, "domains": len(domains)},
        seeds=tuple(range(config.trials)), task=task.name, model=inputs.model_name, split=inputs.name_of("test"),
        details={"checkpoints": [to_tree(one) for one in checkpoints], "table": table,
                 "strengths": sorted(config.strengths, reverse=True),
                 "domains": {name: len(features) for name, features in domains.items()}},
    )  # fmt: skip
    return Outcome(record=record)


def domains_of(inputs: Inputs, level: Level) -> dict[str, Features]:
    """The samples of each domain in folder order, domains sorted by name.

    Domains are the record's splits that select one value of the group "domain"; if there are none, the values of that group
    among the samples that are measured.

    Raises:
        DataError: for fewer than three domains.
    """
    splits = {
        split.select[FIELD][0]: name
        for name, split in inputs.task.splits.items()
        if set(split.select) == {FIELD} and len(split.select[FIELD]) == 1
    }
    if len(splits) > 1:
        found = {value: inputs.features(name, level) for value, name in splits.items() if inputs.has(name)}
    else:
        features = inputs.features("test", level)
        if FIELD not in features.groups:
            raise unknown_name("group (which says a sample's domain)", FIELD, features.groups)
        values = np.asarray(features.groups[FIELD]).astype(str)
        found = {str(value): features.take(values == value) for value in np.unique(values)}
    if len(found) < 3:
        what = f"{len(found)} domains ({', '.join(found)})"
        raise DataError(what, source=inputs.task.name, expected="three or more: one for test, two to choose by")
    return in_folder_order(found)


def _left_out(inputs: Inputs, config: Config, domains: Mapping[str, Features]) -> tuple[str, ...]:
    for name in config.test:
        if name not in domains:
            raise unknown_name("domain", name, domains)
    if config.test:
        return config.test
    measured = inputs.task.splits.get(inputs.name_of("test"))
    selected = () if measured is None else measured.select.get(FIELD, ())
    return selected if len(selected) == 1 else tuple(domains)
