"""The ImageNet-Captions study: the same pictures under two losses, the line, and what lies above it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ostension.cli.main import main
from ostension.config import from_tree, to_tree
from ostension.errors import ConfigError, DataError
from ostension.evals.figures.controlled import draw
from ostension.evals.records import load_records
from ostension.model.clip import CLIP
from ostension.recipes import RECIPES, imagenet_captions
from ostension.recipes._captions_data import study_set
from ostension.recipes._captions_page import page
from ostension.recipes._captions_study import KINDS, Asked, StudyConfig, record_of
from ostension.train.labels import NAME, LabelsConfig, label_logits


def made(name, **changes):
    return imagenet_captions.smoke(f"imagenet-captions-{name}", **changes)


def batch_of(name, step=0):
    run = made(name)
    model = run.initial_model()
    return run.batches.build(model).batch(step), model, run


def test_the_runs_differ_in_loss_and_texts_only():
    runs = {name: RECIPES.load(name).smoke() for name in imagenet_captions.OFFERS}
    first = runs["imagenet-captions-labels"]
    for run in runs.values():
        assert run.model == first.model and run.train == first.train
        assert dataclasses.replace(run.batches, texts="labels", both=False) == first.batches
        assert from_tree(type(run.batches), to_tree(run.batches)) == run.batches


def test_all_three_see_the_same_views_of_the_same_pictures():
    (labels, _, _), (named, _, _), (captions, _, _) = map(batch_of, ("labels", "label-captions", "captions"))
    assert labels.keys == named.keys == captions.keys
    assert torch.equal(labels.images, captions.images) and torch.equal(labels.images, named.images)
    assert torch.equal(labels.groups, named.groups) and not torch.equal(labels.groups, captions.groups)


def test_what_is_asked_was_never_learned_and_is_the_same_in_both_distributions():
    study = study_set("shapes")
    for both in (False, True):
        rows = study.training(both=both, pictures=None, seed=0)
        assert not set(study.thing[rows]) & set(study.thing[study.asked])
        assert study.shifted[rows].any() == both
    assert len(study.training(both=True, pictures=None, seed=0)) == len(study.training(both=False, pictures=None, seed=0))
    few, many = (study.training(both=False, pictures=count, seed=1) for count in (20, 40))
    assert set(few) < set(many)
    asked = study.asked
    assert set(study.thing[asked][study.shifted[asked]]) == set(study.thing[asked][~study.shifted[asked]])


def test_a_caption_names_the_thing_and_its_class_and_a_label_the_class_alone():
    study = study_set("shapes")
    for name, whole in (("captions", True), ("label-captions", False)):
        run = made(name)
        batches = run.batches.build(run.initial_model())
        text = batches.text(0, np.random.default_rng(0))
        assert study.classes[study.target[0]] in text
        assert (study.words[study.thing[0]][0] in text) == whole


def test_the_objective_is_cross_entropy_and_leaves_the_text_tower_alone():
    batch, model, run = batch_of("labels")
    before = {name: value.clone() for name, value in model.text.state_dict().items()}
    objective = run.objective.build(model)
    embedded = objective.embed(batch)
    expected = F.cross_entropy(model.encode_image(batch.images) @ objective.head.weight.T + objective.head.bias, batch.groups)
    loss = objective.loss(embedded, batch.groups).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert objective.head.weight.grad is not None and all(weight.grad is None for weight in model.text.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.text.state_dict().items())
    with pytest.raises(ConfigError, match="bring no classes"):
        objective.embed(dataclasses.replace(batch, groups=None))


def test_a_saved_run_is_a_model_with_its_classifier_beside(tmp_path):
    import ostension
    from ostension.formats.parts import read_part

    run = made("labels")
    model = CLIP(run.model, seed=0).eval()
    objective = LabelsConfig(classes=6).build(model)
    objective.save(tmp_path / "model")
    assert NAME in model._modules
    settings, tensors = read_part(tmp_path / "model", NAME)
    assert settings["classes"] == 6 and torch.equal(tensors["weight"], objective.head.weight)
    found = ostension.load(tmp_path / "model", dtype="float32")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.encode_image(images) @ tensors["weight"].T, label_logits(model, images))


def planted(offset):
    """Classifiers exactly on a line of slope 1 in logits and captioned models `offset` logits above it, on 400 things."""
    thing, shifted = np.tile(np.arange(400), 2), np.repeat([False, True], 400)
    hard = (np.arange(400) + 0.5) / 400
    found = []
    for kind, above in (("labels", 0.0), ("captions", offset)):
        for place in (-1.0, -0.5, 0.0, 0.5):
            share = [1 / (1 + np.exp(-(place + extra))) for extra in (0.0, above - 1)]
            right = np.concatenate([hard < share[0], hard < share[1]])
            found.append(Asked(run=kind, kind=kind, head="own", pictures=9, step=int(10 * place), right=right))
    return record_of(found, shifted, thing, classes=4, seed=0, config={})


def test_effective_robustness_is_the_distance_from_the_line_with_an_interval():
    level, above = planted(0.0), planted(1.0)
    metric = level.metrics["captions/own"]
    assert abs(metric.value) < 1e-3 and abs(metric.interval.low) < 1e-3
    assert above.details["line"]["lines"][0]["slope"] == pytest.approx(1.0, abs=0.1)
    metric = above.metrics["captions/own"]
    assert 0.15 < metric.value < 0.25 and metric.interval.low > 0.1


def test_too_few_classifiers_make_no_line():
    one = Asked(run="a", kind="labels", head="own", pictures=1, step=1, right=np.array([True, False]))
    with pytest.raises(DataError, match="ordinary models"):
        record_of([one, one], np.array([False, True]), np.array([0, 0]), classes=2, seed=0, config={})


def test_the_plot_shows_every_model_and_its_table_the_intervals():
    (figure,) = draw([planted(1.0)])
    assert figure.svg.count("<title>") >= 8 and "captions, contrastive, own head" in figure.more
    assert "to +" in figure.more and "The same pictures" in page(planted(1.0))


@pytest.mark.slow
def test_labelled_or_captioned_the_same_pictures_land_on_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["imagenet-captions", "--smoke", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "imagenet-captions.html")
    (record,) = load_records(tmp_path / "imagenet-captions.json").values()
    assert len(record.details["points"]) == 6 * 2 * 2 and list(record.details["kinds"]) == list(KINDS)
    assert max(point["x"] for point in record.details["points"]) > 0.5  # of six classes
    for name in ("label-captions/own", "captions/own"):
        metric = record.metrics[name]
        assert metric.interval.low <= 0 <= metric.interval.high or abs(metric.value) < 0.08, (name, metric)
    # Pictures of both distributions, as many, lie above it, whatever the loss.
    assert all(record.metrics[f"{kind}-both/own"].interval.low > 0 for kind in ("labels", "captions"))
    # The same again trains nothing.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert main(["imagenet-captions", "--smoke", "--out", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before


def test_smoke_and_steps_exclude_each_other(capsys):
    assert main(["imagenet-captions", "--smoke", "--steps", "5"]) == 2
    assert "--smoke" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        StudyConfig(steps=1)
