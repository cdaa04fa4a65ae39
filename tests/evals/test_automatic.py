"""adapt auto: what suits a case, the rule of one standard error, halves of validation pictures, the command to its result."""

from __future__ import annotations

import json

import numpy as np
import pytest
from colour_making import colour_task

from ostension.cli.main import main
from ostension.errors import DataError
from ostension.evals.automatic import CANDIDATES, Candidate, Tried, Wishes, choose, decide, halves, set_aside
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import Store


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three colours, written as a task: 9 pictures a class to learn from, 3 to test on."""
    return colour_task(tmp_path_factory.mktemp("colours"), {"train": 9, "test": 3})


@pytest.fixture(scope="module")
def model():
    return CLIP(preset("tiny-vit"), seed=0).eval()


@pytest.mark.parametrize(
    ("wishes", "kept"),
    [
        (Wishes(), {"zero-shot", "kgcoop", "clip-adapter", "coop", "prior", "tip-adapter", "tip-adapter-f", "probe"}),
        (Wishes(open_vocabulary=True), {"zero-shot", "kgcoop", "clip-adapter", "coop"}),
        (Wishes(open_vocabulary=True, towers=True), {"zero-shot", "kgcoop", "clip-adapter", "coop", "wise-ft", "flyp"}),
    ],
)
def test_a_case_rules_methods_out(wishes, kept):
    assert {candidate.method for candidate in CANDIDATES if not candidate.unfit(wishes)} == kept


def test_under_a_shift_what_lets_go_of_the_model_counts_only_where_that_knows_little():
    some = [Candidate(method="zero-shot", steady=True), Candidate(method="prior", steady=True), Candidate(method="probe")]
    names = ("zero-shot", "prior", "probe")

    def counts(*scores):
        tried = [Tried(name=name, score=score) for name, score in zip(names, scores, strict=True)]
        return [one.name for one in set_aside(tried, some) if not one.why]

    assert counts(0.5, 0.6, 0.9) == ["zero-shot", "prior"]
    assert counts(0.2, 0.3, 0.6) == ["zero-shot", "prior", "probe"]


def test_what_changes_less_is_taken_within_a_standard_error_of_the_best():
    scores = [("zero-shot", 0.50), ("prior", 0.77), ("probe", 0.80)]
    assert decide(scores, 10)[0] == 1  # the error of 0.8 on 10 pictures is 0.126
    place, reason = decide(scores, 1000)
    assert place == 2 and reason == "probe has 80.0 % of 1000 pictures that no method has seen, the most"
    assert "within a standard error of 12.6 points" in decide(scores, 10)[1]
    assert decide([("zero-shot", 1.0), ("probe", 1.0)], 5)[0] == 0


def test_no_picture_is_both_chosen_by_and_judged_by(task, model, tmp_path):
    splits, embedder = TaskSplits(task), Embedder(model, Store(tmp_path / "store"), name="tiny")
    seen = {}

    def told(tried):
        seen[tried.name] = tried

    both = (Candidate(method="zero-shot"), Candidate(method="prior"))
    choice = choose(splits, embedder, Wishes(), shots=4, candidates=both, told=told)
    assert choice.pictures == 6 and set(seen) == {"zero-shot", "prior"}  # 4 of the 5 others a class, every second one
    assert choice.predictor.class_names == ("blue", "green", "red")


def test_every_second_validation_picture_of_a_class_judges(task, model, tmp_path):
    from ostension.evals.adaptation import examples_of, plan_with

    splits, embedder = TaskSplits(task), Embedder(model, Store(tmp_path / "store"), name="tiny")
    examples = examples_of(splits, embedder, plan_with("probe", {}, shots=4))
    own, judging = halves(examples)
    keys = [{data.source.key(index) for index in range(len(data))} for data in (own.train, own.val, judging)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 24
    assert np.bincount(judging.targets).tolist() == [2, 2, 2]
    one = examples_of(splits, embedder, plan_with("probe", {}, shots=1))
    with pytest.raises(DataError, match="two of some class"):
        halves(one)


def test_a_method_that_the_model_is_not_for_is_passed_over_with_its_reason(task, model, tmp_path):
    splits, embedder = TaskSplits(task), Embedder(model, Store(tmp_path / "store"), name="tiny")
    some = (Candidate(method="coop", settings={"length": 500}), Candidate(method="zero-shot"))
    choice = choose(splits, embedder, Wishes(), shots=2, candidates=some)
    assert choice.plan.method == "zero-shot" and "500 contexts" in choice.tried[0].why
    with pytest.raises(DataError, match="no method could be fitted"):
        choose(splits, embedder, Wishes(), shots=2, candidates=some[:1])


@pytest.mark.slow
def test_the_command_keeps_a_predictor_and_says_why(task, model, tmp_path, capsys, monkeypatch):
    save(model, tmp_path / "model")
    monkeypatch.setattr("ostension.evals.automatic.CANDIDATES", CANDIDATES[:1] + CANDIDATES[4:6])
    words = ["adapt", "auto", "--model", tmp_path / "model", "--task", task, "--shots", "4", "-o", tmp_path / "mine"]
    assert main([str(word) for word in [*words, "--store", tmp_path / "store", "--json"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["details"]["reason"] and "zero-shot" in {one["name"] for one in record["details"]["tried"]}
    assert record == json.loads((tmp_path / "mine" / "result.json").read_text())
    assert Predictor.load(tmp_path / "mine").class_names == ("blue", "green", "red")
