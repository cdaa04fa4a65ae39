"""Prompt gains and the search for a set: against brute force, and never on the samples that are measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ostension.data.task import Task, read_task
from ostension.errors import ConfigError
from ostension.evals.inputs import ArrayInputs, unit
from ostension.evals.prompt_search import Judge, forward_selection, judge_of, path_scores, template_rows
from ostension.evals.protocol import load_protocol
from ostension.evals.protocols.prompts import three_ways
from ostension.evals.scores import score_value
from ostension.runtime import numpy_generator
from ostension.store import Features
from ostension.text.prompts import fill, templates

PROMPTS = load_protocol("prompts")
NAMES = {"a": ("ape",), "b": ("bear", "grizzly"), "c": ("cat",), "d": ("dog",), "e": ("emu",), "f": ("fox",)}
OWN = tuple(f"{word} {{}}." for word in ("a photo of a", "the", "some", "one", "any", "my", "no"))


def a_task(**changes):
    given = {"title": "animals", "name": "animals", "version": 1, "classes": NAMES, "templates": OWN}
    return Task(**{**given, "licence": "-", "citation": "-", **changes})


def planted(task=None, splits=("val", "test"), n=300, e=20, seed=0, more=()):
    """Templates of different worth: each adds its own noise to the class, the bare name most."""
    task = a_task() if task is None else task
    generator = numpy_generator(seed, "planted")
    centres = dict(zip(NAMES, generator.normal(size=(len(NAMES), e)), strict=True))
    worth = dict(zip(("{}", *OWN, *more), np.linspace(3.0, 1.5, 1 + len(OWN) + len(more)), strict=True))
    rows = {fill(template, name): centres[key] + noise * generator.normal(size=e)
            for template, noise in worth.items() for key, names in NAMES.items() for name in names}  # fmt: skip
    features = {}
    for split in splits:
        labels = generator.choice(list(NAMES), size=n)
        pictures = np.stack([centres[label] for label in labels]) + 1.5 * generator.normal(size=(n, e))
        targets = np.array([list(NAMES).index(label) for label in labels])
        features[split] = Features(rows=unit(pictures, [""] * n), targets=targets, classes=tuple(NAMES))
    return ArrayInputs(task, features, prompt_rows=rows, scale=20.0)


def run(inputs, **settings):
    return PROMPTS.run(inputs, PROMPTS.Config(**settings), seed=0)


def accuracy_of(inputs, split, chosen):
    features = inputs.features(split)
    return (np.argmax(features.rows @ inputs.classifier(templates=chosen).T, axis=1) == features.targets).mean()


def brute_force(inputs, split, names):
    chosen, best = [], -1.0
    while len(chosen) < len(names):
        scores = [accuracy_of(inputs, split, [*chosen, one]) if one not in chosen else -1 for one in names]
        if max(scores) <= best:
            break
        best = max(scores)
        chosen.append(names[int(np.argmax(scores))])
    return chosen, best


def test_gains_are_differences_of_the_scores_on_the_same_samples():
    inputs = planted()
    found = run(inputs).record.metrics
    expected = {"bare": ["{}"], "single": ["a photo of a {}."], "ensemble": OWN}
    for way, chosen in expected.items():
        assert found[way].value == pytest.approx(accuracy_of(inputs, "test", chosen))
    assert found["gain"].value == pytest.approx(found["ensemble"].value - found["bare"].value)
    assert found["gain"].value == pytest.approx(found["engineering"].value + found["ensembling"].value)
    assert 0 < found["gain"].interval.low < found["gain"].value < found["gain"].interval.high
    assert next(iter(found)) == "gain" and found["gain"].chance == 0


def test_costs_and_templates_are_told_for_each_way():
    details = run(planted()).record.details
    assert details["cost"] == {"bare": 7, "single": 7, "ensemble": 49}
    assert details["templates"]["single"] == ["a photo of a {}."]
    own_first = planted(a_task(templates=OWN[1:3]))
    assert run(own_first).record.details["templates"]["single"] == ["the {}."]
    assert three_ways(read_task("imagenet"))["single"].templates == ("a photo of a {}.",)
    assert three_ways(read_task("food101"))["single"].templates == ("a photo of {}, a type of food.",)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_equals_brute_force_over_the_real_classifiers(seed):
    inputs = planted(seed=seed)
    chosen, best = brute_force(inputs, "val", OWN)
    outcome = run(inputs, search=True)
    path = outcome.record.details["search"]["path"]
    assert [template for template, _ in path] == chosen
    assert path[-1][1] == pytest.approx(best) and [value for _, value in path] == sorted(value for _, value in path)
    singles = outcome.record.details["search"]["singles"]
    assert singles == pytest.approx({one: accuracy_of(inputs, "val", [one]) for one in OWN})
    assert outcome.record.details["search"]["ensemble"] == pytest.approx(accuracy_of(inputs, "val", OWN))
    assert outcome.record.metrics["search"].value == pytest.approx(accuracy_of(inputs, "test", chosen))
    assert outcome.record.metrics["search_gain"].value == pytest.approx(
        accuracy_of(inputs, "test", chosen) - accuracy_of(inputs, "test", OWN)
    )


def test_the_search_never_looks_at_the_samples_that_are_measured():
    inputs = planted()
    test = inputs.features("test")
    turned = {"val": inputs.features("val"), "test": dataclasses.replace(test, targets=5 - test.targets)}
    other = ArrayInputs(inputs.task, turned, prompt_rows=inputs._prompts, scale=20.0)
    assert run(other, search=True).record.details["search"] == run(inputs, search=True).record.details["search"]
    with pytest.raises(ConfigError, match="neither val nor train"):
        run(planted(splits=("test",)), search=True)
    told = run(planted(splits=("train", "test")), search=True, max_samples=100).record.details["search"]
    assert (told["fitted_on"], told["samples"]) == ("train", 100)


def test_the_search_ends_at_the_number_of_templates_that_it_is_given():
    assert len(run(planted(), search=True, max_templates=1).record.details["search"]["path"]) == 1


def test_the_published_order_of_imagenets_seven_is_told_where_they_are_candidates():
    seven = templates("openai_imagenet_best7")
    inputs = planted(a_task(templates=(*OWN, *seven)), more=seven)
    told = run(inputs, search=True).record.details["search"]["openai"]
    assert [template for template, _ in told] == list(seven)
    assert told[2][1] == pytest.approx(accuracy_of(inputs, "val", seven[:3]))


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "roc_auc", "mean_top1_top5"])
def test_the_search_is_by_the_tasks_own_score_and_the_same_without_a_cache_and_in_small_blocks(metric, monkeypatch):
    task = a_task(metric=metric)
    inputs = planted(task)
    val = inputs.features("val")
    rows = template_rows(inputs, task.label_names(), OWN)
    judge = judge_of(task, val.targets)
    found = forward_selection(rows, val.rows, judge, scale=20.0)
    chosen = [OWN[number] for number in found.chosen]
    logits = 20 * val.rows @ inputs.classifier(templates=chosen).T
    assert found.scores[-1] == pytest.approx(score_value(task, logits, val.targets), abs=1e-6)
    for name, size in (("BLOCK", 50), ("PRODUCTS", 999), ("WIDE_BYTES", 20_000)):
        monkeypatch.setattr(f"ostension.evals.prompt_search.{name}", size)
    again = forward_selection(rows, val.rows, judge, scale=20.0, cache_bytes=0)
    assert again.chosen == found.chosen and again.scores == pytest.approx(found.scores)


def test_a_path_is_the_score_of_every_prefix():
    inputs = planted()
    val = inputs.features("val")
    rows = template_rows(inputs, NAMES, OWN)
    values = path_scores(rows, val.rows, [3, 0, 5], judge_of(inputs.task, val.targets))
    assert values == pytest.approx([accuracy_of(inputs, "val", [OWN[k] for k in (3, 0, 5)[:count]]) for count in (1, 2, 3)])


def test_logits_may_be_pooled_before_they_are_judged():
    rows = np.eye(4, dtype=np.float32)[None]
    pairs = lambda logits: logits.reshape(-1, 2, 2).max(axis=2)
    judge = judge_of(a_task(), np.array([0, 0, 1, 1]), pool=pairs)
    assert isinstance(judge, Judge) and forward_selection(rows, rows[0], judge).scores == (1.0,)


def test_rows_of_templates_average_the_names_of_a_class():
    inputs = planted()
    rows = template_rows(inputs, NAMES, OWN)
    expected = inputs.texts(["the bear.", "the grizzly."]).mean(axis=0)
    assert rows.shape == (7, 6, 20) and rows[1, 1] == pytest.approx(expected, abs=1e-6)
    assert unit(rows.mean(axis=0), list(NAMES)) == pytest.approx(inputs.classifier(), abs=1e-6)
