"""Whole curves between zero-shot and a predictor: their ends, their middles, one pass, and what chooses."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_making import colour_task, drawn, task_of

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import tiny_clip

from ostension.adapt import clip_adapter, cocoop, coop, finetune, prior, probe, vpt, wise_ft
from ostension.adapt._fit import Recipe
from ostension.cli.main import main
from ostension.errors import ConfigError
from ostension.evals.adapt_curve import ALPHAS, adapt_curve
from ostension.evals.adaptation import Plan, examples_of, logits_of, run_plan
from ostension.evals.scores import score_name, score_value, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.store import Store
from ostension.weights.heads import head_of
from ostension.weights.line import head_line

SHORT = Recipe(epochs=1, batch_size=4, views=0, warmup_epochs=0)
TUNING = dataclasses.replace(finetune.Config().recipe, epochs=2, batch_size=4, lr=1e-3, views=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """colours.toml with train, val and test; plain.toml without val; dark.toml, the same in the dark."""
    root = tmp_path_factory.mktemp("colours")
    colour_task(root, {"train": 5, "val": 3, "test": 4}, noise=60)
    for split, each in (("train", 5), ("test", 4)):
        drawn(root / "plain" / split, each, noise=60)
    drawn(root / "dark", 3, light=0.4, noise=60)
    for name in ("plain", "dark"):
        task_of(root / name)
    return root


@pytest.fixture
def embedder(tmp_path):
    return Embedder(tiny_clip(), Store(tmp_path / "store"), name="tiny")


def learned(method, embedder, splits, config):
    return method.fit(embedder.model, examples_of(splits, embedder, Plan(method="probe", shots=2)), config, seed=1)


def test_a_head_s_curve_is_that_of_its_weights(root, embedder):
    splits, dark = TaskSplits(root / "colours.toml"), TaskSplits(root / "dark.toml")
    found = learned(prior, embedder, splits, prior.Config())
    head, words = found.rivals["probe"], found.rivals["zero-shot"]
    record = adapt_curve(head, splits, embedder, targets=[dark])
    assert record.details["how"] == "heads" and record.details["alphas"] == list(ALPHAS)
    for data, name in ((splits.split("test"), "colours@test"), (dark.split("test"), "dark@test")):
        for alpha, value in zip(ALPHAS, record.details["scores"][name], strict=True):
            logits = logits_of(prior.mixed(words, found.module.config, head, alpha), data, embedder)
            assert value == pytest.approx(np.mean(logits.argmax(1) == data.targets), abs=1.01 / len(data))
    assert record.details["outside"] == record.details["scores"]["dark@test"]
    zero_shot, _ = run_plan(Plan(method="zero-shot"), splits, embedder)
    assert record.metrics["zero-shot/accuracy"] == zero_shot.metrics["accuracy"]


def test_alpha_is_the_smallest_of_the_best_on_the_split_val(root, embedder):
    splits = TaskSplits(root / "colours.toml")
    for strength in (1e-3, 1e3):
        head = learned(probe, embedder, splits, probe.Config(level="post", strength=strength))
        record = adapt_curve(head, splits, embedder)
        values = dict(zip(ALPHAS, record.details["validation"], strict=True))
        chosen = record.details["chosen"]
        assert chosen == min(alpha for alpha, value in values.items() if value == max(values.values()))
        at = record.details["scores"]["colours@test"][ALPHAS.index(chosen)]
        assert record.metrics["accuracy"].value == at


def test_a_head_of_small_logits_is_heard_along_the_line_where_spreads_are_made_the_same(root, embedder):
    splits = TaskSplits(root / "colours.toml")
    head = learned(probe, embedder, splits, probe.Config(level="post", strength=1e-4))
    plain, same = (adapt_curve(head, splits, embedder, same_spread=wanted).details for wanted in (False, True))
    scores = [found["scores"]["colours@test"] for found in (plain, same)]
    assert plain["factor"] == 1 and same["factor"] > 100
    assert scores[0][0] == scores[1][0] == scores[0][9] and scores[0][10] == scores[1][10] == scores[1][9]
    tuned = learned(finetune, embedder, splits, finetune.Config(recipe=dataclasses.replace(TUNING, epochs=0)))
    with pytest.raises(ConfigError, match="no effect on a tuned tower"):
        adapt_curve(tuned, splits, embedder, same_spread=True)


def test_every_alpha_of_a_head_comes_from_one_pass(root, embedder, monkeypatch):
    splits = TaskSplits(root / "plain.toml")
    predictor = learned(probe, embedder, splits, probe.Config())
    passed = []
    forward = type(embedder.model.visual).forward

    def counted(self, images, **more):
        passed.append(len(images))
        return forward(self, images, **more)

    monkeypatch.setattr(type(embedder.model.visual), "forward", counted)
    record = adapt_curve(predictor, splits, embedder)
    assert sum(passed) == 12 and len(record.details["scores"]["plain@test"]) == 11
    assert record.details["chosen"] is None and record.details["outside"] == []
    assert record.metrics["accuracy"] == record.metrics["adapted/accuracy"]


def test_a_tuned_tower_s_curve_is_wise_ft_s_and_decodes_once(root, embedder, monkeypatch):
    splits = TaskSplits(root / "colours.toml")
    tuned = learned(finetune, embedder, splits, finetune.Config(recipe=TUNING))
    before = {name: value.clone() for name, value in tuned.module.state_dict().items()}
    test, reads = splits.split("test"), []
    read = type(test.samples).read
    monkeypatch.setattr(type(test.samples), "read", lambda self, index: reads.append(index) or read(self, index))
    record = adapt_curve(tuned, splits, embedder, alphas=(0.0, 0.3, 1.0))
    assert len(reads) == 12 + 9 and record.details["how"] == "weights"
    monkeypatch.undo()
    assert all(torch.equal(value, before[name]) for name, value in tuned.module.state_dict().items())
    examples = examples_of(splits, embedder, Plan(method="wise-ft", shots=2))
    expected = []
    for alpha in (0.0, 0.3, 1.0):
        tuned.module.load_state_dict(before)
        at = wise_ft.fit(embedder.model, examples, wise_ft.Config(alpha=alpha), start=tuned)
        expected.append(float(np.mean(logits_of(at, test, embedder).argmax(1) == test.targets)))
    assert record.details["scores"]["colours@test"] == expected


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "macro_f1_present", "mean_top1_top5"])
def test_scores_of_every_alpha_are_those_of_logits_mixed_in_float64(root, embedder, metric):
    record = (root / "colours.toml").read_text().replace("version = 1", f'version = 1\nmetric = "{metric}"')
    (root / f"colours-{metric}.toml").write_text(record)
    splits = TaskSplits(root / f"colours-{metric}.toml")
    data = splits.split("test")
    for method, config in ((probe, probe.Config(strength=1.0)), (cocoop, cocoop.Config(recipe=SHORT))):
        predictor = learned(method, embedder, splits, config)
        found = adapt_curve(predictor, splits, embedder)
        start = embedder.model.classifier(predictor.class_names, predictor.templates or splits.task.prompt_templates())
        ends = [logits_of(one, data, embedder) for one in (start, predictor)]
        wanted = [head_line(*ends, alpha) for alpha in ALPHAS]
        told = [score_value(splits.task, logits, data.targets) for logits in wanted]
        assert found.details["scores"][f"{splits.task.name}@test"] == told
        name = score_name(splits.task)
        for place, logits in (("zero-shot/", wanted[0]), ("adapted/", wanted[-1])):
            assert found.metrics[f"{place}{name}"] == scores(splits.task, logits, data.targets)[name]


def test_what_is_no_head_mixes_answers_and_what_changes_pictures_without_a_tower_has_no_line(root, embedder):
    splits = TaskSplits(root / "plain.toml")
    kinds = {}
    for name, method, config in (
        ("coop", coop, coop.Config(length=2, recipe=SHORT)), ("cocoop", cocoop, cocoop.Config(recipe=SHORT)),
        ("clip-adapter", clip_adapter, clip_adapter.Config(recipe=SHORT)), ("probe", probe, probe.Config(strength=1.0)),
        ("vpt", vpt, vpt.Config(recipe=SHORT)),
    ):  # fmt: skip
        kinds[name] = learned(method, embedder, splits, config)
    assert {name: head_of(predictor) is not None for name, predictor in kinds.items() if name != "vpt"} == {
        "coop": True, "cocoop": False, "clip-adapter": False, "probe": True,
    }  # fmt: skip
    assert adapt_curve(kinds["cocoop"], splits, embedder, alphas=(0.5,)).details["how"] == "logits"
    with pytest.raises(ConfigError, match="vpt changes the image side and tunes no tower"):
        adapt_curve(kinds["vpt"], splits, embedder)
    with pytest.raises(ConfigError, match="alphas"):
        adapt_curve(kinds["probe"], splits, embedder, alphas=(1.5,))


def test_the_command_prints_columns_in_and_out_of_distribution(root, tmp_path, capsys):
    save(tiny_clip(), tmp_path / "model")
    words = ["--store", str(tmp_path / "store"), "--task", str(root / "colours.toml")]
    model = ["--model", str(tmp_path / "model")]
    assert main(["adapt", "probe", "--shots", "2", *words, *model, "-o", str(tmp_path / "probe")]) == 0
    capsys.readouterr()
    command = ["adapt", "curve", str(tmp_path / "probe"), *words, "--test", str(root / "dark.toml")]
    assert main([*command, "-o", str(tmp_path / "curve.json")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["alpha", "colours@test", "dark@test"] and len(out.splitlines()) == 12
    assert "is the best on the split val" in err
    assert main([*command, "--alpha", "0.5", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "curve.json").read_text())
    assert row["alpha"] == 0.5 and row["colours@test"] == record["details"]["scores"]["colours@test"][5]
