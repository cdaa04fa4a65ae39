"""Fine-tuned towers and WiSE-FT: step 0, what changes, the steps, ends and middles of the line, models out of predictors."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

import ostension
from ostension.adapt import finetune, wise_ft
from ostension.adapt.base import Examples
from ostension.errors import ConfigError
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.model.presets import preset

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def short(module, **changes):
    settings = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "views": 0, **changes.pop("recipe", {})}
    return module.Config(recipe=dataclasses.replace(module.Config().recipe, **settings), **changes)


def without_val() -> Examples:
    return dataclasses.replace(examples(), val=None)


def test_steps_are_those_of_a_plain_loop():
    model, data, made = tiny_clip(), examples(), short(finetune)
    found = finetune.fit(model, data, made, seed=1)
    visual = copy.deepcopy(model.visual)
    zero_shot = model.classifier(NAMES, data.templates)
    weight = (zero_shot.weights * zero_shot.scale).clone().requires_grad_()
    bias = torch.zeros(4, requires_grad=True)
    own = [*visual.parameters(), weight, bias]
    optimizer = torch.optim.AdamW(own, lr=0.0, weight_decay=0.1)
    order = [ostension.runtime.numpy_generator(1, "epoch", epoch).permutation(12) for epoch in range(2)]
    for step, rows in enumerate(np.concatenate(order).reshape(6, 4)):  # one step of warm-up: a quarter of six
        rate = 1e-3 if step < 1 else 1e-3 * 0.5 * (1 + np.cos(np.pi * (step - 1) / 5))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        features = F.normalize(visual(data.train.pixels(model, rows)), dim=-1)
        F.cross_entropy(features @ weight.T + bias, data.train.labels[torch.from_numpy(rows)]).backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
    state = found.module.state_dict()
    torch.testing.assert_close(state["head.weight"], weight.detach(), rtol=1e-4, atol=1e-5)
    for name, value in visual.state_dict().items():
        torch.testing.assert_close(state[f"visual.{name}"], value, rtol=1e-3, atol=2e-4)


def test_only_the_last_groups_move_where_so_many_are_asked_for():
    model = tiny_clip()
    found = finetune.fit(model, examples(), short(finetune, groups=2)).module
    last = model.visual.config.layers - 1
    for name, value in model.visual.state_dict().items():
        moved = not torch.equal(value, found.visual.state_dict()[name])
        assert moved == name.startswith((f"transformer.resblocks.{last}.", "ln_post.", "proj")), name
    with pytest.raises(ConfigError, match="groups is 99"):
        finetune.fit(model, examples(), short(finetune, groups=99))


def test_a_residual_towers_statistics_stay_while_it_is_tuned():
    model = CLIP(preset("tiny-resnet"), seed=0).eval()
    found = finetune.fit(model, examples(), short(finetune)).module.visual.state_dict()
    still = [name for name in found if "running" in name or "num_batches" in name]
    assert still and all(torch.equal(found[name], value) for name, value in model.visual.state_dict().items() if name in still)


def test_names_of_its_own_bind_to_its_columns_and_others_to_prompts():
    model = tiny_clip()
    found = finetune.fit(model, examples(), short(finetune))
    some = found.bind([NAMES[2], NAMES[0]])
    assert torch.equal(some.forward(IMAGES), found.forward(IMAGES)[:, [2, 0]])
    other = found.bind(["horse", "ship"])
    rows = model.classifier(["horse", "ship"], found.templates)
    expected = rows.logits(found.features(IMAGES))
    torch.testing.assert_close(other.forward(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_the_best_epoch_is_the_beginning_where_training_only_harms():
    model = tiny_clip()
    right = model.classifier(NAMES, examples().templates)
    val = examples(each=2).train
    rows = val.features(model)[0]
    val = dataclasses.replace(val, targets=right.logits(rows).argmax(1).numpy())  # the untrained model is right on all
    data = dataclasses.replace(examples(), val=val)
    found = finetune.fit(model, data, short(finetune, recipe={"select": "best", "lr": 0.1}))
    assert torch.equal(found.module.state_dict()["visual.conv1.weight"], model.visual.conv1.weight)
    assert found.facts["epoch"] == -1 and found.facts["score"] == 1.0
    with pytest.raises(ConfigError, match="without validation pictures"):
        finetune.fit(model, without_val(), short(finetune, recipe={"select": "best"}))


def test_wise_ft_has_the_ends_to_the_bit_and_the_middle_of_weights_between():
    model, data = tiny_clip(), examples()
    tuned = finetune.fit(model, data, short(finetune), seed=2)
    states = {
        alpha: wise_ft.fit(model, data, short(wise_ft, alpha=alpha), seed=2).module.state_dict() for alpha in (0.0, 0.5, 1.0)
    }
    start = tuned.module.untrained().state_dict()
    for name, value in tuned.module.state_dict().items():
        assert torch.equal(states[1.0][name], value) and torch.equal(states[0.0][name], start[name])
        if value.is_floating_point():
            middle = (0.5 * start[name].double() + 0.5 * value.double()).to(value.dtype)
            assert torch.equal(states[0.5][name], middle)


def test_wise_ft_takes_a_tuned_predictor_and_chooses_alpha_by_validation_pictures():
    model, data = tiny_clip(), examples()
    tuned = finetune.fit(model, data, short(finetune), seed=2)
    found = wise_ft.fit(model, data, wise_ft.Config(alpha=None), start=tuned)
    curve = found.facts["curve"]
    assert [share for share, _ in curve] == [tenth / 10 for tenth in range(11)]
    best = max(score for _, score in curve)
    assert found.facts["alpha"] == next(share for share, score in curve if score == best)
    with pytest.raises(ConfigError, match="tunes no tower"):
        wise_ft.fit(model, data, wise_ft.Config(), start=model.classifier(NAMES, data.templates))
    with pytest.raises(ConfigError, match="tunes no tower"):
        wise_ft.fit(model, data, wise_ft.Config(method="coop"))
    with pytest.raises(ConfigError, match="without validation pictures"):
        wise_ft.fit(model, without_val(), wise_ft.Config(alpha=None), start=tuned)


def test_the_tuned_model_is_a_model_that_knows_its_start(tmp_path):
    model = tiny_clip()
    found = finetune.fit(model, examples(), short(finetune))
    save(found.module.tuned_model(), tmp_path / "model")
    loaded = ostension.load(tmp_path / "model", dtype="float32")
    torch.testing.assert_close(loaded.encode_image(IMAGES, normalize=True).detach(), found.features(IMAGES))
    assert fingerprint(model) in str(loaded.provenance)
    assert torch.equal(loaded.text.token_embedding.weight, model.text.token_embedding.weight)
