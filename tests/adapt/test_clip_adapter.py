"""CLIP-Adapter against its equation; a ratio of 0 is zero-shot; the length of what goes in does not matter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import clip_adapter
from ostension.adapt._fit import Recipe
from ostension.errors import ConfigError

STILL = Recipe(epochs=0, views=0)


def rows(count=5, seed=0):
    width = tiny_clip().config.embed_dim
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def published(addition, features):
    """The released module, fed with embeddings of any length."""
    width = features.shape[1]
    first, second = nn.Linear(width, width // 4, bias=False), nn.Linear(width // 4, width, bias=False)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    with torch.no_grad():
        first.weight.copy_(addition.down)
        second.weight.copy_(addition.up)
    mixed = 0.2 * net(features) + (1 - 0.2) * features
    image = mixed / mixed.norm(dim=-1, keepdim=True)
    return addition.scale() * image @ addition.rows.T


@pytest.mark.parametrize("length", [1.0, 9.7])
def test_logits_are_the_released_module_s_whatever_the_length_of_the_embeddings(length):
    addition = clip_adapter.ClipAdapter(tiny_clip(), clip_adapter.Config(), NAMES, seed=3)
    torch.testing.assert_close(addition.logits(rows()), published(addition, length * rows()), rtol=1e-5, atol=1e-5)


def test_without_a_ratio_it_is_zero_shot_with_the_task_s_templates_and_stays_so():
    model, data = tiny_clip(), examples()
    predictor = clip_adapter.fit(model, data, clip_adapter.Config(ratio=0.0, recipe=Recipe(epochs=2, views=0)))
    zero_shot = model.classifier(NAMES, list(data.templates))
    torch.testing.assert_close(predictor.logits(rows()), zero_shot.logits(rows()), rtol=1e-5, atol=1e-5)


def test_the_text_s_rows_are_computed_once(monkeypatch):
    model, calls = tiny_clip(), []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda *given, **named: calls.append(1) or encode(*given, **named))
    clip_adapter.fit(model, examples(), clip_adapter.Config(recipe=Recipe(epochs=3, views=0, batch_size=4)))
    assert len(calls) == 1


def test_other_names_take_the_net_along():
    model = tiny_clip()
    predictor = clip_adapter.fit(model, examples(), clip_adapter.Config(recipe=Recipe(epochs=2, views=0, lr=0.1)))
    other = predictor.bind(("boat", "tree"))
    assert torch.equal(other.module.down, predictor.module.down)
    torch.testing.assert_close(other.module.rows, model.classifier(["boat", "tree"], ["a photo of a {}."]).weights)


def test_it_has_no_constant_matrix_and_refuses_a_ratio_out_of_range():
    predictor = clip_adapter.fit(tiny_clip(), examples(), clip_adapter.Config(recipe=STILL))
    with pytest.raises(ConfigError, match="more than a product"):
        predictor.freeze()
    with pytest.raises(ConfigError, match="ratio is 1.5"):
        clip_adapter.Config(ratio=1.5)
