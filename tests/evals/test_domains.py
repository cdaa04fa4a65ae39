"""The protocol `domains` and its summary: planted domains, the parts that are measured, tables from several records."""

from __future__ import annotations

import dataclasses
import functools
import io
import os

import numpy as np
import pytest
from PIL import Image

from ostension.config import from_tree
from ostension.data.task import Task, read_task
from ostension.data.task_data import open_task
from ostension.errors import ConfigError, DataError
from ostension.evals.domainbed import Checkpoint, choose, split_domain, tabulate
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Metric, Record
from ostension.evals.summaries import domains as summary
from ostension.store import Features

PROTOCOL = load_protocol("domains")
CLASSES = ("cat", "dog", "owl")


def a_task(name="pictures") -> Task:
    splits = {domain: {"count": 60, "select": {"domain": [domain]}} for domain in ("art", "photo", "sketch")}
    tree = {
        "title": "Pictures", "name": name, "version": 1, "classes": {key: [key] for key in CLASSES}, "templates": ["{}"],
        "groups": {"domain": ["art", "photo", "sketch"]}, "splits": splits, "licence": "ours", "citation": "ours",
    }  # fmt: skip
    return from_tree(Task, tree)


def domain(number: int, count: int = 60, noise: float = 0.1) -> Features:
    """Rows that say the class in three numbers and the domain in three others."""
    generator = np.random.default_rng(number)
    targets = np.arange(count) % 3
    rows = np.concatenate([np.eye(3)[targets], np.eye(3)[np.full(count, number)]], axis=1)
    rows += noise * generator.standard_normal(rows.shape)
    ids = tuple(f"{CLASSES[target]}/{row:03d}.png" for row, target in enumerate(targets))
    return Features(
        rows=rows.astype(np.float32), targets=targets, classes=CLASSES, ids=ids,
        groups={"domain": np.full(count, ("art", "photo", "sketch")[number])},
    )  # fmt: skip


def inputs(task=None, noise=0.1, **features) -> ArrayInputs:
    whole = {"art": domain(0, noise=noise), "photo": domain(1, noise=noise), "sketch": domain(2, noise=noise)} | features
    return ArrayInputs(task or a_task(), whole, class_rows=np.concatenate([np.eye(3), np.zeros((3, 3))], axis=1))


CHEAP = PROTOCOL.Config(trials=2, strengths=(0.1, 1.0))


def test_classes_that_all_domains_share_are_learned_from_the_others():
    record = PROTOCOL.run(inputs(), CHEAP, seed=0).record
    assert list(record.metrics) == [
        "zero_shot", "probe_training_domain", "probe_leave_one_domain_out", "probe_oracle",
    ]  # fmt: skip
    assert all(metric.value > 0.95 for metric in record.metrics.values()) and record.seeds == (0, 1)
    assert record.headline.count == 3 * 48 and record.headline.chance == pytest.approx(1 / 3)
    assert set(record.details["table"]["probe"]["oracle"]) == {"art", "photo", "sketch"}
    assert PROTOCOL.run(inputs(), CHEAP, seed=0).record == record


def test_accuracy_is_that_of_the_in_part_in_folder_order():
    # Everything is right but one picture of art, which is in the out part of one trial and in the in part of the other.
    task, features = a_task(), domain(0, noise=0.0)
    order = sorted(range(60), key=lambda row: (CLASSES[row % 3], features.ids[row]))
    first_out = set(split_domain(60, trial=0, domain=0)[1])
    place = next(place for place in split_domain(60, trial=1, domain=0)[0] if place in first_out)
    rows = features.rows.copy()
    rows[order[place]] = np.roll(rows[order[place], :3], 1).tolist() + rows[order[place], 3:].tolist()
    wrong = dataclasses.replace(features, rows=rows)
    record = PROTOCOL.run(inputs(task, noise=0.0, art=wrong), CHEAP, seed=0).record
    checkpoints = [from_tree(Checkpoint, tree) for tree in record.details["checkpoints"]]
    zero = [one for one in checkpoints if one.method == "zero-shot" and one.test_domains == ("art",)]
    assert [one.inside["art"] for one in zero] == [1.0, pytest.approx(47 / 48)]
    assert [one.outside["art"] for one in zero] == [pytest.approx(11 / 12), 1.0]
    mean, error, trials = record.details["table"]["zero-shot"]["oracle"]["art"]
    assert mean == pytest.approx(1 - 1 / 96) and error == pytest.approx(1 / 96 / np.sqrt(2)) and trials == 2


def test_the_rules_need_the_checkpoints_only():
    record = PROTOCOL.run(inputs(noise=0.6), CHEAP, seed=0).record
    checkpoints = [from_tree(Checkpoint, tree) for tree in record.details["checkpoints"]]
    pairs = {one.test_domains for one in checkpoints if len(one.test_domains) == 2}
    assert pairs == {("art", "photo"), ("art", "sketch"), ("photo", "sketch")}
    table = tabulate(choose(checkpoints, "training-domain"))["pictures", "probe"]
    assert record.metrics["probe_training_domain"].value == pytest.approx(table.average.mean)
    fewer = PROTOCOL.run(inputs(noise=0.6), dataclasses.replace(CHEAP, rules=("training-domain",)), seed=0).record
    assert set(fewer.metrics) == {"zero_shot", "probe_training_domain"}
    assert all(len(tree["test_domains"]) == 1 or tree["method"] != "probe" for tree in fewer.details["checkpoints"])


def test_large_domains_do_not_outweigh_small_ones():
    # A large domain says another class; two small ones agree with the one that is left out.
    def planted(number, count, shift):
        found = domain(number, count, noise=0.05)
        return dataclasses.replace(found, targets=(found.targets + shift) % 3, groups={})

    task = a_task()
    tree_splits = dict(task.splits)
    tree_splits["clay"] = dataclasses.replace(task.splits["art"], select={"domain": ("clay",)})
    task = dataclasses.replace(task, splits=tree_splits, groups={"domain": ("art", "clay", "photo", "sketch")})
    parts = {"art": planted(0, 600, 1), "clay": planted(2, 30, 0), "photo": planted(1, 30, 0), "sketch": planted(2, 30, 0)}
    given = ArrayInputs(task, parts, class_rows=np.eye(3, 6))
    config = PROTOCOL.Config(trials=1, strengths=(0.01,), test=("sketch",), rules=("training-domain",), zero_shot=False)
    assert PROTOCOL.run(given, config, seed=0).record.headline.value == 1.0


def test_domains_can_be_values_of_one_split():
    every = [domain(number) for number in range(3)]
    together = Features(
        rows=np.concatenate([part.array() for part in every]), targets=np.concatenate([part.targets for part in every]),
        classes=CLASSES, groups={"domain": np.concatenate([part.groups["domain"] for part in every])},
        ids=tuple(f"{number}/{name}" for number, part in enumerate(every) for name in part.ids),
    )  # fmt: skip
    task = from_tree(Task, {
        "title": "Pictures", "name": "pictures", "version": 1, "classes": {key: [key] for key in CLASSES}, "templates": ["{}"],
        "groups": {"domain": []}, "splits": {"test": {"count": 180}}, "licence": "ours", "citation": "ours",
    })  # fmt: skip
    rows = np.concatenate([np.eye(3), np.zeros((3, 3))], axis=1)
    one = PROTOCOL.run(ArrayInputs(task, {"test": together}, class_rows=rows), CHEAP, seed=0).record
    assert one.details["checkpoints"] == PROTOCOL.run(inputs(), CHEAP, seed=0).record.details["checkpoints"]


class Measured(ArrayInputs):
    """Inputs in which a domain stands for "test"."""

    measured = ""

    def name_of(self, split):
        return self.measured if split == "test" else split


@functools.cache
def records() -> list[Record]:
    found = []
    for name in ("art", "photo", "sketch"):
        given = inputs(noise=0.6)
        given.__class__, given.measured = Measured, name
        found.append(PROTOCOL.run(given, CHEAP, seed=0).record)
    return found


def test_a_measured_domain_is_the_one_left_out_and_the_summary_joins_them():
    several = records()
    assert [list(record.details["table"]["probe"]["oracle"]) for record in several] == [["art"], ["photo"], ["sketch"]]
    whole = PROTOCOL.run(inputs(noise=0.6), CHEAP, seed=0).record
    (joined,) = summary.run(several)
    assert joined.task == "pictures" and joined.model == "arrays"
    for rule in ("training-domain", "leave-one-domain-out", "oracle"):
        row = joined.details["table"]["probe"][rule]
        assert row["domains"] == whole.details["table"]["probe"][rule]
        assert row["average"][0] == pytest.approx(np.mean([value[0] for value in row["domains"].values()]))
    assert joined.metrics["zero_shot"].value == pytest.approx(whole.metrics["zero_shot"].value)
    assert summary.run([]) == [] and summary.run([whole]) == []


def test_several_sets_have_a_mean_of_their_own():
    other = [dataclasses.replace(record, task="others") for record in records()]
    found = summary.run([*records(), *other])
    assert [record.task for record in found] == ["pictures", "others", ""]
    for name in ("zero_shot", "probe_oracle"):
        means = [record.metrics[name].value for record in found]
        assert means[2] == pytest.approx((means[0] + means[1]) / 2)
    assert set(found[2].details["table"]["probe"]["oracle"]["sets"]) == {"pictures", "others"}


def test_what_cannot_be_measured_is_said():
    assert PROTOCOL.reason_not(read_task("pacs")) is None and PROTOCOL.reason_not(read_task("domainnet")) is None
    assert PROTOCOL.reason_not(read_task("cifar10")) == "its record has no group 'domain'"
    assert PROTOCOL.reason_not(read_task("coco")) == "a retrieval task has no classes"
    with pytest.raises(ConfigError, match="unknown domain 'clay'"):
        PROTOCOL.run(inputs(), dataclasses.replace(CHEAP, test=("clay",)), seed=0)
    two = ArrayInputs(a_task(), {"art": domain(0), "photo": domain(1)}, class_rows=np.eye(3, 6))
    with pytest.raises(DataError, match="2 domains"):
        PROTOCOL.run(two, CHEAP, seed=0)
    with pytest.raises(ConfigError, match="enough for both parts"):
        PROTOCOL.run(inputs(art=domain(0, count=3)), CHEAP, seed=0)
    assert isinstance(PROTOCOL.run(inputs(), CHEAP, seed=0).record.headline, Metric)


@pytest.mark.slow
@pytest.mark.skipif("OSTENSION_DATA" not in os.environ, reason="needs OSTENSION_DATA with PACS")
def test_pixels_of_pacs_say_less_of_a_domain_that_they_were_not_learned_from():
    parts = {}
    for name in read_task("pacs").splits:
        data = open_task("pacs", split=name)
        images = (Image.open(io.BytesIO(data.samples.image(row))).convert("RGB").resize((8, 8)) for row in range(len(data)))
        pixels = np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 - 0.5 for image in images])
        parts[name] = Features(rows=pixels, targets=data.targets, classes=data.classes, ids=tuple(data.ids), groups=data.groups)
    config = PROTOCOL.Config(zero_shot=False, trials=1, strengths=(1e-3,), rules=("training-domain",))
    record = PROTOCOL.run(ArrayInputs(read_task("pacs"), parts), config, seed=0).record
    assert len(record.details["domains"]) == 4 and record.counts["samples"] == 9991
    for tree in record.details["checkpoints"]:
        (left_out,) = tree["test_domains"]
        learned = [value for name, value in tree["outside"].items() if name != left_out]
        assert tree["inside"][left_out] < np.mean(learned)
