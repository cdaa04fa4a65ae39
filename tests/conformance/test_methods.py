"""Every method in the folder, found and not listed: what all of them promise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt.base import METHODS, Spec
from ostension.errors import ConfigError
from ostension.model.predictor import Predictor

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
    try:
        other = predictor.bind([NAMES[place] for place in order])
    except ConfigError:
        assert not predictor.module.binds
        return
    rows = F.normalize(torch.randn(3, predictor.encoder.config.embed_dim, generator=torch.Generator().manual_seed(1)), dim=-1)
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
    made = config_of(name)
    recipe = dataclasses.replace(made.recipe, epochs=80, batch_size=8, optimizer="adamw", lr=0.02, weight_decay=0.0)
    data, model = examples(classes=2, each=2), tiny_clip()
    predictor = method(name).fit(model, data, dataclasses.replace(made, recipe=recipe), seed=0)
    logits = predictor.forward(data.train.pixels(model, np.arange(4)))
    assert logits.argmax(1).tolist() == data.train.targets.tolist()


@pytest.mark.parametrize("name", TRAINED)
def test_a_fit_that_was_stopped_ends_with_the_same_bits(name, tmp_path):
    made = config_of(name)

    class Stop(Exception):
        pass

    def after_one(record):
        if record["epoch"] == 0:
            raise Stop

    with pytest.raises(Stop):
        method(name).fit(tiny_clip(), examples(), made, folder=tmp_path, progress=after_one)
    resumed = method(name).fit(tiny_clip(), examples(), made, folder=tmp_path)
    whole = method(name).fit(tiny_clip(), examples(), made)
    for key, value in whole.state()[1].items():
        assert torch.equal(value, resumed.state()[1][key])
