"""PAINT: a patched image tower before untouched words; one task, or several in three ways; alpha by validation alone."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, Pictures, tiny_clip

from ostension.adapt import paint
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._patching import Held, go, worth
from ostension.adapt.paint import Config, Paint
from ostension.errors import ConfigError
from ostension.image.augment import CropConfig
from ostension.model.predictor import Predictor
from ostension.weights.fan import Fan
from ostension.weights.line import GRID, Line

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")


def task(name: str, classes: int = 3, *, seed: int = 0, names=NAMES, each: int = 4, val: bool = True) -> Examples:
    targets = np.repeat(np.arange(classes), each)
    parts = {
        part: Labelled(source=Pictures(len(targets), seed=seed + more), targets=targets, name=part)
        for part, more in (("train", 0), ("val", 100))
    }
    return Examples(
        class_names=tuple(names[:classes]), train=parts["train"], val=parts["val"] if val else None, templates=TEMPLATES,
        facts={"task": name},
    )  # fmt: skip


def config(**changes) -> Config:
    recipe = dataclasses.replace(Config().recipe, epochs=2, batch_size=4, lr=1e-3, warmup_steps=0, views=0)
    return Config(**({"recipe": recipe, "grid": 4} | changes))


def tower(predictor) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in predictor.module.visual.state_dict().items()}


@torch.no_grad()
def logits(predictor):
    return predictor.forward(IMAGES)


@pytest.fixture
def model():
    return tiny_clip()


IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OTHER = ("red car", "x-ray", "kite")


def test_text_tower_and_words_do_not_change_a_bit(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = paint.fit(model, task("new"), config(alpha=1.0), keep=[task("old", seed=5)])
    tuned = predictor.module.tuned_model()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(tuned.state_dict()[name], value) or name.startswith("visual.")
    assert any(not torch.equal(value, tuned.state_dict()[name]) for name, value in before.items() if name.startswith("visual."))
    assert torch.equal(predictor.weights, model.classifier(predictor.class_names, TEMPLATES).weights)
    assert torch.equal(predictor.bind(OTHER).weights, model.classifier(OTHER, TEMPLATES).weights)


def test_alpha_0_is_zero_shot_and_alpha_1_what_was_tuned_to_the_bit(model):
    start = paint.fit(model, task("new"), config(alpha=0.0))
    zero_shot = model.classifier(start.class_names, TEMPLATES)
    assert torch.equal(logits(start), logits(zero_shot))
    assert tower(start) == {name: value.numpy().tobytes() for name, value in model.visual.state_dict().items()}
    whole = paint.fit(model, task("new"), config(alpha=1.0))
    tuned = paint.learn(model, [task("new")], config(templates=TEMPLATES), seed=0, folder=None, progress=None)
    assert tower(whole) == {name: value.numpy().tobytes() for name, value in tuned.visual.state_dict().items()}


def test_alpha_is_the_point_of_the_grid_with_the_best_mean_of_both_sides(model):
    new, old = task("new"), task("old", seed=5, names=NAMES[::-1])
    found = paint.fit(model, new, config(), keep=[old]).facts["patches"][0]
    assert [row["alphas"] for row in found["seen"]] == [[0.0], [0.25], [0.5], [0.75], [1.0]]
    held = {name: Held(model, one, limit=100, seed=0) for name, one in (("new", new), ("old", old))}
    tuned = paint.learn(model, [new], config(templates=TEMPLATES), seed=0, folder=None, progress=None)
    for row in found["seen"]:
        at = Fan(model, [tuned]).at(row["alphas"])
        assert row["scores"] == {name: pytest.approx(one.accuracy(at)) for name, one in held.items()}
    means = [np.mean(list(row["scores"].values())) for row in found["seen"]]
    assert found["alphas"] == found["seen"][int(np.argmax(means))]["alphas"]


def test_what_is_counted_is_the_accuracy_on_the_validation_pictures(model):
    one = task("new")
    held = Held(model, one, limit=100, seed=0)
    logits = model.classifier(one.class_names, TEMPLATES).forward(one.val.pixels(model, np.arange(len(one.val))))
    assert held.accuracy(model) == (logits.argmax(1).numpy() == one.val.targets).mean()
    few = Held(model, one, limit=6, seed=0)
    assert np.bincount(few.targets).tolist() == [2, 2, 2]


@pytest.mark.parametrize("several", ["joint", "sequential", "parallel"])
def test_with_one_task_the_three_ways_are_the_same_to_the_bit(several, model):
    alone = paint.fit(model, task("new"), config(), keep=[task("old", seed=5)])
    other = paint.fit(model, task("new"), config(several=several), keep=[task("old", seed=5)])
    assert tower(alone) == tower(other)


def test_joint_learns_each_picture_before_its_own_tasks_classifier(model):
    """One step on the union has the gradient of the mean over all pictures of each one's own cross-entropy."""
    one, two = task("one", 2), task("two", 3, seed=7, names=NAMES[::-1])
    addition = Paint(model, config(templates=TEMPLATES), one.class_names)
    addition.heads = [model.classifier(each.class_names, TEMPLATES).weights for each in (one, two)]
    images = torch.cat([each.train.pixels(model, np.arange(len(each.train))) for each in (one, two)])
    numbers = torch.tensor([0] * len(one.train) + [1] * len(two.train))
    targets = torch.cat([one.train.labels, two.train.labels])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batch = dataclasses.make_dataclass("B", ["images", "targets", "domains"])(images[order], targets[order], numbers[order])
    single = []
    for image, target, number in zip(images, targets, numbers, strict=True):
        each = (one, two)[int(number)]
        logits = model.classifier(each.class_names, TEMPLATES).forward(image[None])
        single.append(torch.nn.functional.cross_entropy(logits, target[None]))
    torch.testing.assert_close(addition.loss(batch), torch.stack(single).mean(), rtol=1e-5, atol=1e-5)


def test_joint_does_not_see_another_tasks_classes(model):
    """A second task whose names are those of the first does not compete with it."""
    found = paint.fit(model, task("one"), config(), sources=[task("two", seed=9)])
    assert found.class_names == NAMES[:3] and found.facts["patches"][0]["tasks"] == ["one", "two"]


def test_a_sequence_starts_each_run_from_the_patched_model_and_says_its_order(model):
    one, two, old = task("one"), task("two", seed=7, names=NAMES[::-1]), task("old", seed=5)
    found = paint.fit(model, one, config(several="sequential"), sources=[two], keep=[old])
    assert [patch["tasks"] for patch in found.facts["patches"]] == [["one"], ["one", "two"]]
    first, second = found.facts["patches"]
    assert set(first["seen"][0]["scores"]) == {"one", "old"} and set(second["seen"][0]["scores"]) == {"one", "two", "old"}
    # The second line begins where the first one ended.
    best = next(row["scores"] for row in first["seen"] if row["alphas"] == first["alphas"])
    assert {name: second["seen"][0]["scores"][name] for name in best} == best
    turned = paint.fit(model, dataclasses.replace(two), config(several="sequential", alpha=0.5), sources=[one])
    straight = paint.fit(model, one, config(several="sequential", alpha=0.5), sources=[two])
    assert tower(turned) != tower(straight)


def test_parallel_adds_the_differences_whatever_their_order(model):
    one, two = task("one"), task("two", seed=7, names=NAMES[::-1])
    first = paint.fit(model, one, config(several="parallel", alpha=0.4), sources=[two])
    second = paint.fit(model, two, config(several="parallel", alpha=0.4), sources=[one])
    assert tower(first) == tower(second)
    ends = [paint.learn(model, [each], config(templates=TEMPLATES), seed=0, folder=None, progress=None) for each in (one, two)]
    for name, value in first.module.visual.state_dict().items():
        start, *parts = (each.visual.state_dict()[name].double() for each in (model, *ends))
        torch.testing.assert_close(value.double(), start + sum(0.4 * (part - start) for part in parts), rtol=0, atol=1e-6)


def test_parallel_alphas_are_never_worse_than_the_start(model):
    found = paint.fit(model, task("one"), config(several="parallel"), sources=[task("two", seed=7)], keep=[task("old", seed=5)])
    patch = found.facts["patches"][0]
    assert len(patch["alphas"]) == 2

    def value(scores):
        return (np.mean([scores["one"], scores["two"]]) + scores["old"]) / 2

    chosen = next(row["scores"] for row in patch["seen"] if row["alphas"] == patch["alphas"])
    assert value(chosen) == max(value(row["scores"]) for row in patch["seen"])


def test_a_patched_model_is_a_model_and_takes_any_names(model, tmp_path):
    from ostension.formats.load import load, save

    predictor = paint.fit(model, task("new"), config(alpha=0.5))
    save(predictor.module.tuned_model(), tmp_path / "patched")
    patched = load(tmp_path / "patched", dtype="float32")
    assert torch.equal(logits(patched.classifier(OTHER, TEMPLATES)), logits(predictor.bind(OTHER)))
    predictor.save(tmp_path / "predictor")
    assert torch.equal(logits(Predictor.load(tmp_path / "predictor", model)), logits(predictor))


def test_nothing_is_chosen_on_a_test_split_or_without_validation_pictures(model):
    new = task("new")
    test = dataclasses.replace(new, val=dataclasses.replace(new.val, name="test"), facts={"task": "other"})
    with pytest.raises(ConfigError, match="'other' are its test split"):
        paint.fit(model, new, config(), keep=[test])
    with pytest.raises(ConfigError, match="'old' has no validation pictures"):
        paint.fit(model, new, config(), keep=[task("old", val=False)])
    with pytest.raises(ConfigError, match="each once"):
        paint.fit(model, new, config(), keep=[task("new", seed=3)])


def test_the_training_pictures_of_tasks_to_keep_are_not_looked_at(model):
    old = task("old", seed=5)
    closed = dataclasses.replace(old, train=dataclasses.replace(old.train, source=Closed(len(old.train))))
    found = [paint.fit(model, task("new"), config(), keep=[one]) for one in (closed, old)]
    assert tower(found[0]) == tower(found[1])


class Closed(Pictures):
    def read(self, index):
        raise AssertionError("looked at")


def test_the_defaults_are_those_of_the_published_recipe():
    recipe = Config().recipe
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.clip_norm) == ("adamw", 1e-5, 0.1, 1.0)
    assert recipe.batch_size == 128
    assert (recipe.schedule, recipe.warmup_steps) == ("cosine_by_step", 500)
    assert recipe.crop == CropConfig(kind="resized", scale=(0.9, 1.0)) and Config().grid == 20


def test_another_tasks_names_are_read_with_its_own_templates(model):
    predictor = paint.fit(model, task("new"), config(alpha=0.5))
    other = predictor.bind(OTHER, ("a picture of the {}.",))
    assert torch.equal(logits(other), logits(predictor.module.tuned_model().classifier(OTHER, ("a picture of the {}.",))))
    assert torch.equal(logits(predictor.bind(OTHER)), logits(predictor.module.tuned_model().classifier(OTHER, TEMPLATES)))
    assert predictor.module.config.templates == TEMPLATES and other.templates == ("a picture of the {}.",)


@pytest.mark.parametrize("peak", [0.0, 0.15, 0.5, 0.85, 1.0])
def test_looking_nearer_and_nearer_finds_a_single_peak_with_half_the_work(peak, model):
    """Scores by distance from a peak, whatever the model; of a line whose ends are equal."""

    class Hill:
        def __init__(self):
            self.asked = 0

        def accuracy(self, at):
            self.asked += 1
            return 1 - abs(alpha[-1] - peak)

    alpha = []
    plain_at = Line.at
    for refine in (True, False):
        hill = Hill()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Line, "at", lambda line, share: (alpha.append(share), plain_at(line, share))[1])
            _, choice = go(model, [model], {"new": hill}, {}, GRID, refine=refine)
        assert choice.alphas == (peak,) and hill.asked == len(choice.seen) <= (12 if refine else 21)


def test_a_point_is_worth_the_new_tasks_alone_while_the_kept_ones_stay():
    start = {"new": 0.1, "old": 0.8, "older": 0.6}
    patch, keep = ["new"], ["old", "older"]
    near, far = {"new": 0.4, "old": 0.79, "older": 0.6}, {"new": 0.9, "old": 0.7, "older": 0.5}
    assert worth(near, start, patch, keep, 0.01) == 0.4 and worth(start, start, patch, keep, 0.0) == 0.1
    assert worth(far, start, patch, keep, 0.01) == pytest.approx(-0.1)
    assert worth(far, start, patch, keep, None) == pytest.approx((0.9 + 0.6) / 2)
    assert worth(near, start, patch, keep, None) < worth(far, start, patch, keep, None)
    assert worth(far, start, patch, [], 0.01) == 0.9
    with pytest.raises(ConfigError, match="within"):
        Config(alpha=0.5, within=0.01)


@pytest.mark.parametrize("several", ["joint", "parallel"])
def test_within_a_limit_the_kept_tasks_have_lost_no_more(several, model):
    limited = config(several=several, within=0.0)
    found = paint.fit(model, task("one"), limited, sources=[task("two", seed=7)], keep=[task("old", seed=5)])
    patch = found.facts["patches"][0]
    chosen = next(row["scores"] for row in patch["seen"] if row["alphas"] == patch["alphas"])
    assert chosen["old"] >= patch["seen"][0]["scores"]["old"]
