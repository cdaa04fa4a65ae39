"""Few-shot probes and the zero-shot prior on planted clouds with class texts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ostension.data.task import Split, Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.few_shots import draws, mean_metric
from ostension.evals.inputs import ArrayInputs, unit
from ostension.evals.protocol import load_protocol
from ostension.evals.protocols.prior import STRENGTHS
from ostension.runtime import numpy_generator
from ostension.store import Features
from ostension.train.logistic import fit_logistic
from ostension.train.strength_search import COOP_STARTS, GRID, PathProbe

FEWSHOT, PRIOR = load_protocol("fewshot"), load_protocol("prior")
CLASSES, WIDTH = 5, 16


def a_task(**changes):
    names = {f"c{index}": (f"name {index}",) for index in range(CLASSES)}
    given = {"title": "planted", "name": "planted", "version": 1, "classes": names, "templates": ("a {}.",), "licence": "-",
             "citation": "-", "splits": {name: Split(count=1) for name in ("train", "val", "test")}}  # fmt: skip
    return Task(**{**given, **changes})


def planted(noise=1.5, text_noise=0.3, val=True, train=100, seed=0, **changes):
    """Unit rows around one direction a class, texts near the same directions."""
    generator = numpy_generator(seed, "few")
    centres = generator.normal(size=(CLASSES, WIDTH))
    task = a_task(**changes)
    splits = {}
    for split, count in {"train": train, **({"val": 60} if val else {}), "test": 300}.items():
        targets = np.arange(count) % CLASSES
        rows = unit(centres[targets] + noise * generator.normal(size=(count, WIDTH)), [""] * count)
        splits[split] = Features(rows=rows, targets=targets, classes=tuple(task.display_names()))
    texts = centres + text_noise * generator.normal(size=centres.shape)
    return ArrayInputs(task, splits, class_rows=texts, scale=20.0)


def run(protocol, inputs, seed=0, **settings):
    return protocol.run(inputs, protocol.Config(**settings), seed=seed)


def test_more_shots_are_better_and_the_record_holds_the_curve():
    inputs = planted()
    outcome = run(FEWSHOT, inputs, shots=(1, 4, 16), draws=3)
    record = outcome.record
    curve = record.details["curve"]
    assert [k for k, _, _ in curve] == [1, 4, 16] and curve[0][1] < curve[1][1] < curve[2][1] and curve[0][2] > 0
    assert list(record.metrics) == ["accuracy", "1_shot", "4_shot", "16_shot", "zero_shot"]
    assert record.headline == record.metrics["16_shot"] and record.headline.value == curve[2][1]
    low, high = record.headline.interval.low, record.headline.interval.high
    assert low < record.headline.value < high and record.seeds == (0, 1, 2)
    assert outcome.samples["right"].mean() == pytest.approx(record.headline.value)
    assert record.details["zero_shot"] == pytest.approx(
        (inputs.features("test").rows @ inputs.classifier().T).argmax(1).__eq__(inputs.features("test").targets).mean()
    )
    assert run(FEWSHOT, inputs, shots=(1, 4, 16), draws=3).record == record


def test_one_draw_is_the_probe_on_those_samples():
    inputs = planted()
    record = run(FEWSHOT, inputs, shots=(2,), draws=1, seed=5).record
    train, test = inputs.features("train", "pre"), inputs.features("test", "pre")
    rows = draws(train.targets, np.arange(60) % CLASSES, shots=(2,), regime="paper", share=0.2, seed=5)[0].train
    strength = record.details["chosen"][0][1][0]
    fit = fit_logistic(torch.from_numpy(train.rows[rows]), torch.from_numpy(train.targets[rows]), CLASSES, [strength])
    predicted = fit.logits_of(0, torch.from_numpy(test.rows)).argmax(1).numpy()
    assert record.headline.value == pytest.approx((predicted == test.targets).mean(), abs=0.0034)


def test_the_regimes_choose_on_what_they_say():
    labels, val = np.arange(50) % CLASSES, np.arange(40) % CLASSES
    ask = {"shots": (1, 2, 8), "share": 0.2, "seed": 0}
    for draw in draws(labels, val, regime="paper", **ask):
        assert draw.judged_in == "val" and len(draw.judged) == 40
    assert [(len(d.judged), d.judged_in) for d in draws(labels, val, regime="few", **ask)] == [
        (5, "val"),
        (10, "val"),
        (20, "val"),
    ]
    for draw in draws(labels, None, regime="paper", **ask):
        assert draw.judged_in == "train" and len(draw.judged) == 10 and not set(draw.judged) & set(draw.train)
    for draw, most in zip(draws(labels, None, regime="few", **ask), (1, 2, 4), strict=True):
        assert not set(draw.judged) & set(draw.train)
        assert np.bincount(labels[draw.judged]).tolist() == [min(most, 10 - draw.shots)] * CLASSES
    with pytest.raises(DataError, match="none is left to choose on"):
        draws(labels, None, shots=(10,), regime="few", share=0.2, seed=0)


def test_strengths_come_from_each_regimes_search():
    paper = run(FEWSHOT, planted(), shots=(1, 2), draws=2).record.details
    few = run(FEWSHOT, planted(), shots=(1, 2), draws=2, regime="few").record.details
    assert paper["regime"] == "paper" and {one for _, several in paper["chosen"] for one in several} <= set(GRID)
    assert few["regime"] == "few"
    assert all(min(COOP_STARTS) / 10.001 < one < max(COOP_STARTS) * 10.001 for _, several in few["chosen"] for one in several)


def test_classes_with_too_few_samples_are_counted():
    record = run(FEWSHOT, planted(train=12), shots=(1, 2, 4), draws=1).record
    assert record.details["short"] == {"4": 5} and record.details["notes"] == []


def test_without_class_texts_few_shot_says_so_and_goes_on():
    inputs = planted()
    bare = ArrayInputs(inputs.task, {split: inputs.features(split) for split in ("train", "val", "test")})
    record = run(FEWSHOT, bare, shots=(1,), draws=1).record
    assert "zero_shot" not in record.metrics and "no zero-shot beside it" in record.details["notes"][0]


def test_the_interval_of_a_mean_per_class_weighs_classes_alike():
    task = a_task(metric="mean_per_class")
    targets = np.array([0] * 90 + [1] * 10)
    correct = np.stack([targets == 0, targets == 0])
    found = mean_metric(task, [0.5, 0.5], correct, targets, seed=0)
    assert found.value == 0.5 and found.interval.low < 0.5 < found.interval.high
    assert mean_metric(a_task(metric="macro_f1_present"), [0.4], correct, targets, seed=0).interval is None


def test_a_pull_towards_the_texts_is_an_offset_by_their_logits_on_the_same_rows():
    inputs = planted()
    train, test = inputs.features("train"), inputs.features("test")
    texts = 20 * inputs.classifier()
    shown = {part: features.rows @ texts.T for part, features in (("train", train), ("test", test))}
    pulled = PathProbe(train.rows, train.targets, CLASSES, prior=texts)
    beside = PathProbe(train.rows, train.targets, CLASSES, offset=shown["train"])
    for strength in (1e-3, 1.0, 100.0):
        theirs = beside.logits(strength, test.rows, shown["test"])
        assert pulled.logits(strength, test.rows) == pytest.approx(theirs, abs=0.02)
    added = pulled.logits(1e-7, test.rows) - shown["test"]
    assert added.std(axis=0).max() < 1e-4  # the pull without end is zero-shot but for the bias, which is free


def test_with_good_texts_the_prior_beats_the_plain_probe_and_with_bad_ones_it_is_given_up():
    good = run(PRIOR, planted(noise=2.5, text_noise=0.1), shots=(1, 4), draws=3).record
    assert good.metrics["1_shot"].value > good.details["plain"][0][1] + 0.1
    assert good.metrics["1_shot"].value >= good.details["zero_shot"] - 0.03
    bad = run(PRIOR, planted(text_noise=30.0), shots=(8,), draws=2).record
    assert bad.details["at_zero_shot"] == [[8, 0.0]] and bad.headline.value > bad.details["zero_shot"] + 0.3
    assert all(strength in STRENGTHS for strength in bad.details["chosen"][0][1])


def test_perfect_texts_drive_the_pull_to_zero_shot_itself():
    record = run(PRIOR, planted(noise=0.2, text_noise=0.0), shots=(1,), draws=2).record
    assert record.details["at_zero_shot"] == [[1, 1.0]] and record.details["chosen"] == [[1, [0.0, 0.0]]]
    assert record.headline.value == record.details["zero_shot"] and record.metrics["1_shot_gain"].value <= 0


def test_the_offset_form_takes_wider_rows():
    inputs = planted()
    wide = {}
    for split in ("train", "val", "test"):
        post = inputs.features(split)
        wide[split, "post"] = post
        wide[split, "pre"] = Features(rows=np.hstack([post.rows, 7 * np.eye(CLASSES, dtype=np.float32)[post.targets]]),
                                      targets=post.targets, classes=post.classes)  # fmt: skip
    record = run(PRIOR, ArrayInputs(inputs.task, wide, class_rows=inputs.classifier(), scale=20.0), form="offset", shots=(4,),
                 draws=1).record  # fmt: skip
    assert record.headline.value > record.details["zero_shot"] and record.counts["features"] == WIDTH + CLASSES


def test_tasks_and_settings_that_cannot_be_are_refused():
    assert "several labels" in FEWSHOT.reason_not(read_task("voc2007"))
    assert FEWSHOT.reason_not(a_task()) is None is PRIOR.reason_not(a_task())
    assert "pooled" in PRIOR.reason_not(read_task("ytbb_robust"))
    for protocol in (FEWSHOT, PRIOR):
        for settings in ({"shots": ()}, {"shots": (0, 1)}, {"shots": (4, 2)}, {"draws": 0}, {"held_out": 0.0}):
            with pytest.raises(ConfigError):
                protocol.Config(**settings)


@pytest.mark.skipif("OSTENSION_DATA" not in os.environ, reason="OSTENSION_DATA does not say where the real features lie")
def test_real_clip_features_of_phone_views_are_probed_and_more_labels_help():
    with np.load(Path(os.environ["OSTENSION_DATA"]) / "clip_cached_features" / "openai_vitb32_image_phone_views.npz") as packed:
        rows, names = packed["feats"].astype(np.float32), packed["labels"].astype(str)
    keys = tuple(np.unique(names))
    task = a_task(classes={key: (key,) for key in keys})
    order = numpy_generator(0, "views").permutation(len(rows))
    targets = np.searchsorted(keys, names)
    splits = {split: Features(rows=rows[part], targets=targets[part], classes=keys)
              for split, part in (("train", order[:135]), ("test", order[135:]))}  # fmt: skip
    inputs = ArrayInputs(task, splits)
    probe = load_protocol("probe")
    whole = run(probe, inputs, mode="paper").record
    curve = [mean for _, mean, _ in run(FEWSHOT, inputs, shots=(1, 4, 16), draws=3).record.details["curve"]]
    assert curve[0] < curve[-1] <= whole.headline.value + 0.05 and whole.headline.value > 0.85
    assert whole.details["gradient_norm"] <= 1e-5
