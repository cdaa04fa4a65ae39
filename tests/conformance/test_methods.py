"""Every method in the folder, found and not listed: what all of them promise."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapt_making import NAMES, bert_clip, examples, tiny_clip

from ostension.adapt.base import METHODS, Spec
from ostension.errors import ConfigError, LimitError
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset

CLASSES = len(NAMES)


def method(name):
    return METHODS.load(name)


def config_of(name, **changes):
    """The method's defaults with few short epochs."""
    made = method(name).Config(**changes)
    if not trains(name):
        return made
    recipe = dataclasses.replace(made.recipe, epochs=2, batch_size=4, views=0, warmup_epochs=0, lr=0.02)
    return dataclasses.replace(made, recipe=recipe)


def trains(name):
    return any(field.name == "recipe" for field in dataclasses.fields(method(name).Config))


def untrained(made):
    return dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, epochs=0)) if hasattr(made, "recipe") else made


def answers(predictor, rows):
    """Logits of unit rows, each of which is its picture's only view where views are what is asked for."""
    return predictor.logits_of_views(rows[:, None]) if predictor.depends == "views" else predictor.logits(rows)


TRAINED = [name for name in METHODS.names() if trains(name)]
NEUTRAL = [name for name in METHODS.names() if method(name).SPEC.neutral is not None]


@pytest.fixture(params=METHODS.names())
def name(request):
    return request.param


def test_it_says_what_it_is(name):
    spec = method(name).SPEC
    assert isinstance(spec, Spec) and spec.title and spec.paper and spec.trains
    assert METHODS.summary(name)


def test_only_its_own_parameters_change(name):
    model = tiny_clip()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    predictor = method(name).fit(model, examples(), config_of(name), seed=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == wanted
    assert isinstance(predictor, Predictor)


@pytest.mark.parametrize("name", NEUTRAL)
def test_untrained_it_is_zero_shot_where_it_says_so(name):
    spec = method(name).SPEC
    model, made = tiny_clip(), config_of(name, **spec.neutral)
    predictor = method(name).fit(model, examples(), untrained(made))
    if spec.silence is not None:
        spec.silence(predictor.module)
        predictor = predictor.module.predictor()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    zero_shot = model.classifier(NAMES, [spec.neutral_template])
    torch.testing.assert_close(predictor.forward(images), zero_shot.forward(images), rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_bits(name):
    first, second = (method(name).fit(tiny_clip(), examples(), config_of(name), seed=3) for _ in range(2))
    for key, value in first.state()[1].items():
        assert torch.equal(value, second.state()[1][key])


def test_a_picture_does_not_depend_on_its_batch_unless_declared(name):
    model = tiny_clip()
    predictor = method(name).fit(model, examples(), config_of(name))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, single = predictor.forward(images), torch.cat([predictor.forward(image[None]) for image in images])
    if predictor.depends == "batch":
        assert not torch.allclose(whole, single, atol=1e-5)
    else:
        torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)


def test_permuted_names_permute_the_logits(name):
    predictor = method(name).fit(tiny_clip(), examples(), config_of(name))
    order = [2, 0, 3, 1]
    other = renamed(predictor, [NAMES[place] for place in order])
    if other is None:
        return
    rows = predictor.features(torch.randn(3, 3, 32, 32, generator=generator_of(1)))
    torch.testing.assert_close(answers(other, rows), answers(predictor, rows)[:, order], rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_its_own_tensors_and_loads_like_any_predictor(name, tmp_path):
    model = tiny_clip()
    predictor = method(name).fit(model, examples(), config_of(name))
    predictor.save(tmp_path / "saved")
    assert set(predictor.state()[1]) == set(predictor.module.state_dict())
    loaded = Predictor.load(tmp_path / "saved", model)
    assert type(loaded) is type(predictor) and loaded.class_names == NAMES
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.forward(images), predictor.forward(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_it_overfits_a_tiny_set(name):
    # What a method adds to the cross-entropy, to hold itself back, has a weight: without it the pictures count alone.
    held = any(field.name == "weight" for field in dataclasses.fields(method(name).Config))
    made = config_of(name, **({"weight": 0.0} if held else {}))
    recipe = dataclasses.replace(made.recipe, epochs=80, batch_size=8, optimizer="adamw", lr=0.02, weight_decay=0.0)
    data, model = examples(classes=2, each=2), tiny_clip()
    data = dataclasses.replace(data, val=data.train)  # what is chosen is to be what fits these pictures
    predictor = method(name).fit(model, data, dataclasses.replace(made, recipe=recipe), seed=0)
    logits = predictor.forward(data.train.pixels(model, np.arange(4)))
    assert logits.argmax(1).tolist() == data.train.targets.tolist()


@pytest.mark.parametrize("name", TRAINED)
def test_a_fit_that_was_stopped_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    monkeypatch.setattr("ostension.adapt._fit.KEEP_S", 0.0)  # after every epoch
    made = config_of(name)

    class Stop(Exception):
        pass

    def after_one(record):
        if record["epoch"] == 0:
            raise Stop

    with pytest.raises(Stop):
        method(name).fit(tiny_clip(), examples(), made, folder=tmp_path, progress=after_one)
    assert list(tmp_path.rglob("fit.safetensors"))
    resumed = method(name).fit(tiny_clip(), examples(), made, folder=tmp_path)
    whole = method(name).fit(tiny_clip(), examples(), made)
    for key, value in whole.state()[1].items():
        assert torch.equal(value, resumed.state()[1][key])


def test_the_fast_text_path_equals_all_positions_and_so_do_its_gradients(name):
    """In float64: values to 1e-12, gradients to 1e-10; contexts, deep ones and those of each picture go through both."""
    model = tiny_clip(seed=5).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    addition = kind_of(name)(model, method(name).Config(), NAMES, seed=2).double().eval()
    if not hasattr(addition, "prompts") and not hasattr(addition, "conditional"):
        pytest.skip("its words stay hand-written, or it has none")
    rows = F.normalize(torch.randn(3, model.config.embed_dim, dtype=torch.float64, generator=generator_of(1)), dim=-1)
    found = {}
    encode = model.encode_text
    for plain in (False, True):
        addition.train(addition.training)  # what is kept of the words is made anew
        model.encode_text = functools.partial(encode, plain=plain)
        if plain:  # as the published code has it: all positions, what follows the end token being padding
            prompts = prompts_of(addition)
            missing = model.config.text.context_length - prompts.rows.shape[1]
            prompts.rows = F.pad(prompts.rows, (0, missing), value=model.tokenizer.pad_id)
        weights = addition.weights(rows)
        own = [value for value in addition.parameters() if value.requires_grad]
        pull = torch.randn(weights.shape, dtype=torch.float64, generator=generator_of(2))
        found[plain] = weights, torch.autograd.grad((weights * pull).sum(), own, allow_unused=True)
    del model.encode_text
    (fast, fast_gradients), (slow, slow_gradients) = found[False], found[True]
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert any(gradient is not None for gradient in slow_gradients)
    for left, right in zip(fast_gradients, slow_gradients, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TRAINED)
def test_training_on_kept_features_equals_training_on_pictures_step_for_step(name, monkeypatch):
    """Without augmentation; the pictures go through the frozen tower again in every step."""
    model, made = tiny_clip(), config_of(name)
    if kind_of(name)(model, made, NAMES).needs_images:
        pytest.skip("it changes the image side")
    kept, seen = [], []
    method(name).fit(model, examples(), made, seed=1, progress=kept.append)
    kind = kind_of(name)
    loss = kind.loss

    def from_pictures(addition, batch):
        images = examples().train.pixels(model, batch.indices)
        with torch.no_grad():
            again = model.encode_image(images, normalize=True)
        torch.testing.assert_close(again, batch.features, rtol=1e-5, atol=1e-6)
        return loss(addition, dataclasses.replace(batch, features=again))

    monkeypatch.setattr(kind, "loss", from_pictures)
    method(name).fit(model, examples(), made, seed=1, progress=seen.append)
    assert [row["loss"] for row in seen] == pytest.approx([row["loss"] for row in kept], rel=1e-4)


def test_predictors_loaded_in_another_process_predict_the_same_bits_and_serve_new_names(tmp_path):
    """All methods in one process, which knows the folders alone; new names need the saved tensors and nothing else."""
    from ostension.formats.load import save

    model = tiny_clip()
    save(model, tmp_path / "model")
    images = torch.randn(2, 3, 32, 32, generator=generator_of(0))
    torch.save(images, tmp_path / "images.pt")
    expected = {}
    for name in METHODS.names():
        predictor = method(name).fit(model, examples(), untrained(config_of(name)), seed=4)
        predictor.save(tmp_path / name)
        expected[name] = [one.forward(images).detach() for one in (predictor, renamed(predictor, ("red car", "x-ray"))) if one]
    script = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from ostension.formats.load import load
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
folder, *names = sys.argv[1:]
model, images, found = load(f"{folder}/model", dtype="float32"), torch.load(f"{folder}/images.pt"), {}
for name in names:
    predictor = Predictor.load(f"{folder}/{name}", model)
    both = [predictor, predictor.bind(("red car", "x-ray"))] if predictor.module.binds else [predictor]
    found[name] = [one.forward(images).detach() for one in both]
torch.save(found, f"{folder}/found.pt")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *METHODS.names()], check=True)
    found = torch.load(tmp_path / "found.pt")
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_is_adapted_too(name, dtype):
    model = tiny_clip().to(dtype)
    predictor = method(name).fit(model, examples(), config_of(name), seed=1)
    images = torch.randn(2, 3, 32, 32, generator=generator_of(0))
    assert predictor.forward(images).isfinite().all() and predictor.forward(images).dtype != torch.bfloat16


def test_one_class_with_one_picture_is_enough(name):
    predictor = method(name).fit(tiny_clip(), examples(classes=1, each=1), config_of(name), seed=1)
    images = torch.randn(2, 3, 32, 32, generator=generator_of(0))
    assert predictor.forward(images).shape == (2, 1) and predictor.forward(images).isfinite().all()
    other = renamed(predictor, ("a", "b_c (d)"))
    assert other is None or other.forward(images).shape == (2, 2)


def test_towers_without_a_place_for_tokens_are_refused_in_one_line(name):
    words = "the text tower is of the kind 'bert'.*vpt, tecoa"
    for model, reason in ((bert_clip(), words), (CLIP(preset("tiny-resnet"), seed=0).eval(), "the image tower is of the kind")):
        side = model.config.vision.image_size
        try:
            predictor = method(name).fit(model, examples(), untrained(config_of(name)))
            assert predictor.forward(torch.zeros(1, 3, side, side)).shape == (1, CLASSES)
        except LimitError as error:
            assert "contexts takes" in str(error)  # the tiny model's words are few
        except ConfigError as error:
            assert re.search(reason, str(error)) and "\n" not in str(error)


def renamed(predictor, names):
    """With other class names; None where what was learned belongs to its own, which it then has to say."""
    try:
        return predictor.bind(tuple(names))
    except ConfigError:
        assert not predictor.module.binds
        return None


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def kind_of(name):
    if name not in Predictor._kinds:
        pytest.skip("it ends in the predictor of another method")
    return Predictor._kinds[name].addition


def prompts_of(addition):
    return addition.conditional.prompts if hasattr(addition, "conditional") else addition.prompts
