"""Suite scores and mean prompt gains: plain means, nothing missing in silence, nothing counted twice."""

from __future__ import annotations

import pytest

from ostension.data.suite import read_suite
from ostension.data.task import read_task
from ostension.errors import DataError
from ostension.evals.metrics import Interval
from ostension.evals.protocol import SUMMARIES
from ostension.evals.records import Metric, Record
from ostension.evals.scores import score_name

SCORE, GAINS = SUMMARIES.load("suite-score"), SUMMARIES.load("prompt-gains")


def a_record(task, value, model="m", protocol="zeroshot", error=0.01, **changes):
    one = read_task(task)
    name = "mean_recall" if one.kind == "retrieval" else score_name(one)
    interval = Interval(value - 1.959964 * error, value + 1.959964 * error, 0.95, "wilson")
    metric = Metric(value=value, count=100, chance=one.chance or 0.1, interval=interval)
    given = {"protocol": protocol, "subject": "-", "metrics": {name: metric}, "config": {}, "hashes": {}, "counts": {}}
    return Record(**{**given, "task": task, "model": model, "split": "test", **changes})


def of_suite(name, drop=0, **changes):
    tasks = read_suite(name).tasks
    return [a_record(task, (k + 1) / 40, **changes) for k, task in enumerate(tasks[: len(tasks) - drop])]


def scores_of(records, suite):
    return [record for record in SCORE.run(records) if record.task == suite]


def test_a_suites_score_is_the_plain_mean_of_its_tasks():
    (record,) = scores_of(of_suite("elevater20"), "elevater20")
    assert record.metrics["score"].value == pytest.approx(sum(range(1, 21)) / 40 / 20)
    half = 1.959964 * 0.01 / 20**0.5
    interval = record.metrics["score"].interval
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=1e-5)
    assert record.details["missing"] == [] and record.model == "m" and record.counts == {"tasks": 20, "measured": 20}


def test_a_suite_with_a_missing_task_has_no_score_but_a_mean_that_says_what_is_missing():
    (record,) = scores_of(of_suite("elevater20", drop=8), "elevater20")
    assert list(record.metrics) == ["mean_of_measured"] and "mean of 12 of 20" in record.subject
    assert record.details["missing"] == list(read_suite("elevater20").tasks[12:])
    assert scores_of(of_suite("elevater20", drop=10), "elevater20") == []


def test_models_and_protocols_are_kept_apart_and_other_splits_and_metrics_are_not_counted():
    records = of_suite("kornblith12") + of_suite("kornblith12", model="n") + of_suite("kornblith12", protocol="probe")
    found = scores_of(records, "kornblith12")
    assert [(one.model, one.config["of"]) for one in found] == [("m", "zeroshot"), ("n", "zeroshot"), ("m", "probe")]
    assert scores_of([a_record(task, 0.5, split="val") for task in read_suite("kornblith12").tasks], "kornblith12") == []
    other = {"gain": Metric(value=0.1, count=1)}
    assert scores_of([a_record(task, 0.5, metrics=other) for task in read_suite("kornblith12").tasks], "kornblith12") == []


def test_two_records_of_the_same_are_an_error():
    with pytest.raises(DataError, match="two records of food101"):
        SCORE.run([*of_suite("kornblith12"), a_record("food101", 0.9)])


def test_retrieval_is_scored_by_mean_recall_and_suites_without_a_score_have_none():
    (record,) = scores_of(of_suite("retrieval", protocol="retrieval"), "retrieval")
    assert record.metrics["score"].value == pytest.approx((1 + 2 + 3) / 40 / 3)
    assert {record.task for record in SCORE.run(of_suite("local"))} <= {"retrieval"}


def test_prompt_gains_are_averaged_over_tasks():
    def gains(task, value, **more):
        metrics = {name: Metric(value=value, count=9) for name in ("gain", "engineering", "ensembling", *more)}
        details = {"cost": {"bare": 10, "ensemble": 80}}
        return a_record(task, value, protocol="prompts", metrics=metrics, details=details)

    (record,) = GAINS.run([gains("dtd", 0.02), gains("eurosat", 0.08, search_gain=0.01)])
    assert record.headline.value == pytest.approx(0.05) and record.headline.count == 2
    assert record.headline.interval.low == pytest.approx(0.02) and record.headline.interval.high == pytest.approx(0.08)
    assert list(record.metrics) == ["gain", "engineering", "ensembling"]
    assert record.details["tasks"]["eurosat"] == {"gain": 0.08, "engineering": 0.08, "ensembling": 0.08, "prompts": 80}
    assert GAINS.run([gains("dtd", 0.02)]) == []
