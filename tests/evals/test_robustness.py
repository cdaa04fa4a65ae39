"""The protocol `robustness` and the summary `effective-robustness`: subsets, pools, frames, probes, splits, the test bed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ostension.config import from_tree
from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Metric, Record
from ostension.evals.summaries import effective_robustness as summary
from ostension.evals.testbed import SEVEN, SEVEN_SHIFTS, named_shift, read_testbed
from ostension.store import Features

PROTOCOL = load_protocol("robustness")
CIFAR = read_task("cifar10")
KEYS = tuple(CIFAR.display_names())  # ten classes, each with its own axis below


def rows(targets, *, noise=0.0, seed=0, width=10):
    """Unit axes of targets with noise."""
    generator = np.random.default_rng(seed)
    return (np.eye(width)[targets] + noise * generator.standard_normal((len(targets), width))).astype(np.float32)


def a_shift(name, **changes) -> Task:
    tree = {
        "title": name, "name": name, "version": 1, "templates": ["{}"], "licence": "ours", "citation": "ours",
        "splits": {"test": {"count": 10}},
    } | changes  # fmt: skip
    return from_tree(Task, tree)


SUBSET = a_shift("subset", classes_of="cifar10", subset=list(KEYS[:4]))
POOLED = a_shift(
    "pooled", superclass_of="cifar10", superclass_map={"a": list(KEYS[:2]), "b": list(KEYS[2:4])},
    classes={"a": ["first"], "b": ["second"], "c": ["nothing"]},
)  # fmt: skip
FRAMES = a_shift(
    "frames", kind="video", metric="pm_k", superclass_of="cifar10",
    superclass_map={"0": [KEYS[0]], "1": [KEYS[1]]}, classes={"0": ["first"], "1": ["second"]},
)  # fmt: skip


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """The subset and the pools as records in files, as a user would have them."""
    common = 'version = 1\ntemplates = ["{}"]\nlicence = "ours"\ncitation = "ours"\n'
    subset = f'title = "subset"\nclasses_of = "cifar10"\nsubset = {json.dumps(KEYS[:4])}\n{common}'
    pools = f"[superclass_map]\na = {json.dumps(KEYS[:2])}\nb = {json.dumps(KEYS[2:4])}\n"
    classes = '[classes]\na = "first"\nb = "second"\nc = "nothing"\n'
    pooled = f'title = "pooled"\nsuperclass_of = "cifar10"\n{common}{pools}{classes}'
    for name, text in (("subset", subset), ("pooled", pooled)):
        (tmp_path / f"{name}.toml").write_text(text + "[splits.test]\ncount = 10\n")
    return str(tmp_path / "subset.toml"), str(tmp_path / "pooled.toml")


def prompts(extra=()):
    """Rows of CIFAR's names as bare prompts, and of others."""
    return {name: np.eye(10)[place] for place, names in enumerate(CIFAR.label_names().values()) for name in names} | dict(extra)


def reference(**options) -> ArrayInputs:
    """CIFAR-10 by axes: 60 pictures, of which one of class 0 is called 1, one of class 2 is called 9."""
    targets = np.arange(60) % 10
    seen = targets.copy()
    seen[0], seen[2] = 1, 9
    train = Features(rows=rows(np.arange(200) % 10, noise=0.05), targets=np.arange(200) % 10, classes=KEYS)
    test = Features(rows=rows(seen), targets=targets, classes=KEYS)
    return ArrayInputs(CIFAR, {"test": test, "train": train}, class_rows=np.eye(10), **options)


def shifted(task, seen, targets, **options) -> ArrayInputs:
    """A shift's pictures that look like the classes `seen` of CIFAR."""
    features = Features(rows=rows(np.array(seen)), targets=np.array(targets), classes=tuple(task.display_names()))
    return ArrayInputs(task, {"test": features}, **options)


def test_on_each_shift_the_reference_is_measured_on_its_classes(files):
    others = {"subset": shifted(SUBSET, [0, 1, 2, 0, 9], [0, 1, 2, 3, 3])}
    record = PROTOCOL.run(reference(others=others), PROTOCOL.Config(shifts=files), seed=0).record
    subset, pooled = record.details["rows"]
    # 24 pictures of the four classes: class 0 called 1 is wrong; class 2 called 9 falls to the first of equal ones, wrong too.
    assert subset["x"] == [pytest.approx(22 / 24), 24]
    # Pooled, 0 and 1 are one class, so only the 9 counts: of two equal pools the first is taken.
    assert pooled["x"] == [pytest.approx(23 / 24), 24] and pooled["y"] is None
    assert subset["y"] == [pytest.approx(3 / 5), 5]
    assert record.metrics["accuracy"].value == pytest.approx(58 / 60)
    assert record.metrics["drop"].value == pytest.approx(22 / 24 - 3 / 5)
    assert record.metrics["error_ratio"].value == pytest.approx((2 / 5) / (2 / 24))
    assert record.details["notes"] == ["no data of pooled: only the accuracy in distribution"]
    assert record.metrics["shifted"].interval.method == "clopper-pearson"


def test_a_shift_is_asked_by_pooled_names_and_by_its_own():
    # Own names look at two axes together; the pools at the larger one.
    own = {"first": np.eye(10)[0] + np.eye(10)[1], "second": np.eye(10)[2] + np.eye(10)[3], "nothing": np.eye(10)[9]}
    mixed = np.eye(10)[[0, 2, 2]] + 0.0
    mixed[2] = 0.6 * np.eye(10)[0] + 0.6 * np.eye(10)[1] + 0.7 * np.eye(10)[2]
    features = Features(rows=mixed.astype(np.float32), targets=np.array([0, 1, 0]), classes=("a", "b", "c"))
    inputs = ArrayInputs(POOLED, {"test": features}, prompt_rows=prompts(own.items()))
    outcome = PROTOCOL.run(inputs, PROTOCOL.Config(), seed=0)
    plain, named = outcome.record.details["rows"]
    assert (plain["kind"], plain["y"]) == ("zero-shot", [pytest.approx(2 / 3), 3])
    assert (named["kind"], named["y"]) == ("zero-shot, own names", [1.0, 3])
    assert outcome.record.metrics["own_names_gain"].value == pytest.approx(1 / 3)
    assert outcome.samples["correct"].tolist() == [True, True, True]
    assert outcome.samples["correct_pooled"].tolist() == [True, True, False]
    assert outcome.record.details["notes"] == ["no data of cifar10: the accuracy in distribution is not known"]
    # With CIFAR's data beside, x is known too, the same as from CIFAR's side.
    inputs = ArrayInputs(POOLED, {"test": features}, prompt_rows=prompts(own.items()), others={"cifar10": reference()})
    plain = PROTOCOL.run(inputs, PROTOCOL.Config(), seed=0).record.details["rows"][0]
    assert plain["x"] == [pytest.approx(23 / 24), 24]


def test_frames_of_videos_are_scored_with_their_neighbours(tmp_path):
    ids = ["v/000001.jpg", "v/000002.jpg", "w/000001.jpg", "w/000002.jpg"]
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    features = Features(rows=rows(np.array([0, 0, 1, 0])), targets=labels, classes=("0", "1"), ids=tuple(ids))
    own = [("first", np.eye(10)[0]), ("second", np.eye(10)[1])]
    inputs = ArrayInputs(FRAMES, {"test": features}, prompt_rows=prompts(own))
    without = PROTOCOL.run(inputs, PROTOCOL.Config(), seed=0).record.details["rows"][0]
    assert without["pm_0"] == [pytest.approx(3 / 4), 4] and without["y"] is None and "pm_10" not in without
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "pmsets.json").write_text(json.dumps({ids[0]: [ids[1]], ids[2]: [ids[3]]}))
    (tmp_path / "frames" / "labels.json").write_text(json.dumps({ids[0]: [0], ids[1]: [0], ids[2]: [1], ids[3]: [1]}))
    listed = PROTOCOL.run(inputs, PROTOCOL.Config(frames=str(tmp_path)), seed=0).record.details["rows"][0]
    assert listed["pm_0"] == [1.0, 2] and listed["pm_10"] == [0.5, 2] and listed["y"] == [0.75, 2]


def test_probes_of_the_reference_are_read_on_the_shift(files):
    others = {"subset": shifted(SUBSET, [0, 1, 2, 3], [0, 1, 2, 3])}
    config = PROTOCOL.Config(shifts=files[:1], shots=(1, 2), draws=2, full=True)
    record = PROTOCOL.run(reference(others=others), config, seed=0).record
    assert [row["kind"] for row in record.details["rows"]] == ["zero-shot", "1-shot", "2-shot", "probe"]
    # The rows are axes, which any probe learns: what it gets wrong in distribution are the two pictures that look wrong.
    assert all(row["y"] == [1.0, 4] for row in record.details["rows"])
    assert {kind: len(chosen) for kind, chosen in record.details["strengths"].items()} == {"1-shot": 2, "2-shot": 2, "probe": 1}
    assert PROTOCOL.run(reference(others=others), config, seed=0).record == record
    # From the shift's side CIFAR's training samples are found through its inputs.
    inputs = shifted(SUBSET, [0, 1, 2, 3], [0, 1, 2, 3], prompt_rows=prompts(), others={"cifar10": reference()})
    again = PROTOCOL.run(inputs, PROTOCOL.Config(full=True), seed=0).record.details["rows"]
    assert [(row["kind"], row["y"]) for row in again] == [("zero-shot", [1.0, 4]), ("probe", [1.0, 4])]
    with pytest.raises(ConfigError, match="no data of 'cifar10' to learn from"):
        PROTOCOL.run(shifted(SUBSET, [0], [0], class_rows=np.eye(4, 10)), PROTOCOL.Config(full=True), seed=0)


def styles(**changes) -> Task:
    splits = {name: {"count": 10} for name in ("photo", "sketch", "clay")}
    return a_shift("styles", classes={"a": ["a"], "b": ["b"]}, splits=splits, **changes)


def of_styles(task=None, **features) -> ArrayInputs:
    generator = np.random.default_rng(0)

    def part(noise):
        targets = np.arange(100) % 2
        values = np.eye(2)[targets] + noise * generator.standard_normal((100, 2))
        return Features(rows=values.astype(np.float32), targets=targets, classes=("a", "b"))

    whole = {"photo": part(0.1), "sketch": part(1.5), "clay": part(0.8)} | features
    return ArrayInputs(task or styles(), whole, class_rows=np.eye(2))


def test_splits_are_compared_with_one_of_them_where_there_is_no_test_bed():
    record = PROTOCOL.run(of_styles(), PROTOCOL.Config(), seed=0).record
    assert [row["shift"] for row in record.details["rows"]] == ["photo -> sketch", "photo -> clay"]
    assert record.metrics["reference"].value == 1.0 and record.metrics["drop"].value > 0.1
    y = [row["y"][0] for row in record.details["rows"]]
    half = 1.959964 * np.sqrt(sum(value * (1 - value) / 100 for value in y)) / 2
    assert record.metrics["drop"].interval.high - record.metrics["drop"].value == pytest.approx(half, rel=1e-6)
    assert "error_ratio" not in record.metrics  # there are no errors to divide by
    back = PROTOCOL.run(of_styles(), PROTOCOL.Config(reference="clay"), seed=0).record
    assert [row["shift"] for row in back.details["rows"]] == ["clay -> photo", "clay -> sketch"]
    assert back.details["rows"][0]["x"] == record.details["rows"][1]["y"]
    (told,) = summary.run([record])
    assert told.details["table"][0]["effective"] is None and told.details["line"] is None
    (note,) = told.details["notes"]
    assert note.startswith("photo -> sketch, photo -> clay: no test bed of ordinary models exists")
    assert told.metrics["drop photo -> sketch"].value == pytest.approx(1 - record.details["rows"][0]["y"][0])


def test_probes_on_one_split_leave_a_part_of_it_to_be_measured():
    record = PROTOCOL.run(of_styles(), PROTOCOL.Config(full=True, shots=(4,)), seed=0).record
    assert record.details["reference"] == "styles/photo, the fifth that no probe learns from"
    assert {row["x"][1] for row in record.details["rows"]} == {20} and len(record.details["rows"]) == 6


def test_splits_are_compared_on_the_classes_that_both_have():
    whole = of_styles().features("clay")
    ones = whole.take(np.flatnonzero(whole.targets == 1))
    record = PROTOCOL.run(of_styles(clay=ones), PROTOCOL.Config(), seed=0).record
    assert [row["x"][1] for row in record.details["rows"]] == [100, 50]
    zeros = of_styles().features("photo").take(np.arange(0, 100, 2))
    record = PROTOCOL.run(of_styles(photo=zeros, clay=ones), PROTOCOL.Config(), seed=0).record
    assert [row["shift"] for row in record.details["rows"]] == ["photo -> sketch"]
    assert record.details["notes"][1:] == ["photo and clay have no class in common"]
    with pytest.raises(DataError, match="photo and clay have no class in common"):
        PROTOCOL.run(of_styles(photo=zeros, clay=ones, sketch=ones), PROTOCOL.Config(), seed=0)


def test_what_has_no_shift_is_said():
    assert PROTOCOL.reason_not(read_task("imagenet")) is None and PROTOCOL.reason_not(read_task("objectnet")) is None
    assert PROTOCOL.reason_not(read_task("pacs")) is None and PROTOCOL.reason_not(read_task("fmow")) is None
    assert PROTOCOL.reason_not(read_task("dtd")).startswith("there is no shift")
    assert PROTOCOL.reason_not(read_task("voc2007")) and PROTOCOL.reason_not(read_task("coco"))
    with pytest.raises(ConfigError, match="made of no other task's classes|is made of"):
        PROTOCOL.run(reference(), PROTOCOL.Config(shifts=("imagenet_a",)), seed=0)
    with pytest.raises(ConfigError, match="unknown reference split 'foto'"):
        PROTOCOL.run(of_styles(), PROTOCOL.Config(reference="foto"), seed=0)
    with pytest.raises(ConfigError, match="shots"):
        PROTOCOL.Config(shots=(0,))


def published_rows(model: str, kind: str = "zero-shot", gain: float = 0.0) -> list[dict]:
    """Rows as the protocol writes them, of a model of the test bed."""
    bed, found = read_testbed(), []
    place = bed.place(model)
    for shift in SEVEN_SHIFTS:
        x, y = (float(values[place]) for values in bed.accuracies(shift))
        row = {"shift": shift.task, "kind": kind, "x": [x, 50_000], "y": [y + gain, 10_000]}
        for part in ("pm-0", "pm-10"):
            if len(shift.y) > 1:
                value = float(bed.accuracies(named_shift(f"{shift.task} {part}"))[1][place])
                row[part.replace("-", "_")] = [value + gain, 1_000]
        found.append(row)
    return found


def record_of(rows, protocol="robustness", task="imagenet", model="m", **metrics) -> Record:
    metrics = metrics or {"accuracy": 0.5}
    measured = {name: Metric(value=value, count=7_500) for name, value in metrics.items()}
    return Record(
        protocol=protocol,
        subject="m",
        metrics=measured,
        config={},
        hashes={},
        counts={},
        task=task,
        model=model,
        split="test",
        details={"rows": rows, "testbed": ""},
    )


def test_a_published_model_gets_its_published_effective_robustness():
    rows = published_rows("resnet50_clip_zeroshot") + published_rows("resnet50_clip_zeroshot", "probe", gain=-0.05)
    (record,) = summary.run([record_of(rows)])
    assert 100 * record.metrics["effective_robustness"].value == pytest.approx(19.5, abs=0.06)
    assert 100 * record.metrics["effective_robustness (probe)"].value == pytest.approx(14.5, abs=0.06)
    assert record.task == "shifts7" and record.headline.interval.low < record.headline.value < record.headline.interval.high
    table = {(row["shift"], row["kind"]): row for row in record.details["table"]}
    assert 100 * table["imagenet_a", "zero-shot"]["effective"] == pytest.approx(20.9, abs=0.06)
    assert 100 * table["ytbb_robust pm-0", "zero-shot"]["effective"] == pytest.approx(7.1, abs=0.06)
    assert table[SEVEN, "probe"]["relative"] == pytest.approx(-0.05) and table[SEVEN, "zero-shot"]["relative"] is None
    for row in record.details["table"]:
        assert row["low"] < row["effective"] < row["high"] and row["band"][0] < row["y"] - row["effective"] < row["band"][1]
    line = record.details["line"]["lines"][0]
    assert line["n"] == 80 and line["slope"] == pytest.approx(0.8597, abs=1e-4)
    points = record.details["points"]
    assert points[-2][0] == "m" and points[-2][3] == "zero-shot" and points[-1][3] == "probe" and points[0][3] == "more-data"
    assert points[-2][1:3] == [
        pytest.approx(value, abs=1e-6) for value in next(point for point in points if point[0] == "resnet50_clip_zeroshot")[1:3]
    ]
    json.dumps(record.details, allow_nan=False)


def test_x_and_y_may_come_from_different_records():
    rows = published_rows("vit_b_32_clip_zeroshot")
    without = [{**row, "y": None} if row["shift"] == "imagenet_a" else row for row in rows]
    alone = summary.run([record_of(without)])[0]
    assert set(alone.metrics) and "effective_robustness" not in alone.metrics
    assert alone.details["notes"][-1] == "no mean of the seven: x and y of imagenet_a are not both known"
    y = next(row["y"][0] for row in rows if row["shift"] == "imagenet_a")
    other = record_of([], protocol="zeroshot", task="imagenet_a", accuracy=y)
    (joined,) = summary.run([record_of(without), other])
    assert 100 * joined.metrics["effective_robustness"].value == pytest.approx(23.3, abs=0.06)
    assert summary.run([record_of(without), dataclasses.replace(other, model="n")])[0].metrics == alone.metrics
    assert summary.run([]) == [] and summary.run([record_of([{"shift": "s", "kind": "k", "x": [0.5, 9], "y": None}])]) == []


def test_own_names_stand_in_where_a_shift_has_them():
    rows = published_rows("resnet50_clip_zeroshot")
    own = [{"shift": "objectnet", "kind": "zero-shot, own names", "x": None, "y": [0.9, 18_574]}]
    (record,) = summary.run([record_of(rows), record_of(own, task="objectnet")])
    table = {(row["shift"], row["kind"]): row for row in record.details["table"]}
    plain = next(row["y"][0] for row in rows if row["shift"] == "objectnet")
    assert table[SEVEN, "zero-shot, own names"]["relative"] == pytest.approx((0.9 - plain) / 7)
    assert table["objectnet", "zero-shot, own names"]["relative"] == pytest.approx(0.9 - plain)


def test_a_table_of_ones_own_stands_for_the_published_one(tmp_path):
    table = tmp_path / "own.csv"
    bed = [f"m{i},standard,{55 + 5 * i},{30 + 5 * i}" for i in range(6)]
    table.write_text("\n".join(["model,family,val,imagenet-sketch", *bed]))
    rows = [row for row in published_rows("resnet50_clip_zeroshot") if row["shift"] in ("imagenet_sketch", "imagenet_r")]
    given = record_of(rows)
    given.details["testbed"] = str(table)
    (record,) = summary.run([given])
    assert [row["shift"] for row in record.details["table"] if row["effective"] is not None] == ["imagenet_sketch"]
    assert record.config["testbed"] == "own.csv" and any("imagenet-r" in note for note in record.details["notes"])
