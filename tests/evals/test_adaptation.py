"""Adapting and measuring: shots, halves, other tasks; comparisons that go on where they were; the commands."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from colour_making import colour_task

from ostension.adapt import coop, dpl, tpt
from ostension.adapt._fit import Recipe
from ostension.cli.main import main
from ostension.data.few_shot import draw_few_shot, harmonic_mean
from ostension.errors import ConfigError, DataError
from ostension.evals.adaptation import Plan, _half, examples_of, logits_of, run_plan
from ostension.evals.adaptation_runs import run_all
from ostension.evals.adaptation_table import rows_of
from ostension.evals.results import Results
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store

RECIPE = Recipe(epochs=2, batch_size=4, views=0, warmup_epochs=0)


@pytest.fixture(scope="module")
def model():
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=0).eval()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three colours in train and test, written as a task."""
    return colour_task(tmp_path_factory.mktemp("colours"), {"train": 5, "test": 3})


@pytest.fixture
def embedder(model, tmp_path):
    return Embedder(model, Store(tmp_path / "store"), name="tiny")


def test_shots_are_those_of_the_published_draw(task, embedder):
    splits = TaskSplits(task)
    found = examples_of(splits, embedder, Plan(method="coop", shots=2, seed=3))
    whole = splits.split("train")
    expected, _ = draw_few_shot(whole.targets, None, 2, 3)
    assert [found.train.source.key(index) for index in range(6)] == [whole.ids[index] for index in expected]
    assert found.class_names == ("blue", "green", "red") and found.val is None
    assert len(examples_of(splits, embedder, Plan(method="coop", shots=0)).train) == 15


def test_zero_shot_is_the_hand_written_classifier(task, embedder, model):
    splits = TaskSplits(task)
    record, _ = run_plan(Plan(method="zero-shot"), splits, embedder)
    test = splits.split("test")
    pictures = [test.samples.read(index).image for index in range(len(test))]
    right = [found.label for found in model.classifier(["blue", "green", "red"])(pictures)]
    truth = [("blue", "green", "red")[target] for target in test.targets]
    assert record.metrics["accuracy"].value == pytest.approx(np.mean([a == b for a, b in zip(right, truth, strict=True)]))
    assert record.metrics["accuracy"].chance == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["coop", "cocoop", "vpt", "tpt"])
def test_logits_from_the_store_are_those_of_pictures(task, embedder, method):
    splits = TaskSplits(task)
    module = __import__(f"ostension.adapt.{method}", fromlist=["Config"])
    config = module.Config(views=1) if method == "tpt" else module.Config(recipe=RECIPE)
    _, predictor = run_plan(Plan(method=method, config=config, shots=1), splits, embedder)
    test = splits.split("test")
    pixels = torch.stack([embedder.model.transform(test.samples.read(index).image) for index in range(len(test))])
    with torch.no_grad():
        expected = predictor.forward(pixels)
    np.testing.assert_allclose(logits_of(predictor, test, embedder), expected.numpy(), atol=2e-2)  # the store has float16


def test_base_and_new_are_measured_among_their_own_names(task, embedder):
    plan = Plan(method="coop", config=coop.Config(recipe=RECIPE, length=2), shots=2, base_to_new=True)
    record, predictor = run_plan(plan, TaskSplits(task), embedder)
    metrics = record.metrics
    assert predictor.class_names == ("blue", "green") and list(metrics) == ["harmonic_mean", "base", "new"]
    assert metrics["harmonic_mean"].value == pytest.approx(harmonic_mean(metrics["base"].value, metrics["new"].value))
    assert metrics["base"].count == 6 and metrics["new"].count == 3 and metrics["new"].value == 1.0  # one class is no choice


def test_other_tasks_are_measured_with_their_own_names(task, embedder):
    plan = Plan(method="coop", config=coop.Config(recipe=RECIPE, length=2), shots=1)
    record, _ = run_plan(plan, TaskSplits(task), embedder, targets=[TaskSplits("emoji", measured="new-style-new-names")])
    assert record.metrics["emoji@new-style-new-names"].count == 245


def test_a_comparison_goes_on_where_it_was_and_fails_in_one_line(task, embedder, tmp_path):
    plans = [
        Plan(method="zero-shot"),
        *(Plan(method="coop", config=coop.Config(recipe=RECIPE, length=2), shots=1, seed=seed) for seed in (1, 2)),
        Plan(method="dpl", config=__import__("ostension.adapt.dpl", fromlist=["Config"]).Config(recipe=RECIPE), shots=1),
    ]
    results = Results(tmp_path / "results")
    first = list(run_all(plans, TaskSplits(task), embedder, results))
    assert isinstance(first[3], str) and "no domains" in first[3]
    written = {step.path: step.path.stat().st_mtime_ns for step in first[:3]}
    again = list(run_all(plans, TaskSplits(task), embedder, results))
    assert {step.path: step.path.stat().st_mtime_ns for step in again[:3]} == written
    rows = rows_of(first[:3])
    assert [(row.method, row.seeds) for row in rows] == [("zero-shot", 1), ("coop", 2)]
    assert not list((tmp_path / "results").rglob("*.fit"))


def test_a_task_without_training_pictures_is_refused(embedder, tmp_path):
    with pytest.raises(DataError, match="train"):
        examples_of(TaskSplits("pacs", tmp_path), embedder, Plan(method="coop"))


def test_the_commands(task, model, tmp_path, capsys):
    save(model, tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--dtype", "float32"]
    settings = ["--set", "recipe.epochs=1", "--set", "recipe.views=0", "--set", "length=2"]
    out = tmp_path / "mine"
    assert main(["adapt", "coop", *asked, "--task", str(task), "--shots", "1", *settings, "-o", str(out)]) == 0
    assert "accuracy:" in capsys.readouterr().out and json.loads((out / "result.json").read_text())["task"] == "colours"
    picture = next((task.parent / "colours" / "test").rglob("*.png"))
    assert main(["classify", str(picture), "--predictor", str(out), "--model", str(tmp_path / "model")]) == 0
    compare = [
        "adapt",
        "compare",
        *asked,
        "--tasks",
        str(task),
        "--shots",
        "1",
        "--seeds",
        "1",
        "-o",
        str(tmp_path / "results"),
    ]
    changed = [f"coop.{setting}" for setting in settings[1::2]]
    flags = [part for text in changed for part in ("--set", text)]
    capsys.readouterr()
    assert main([*compare, "--methods", "zero-shot,coop", *flags, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["method"] for row in rows} == {"zero-shot", "coop"}
    assert main([*compare, "--methods", "coop", "--set", "kgcoop.weight=1"]) == 2
    assert main([*compare, "--methods", "coup"]) == 1 and "coop" in capsys.readouterr().err
    assert main(["adapt", "ls"]) == 0 and "maple" in capsys.readouterr().out


def test_a_setting_that_a_method_does_not_have_is_named():
    from ostension.cli._adapt_shared import plan_from

    with pytest.raises(ConfigError, match="lenght"):
        plan_from("coop", ["lenght=3"], shots=1)


def test_robust_accuracy_is_never_above_that_of_one_attack(task, embedder, model):
    from ostension.evals.adaptation import bind_to
    from ostension.evals.adversarial import robust_accuracy
    from ostension.train.attacks import Budget

    data = TaskSplits(task).split("test")
    predictor = bind_to(None, model, TaskSplits(task).task)
    none = robust_accuracy(predictor, data, budget=Budget(epsilon=0.0, steps=0), attacks=("pgd",)).metrics
    assert none["robust"].value == none["clean"].value == none["pgd"].value
    found = robust_accuracy(predictor, data, budget=Budget(epsilon=0.1, step=0.05, steps=3), seed=1)
    names = ("pgd", "cw", "apgd-ce", "apgd-dlr")
    assert all(found.metrics["robust"].value <= found.metrics[name].value <= found.metrics["clean"].value for name in names)
    assert found == robust_accuracy(predictor, data, budget=Budget(epsilon=0.1, step=0.05, steps=3), seed=1)
    with pytest.raises(ConfigError, match="pgt"):
        robust_accuracy(predictor, data, budget=Budget(), attacks=("pgt",))


def test_the_attack_command(task, model, tmp_path, capsys):
    save(model, tmp_path / "model")
    asked = ["adapt", "attack", "--model", str(tmp_path / "model"), "--task", str(task), "--limit", "6", "--steps", "2"]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["robust", "clean", "pgd", "cw", "apgd-ce", "apgd-dlr"]


def test_augmix_views_are_made_of_the_pictures(task, embedder):
    splits, test = TaskSplits(task), TaskSplits(task).split("test")
    plan = Plan(method="tpt", config=tpt.Config(views=4, keep=0.5, mix="augmix"))
    _, predictor = run_plan(plan, splits, embedder)
    pictures = [test.samples.read(index).image for index in range(len(test))]
    found = torch.from_numpy(logits_of(predictor, test, embedder)).softmax(-1)
    torch.testing.assert_close(found, predictor.predict(pictures))


def test_a_method_that_looks_at_batches_sees_its_own_half_alone(task, embedder, monkeypatch):
    seen = []
    weights = dpl.DPL.weights
    monkeypatch.setattr(dpl.DPL, "weights", lambda self, features=None: seen.append(len(features)) or weights(self, features))
    splits = TaskSplits(task)
    examples = examples_of(splits, embedder, Plan(method="dpl", shots=1), range(2))
    predictor = dpl.DPL(embedder.model, dpl.Config(length=2), examples.class_names).predictor()
    _half(predictor, splits.split("test"), range(2), embedder)
    assert seen == [6]


def test_tpt_begins_with_another_methods_contexts(task, embedder):
    splits, plan = TaskSplits(task), Plan(method="coop", config=coop.Config(recipe=RECIPE, length=2), shots=1)
    _, start = run_plan(plan, splits, embedder)
    _, predictor = run_plan(Plan(method="tpt", config=tpt.Config(views=4)), splits, embedder, start=start)
    assert torch.equal(predictor.module.context, start.module.context)
    with pytest.raises(ConfigError, match="coop takes no start; expected tpt"):
        run_plan(plan, splits, embedder, start=start)


def test_the_figure_shows_every_method_against_shots(task, embedder, tmp_path):
    from ostension.evals.figures.adapting import draw

    config = coop.Config(recipe=RECIPE, length=2)
    plans = [Plan(method="zero-shot"), *(Plan(method="coop", config=config, shots=k, seed=s) for k in (1, 2) for s in (1, 2))]
    found = [step.record for step in run_all(plans, TaskSplits(task), embedder, Results(tmp_path / "results"))]
    (figure,) = draw(found)
    assert "coop" in figure.svg and "2 seeds" in figure.says and next(key.name for key in figure.keys) == "coop"
    assert draw([]) == []
    # A method without labels has no place among shots, and two models are told apart.
    silent = dataclasses.replace(found[0], config={**found[0].config, "method": "tpt"})
    other = [dataclasses.replace(record, model="other") for record in found]
    figures = draw([*found, silent, *other])
    assert [key.name for key in figures[0].keys] == ["coop", "tpt, with no labels", "zero-shot, with no labels"]
    assert figures[1].title.endswith(", other")
