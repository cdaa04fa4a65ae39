"""CoOp's variants, its recipe, and the schedule in closed form."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import coop
from ostension.adapt._fit import Recipe
from ostension.errors import ConfigError, LimitError

STILL = Recipe(epochs=0, views=0)


def test_equal_class_specific_contexts_are_the_unified_one():
    model = tiny_clip()
    unified = coop.CoOp(model, coop.Config(length=3), NAMES, seed=2)
    own = coop.CoOp(model, coop.Config(length=3, class_specific=True), NAMES, seed=2)
    torch.testing.assert_close(own.weights(), unified.weights(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="belongs to its 4 classes"):
        own.predictor().bind(("boat",))


@pytest.mark.parametrize("position", ["front", "middle", "end"])
def test_words_at_the_end_are_the_prompt_and_elsewhere_are_not(position):
    model = tiny_clip()
    rows = coop.CoOp(model, coop.Config(words="a photo of a", position=position), NAMES).weights()
    same = torch.allclose(rows, model.classifier(NAMES, ["a photo of a {}."]).weights, atol=1e-5)
    assert same == (position == "end")


def test_a_name_that_leaves_no_room_for_the_contexts_is_named():
    with pytest.raises(LimitError, match="'a very .*' with 16 contexts takes .* at most the tower's 48"):
        coop.CoOp(tiny_clip(), coop.Config(), ("cat", "a very " + "long " * 15)).weights()


def test_epochs_follow_the_pictures_a_class():
    model = tiny_clip()
    for each, expected in ((1, 50), (3, 100), (5, 200)):
        seen = []

        def note(record, seen=seen):
            seen.append(record)

        config = coop.Config(length=2, recipe=Recipe(epochs=None, views=0, batch_size=64))
        coop.fit(model, examples(classes=2, each=each), config, progress=note)
        assert len(seen) == expected


def test_a_method_without_a_rule_asks_for_epochs():
    from ostension.adapt import kgcoop

    with pytest.raises(ConfigError, match="no rule"):
        kgcoop.fit(tiny_clip(), examples(), kgcoop.Config(recipe=Recipe(epochs=None, views=0)))


def test_the_schedule_never_reaches_zero():
    recipe = Recipe(epochs=10, lr=1.0)
    assert recipe.rate(0) == 1e-5
    assert recipe.rate(1) == 1.0
    assert recipe.rate(9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 10))) == pytest.approx(0.095, abs=1e-3)
    assert Recipe(epochs=2, lr=0.0026).rate(1) == 0.0026
    assert dataclasses.replace(recipe, schedule="constant").rate(9) == 1.0


def test_a_step_with_all_pictures_lowers_the_loss():
    model, data = tiny_clip(), examples()
    losses = []
    config = coop.Config(length=2, recipe=Recipe(epochs=3, views=0, batch_size=64, lr=1e-3, warmup_epochs=0))
    coop.fit(model, data, config, progress=lambda record: losses.append(record["loss"]))
    assert losses == sorted(losses, reverse=True)


def published_rows(model, context, names, position):
    """The published layout: place-holders tokenised before the names, their embeddings replaced, all positions encoded."""
    tokenizer, number = model.tokenizer, len(context)
    ids = tokenizer([" ".join(["X"] * number) + f" {name}." for name in names])
    rows = []
    for name, row in zip(names, model.text.token_embedding(ids), strict=True):
        start, rest, length = row[:1], row[1 + number :], len(tokenizer.encode(name))
        before = {"end": number, "front": 0, "middle": number // 2}[position]
        own = rest[:length] if position != "end" else rest[:0]
        rows.append(torch.cat([start, context[:before], own, context[before:], rest[len(own) :]]))
    x = model.text.transformer(torch.stack(rows) + model.text.positional_embedding, causal=True)
    read = model.text.ln_final(x)[torch.arange(len(names)), ids.argmax(-1)]
    return torch.nn.functional.normalize(read @ model.text.text_projection, dim=-1)


@pytest.mark.parametrize("position", ["end", "front", "middle"])
def test_rows_are_those_of_the_published_layout(position):
    model = tiny_clip(seed=3).double()
    names = ("cat", "caf\u00e9 cr\u00e8me", "it's a/b", "2012 BMW M3", "kite (bird of prey)", "dog!", "{}")
    merging = 3 if position != "end" else 0  # a closing mark that the tokenizer merges with the stop: the code misplaces it
    addition = coop.CoOp(model, coop.Config(length=5, position=position), names, seed=1)
    found, expected = addition.weights(), published_rows(model, addition.context.double(), names, position)
    kept = len(names) - merging
    torch.testing.assert_close(found[:kept], expected[:kept], rtol=0, atol=1e-12)
    assert not merging or not torch.allclose(found[kept:], expected[kept:], atol=1e-3)
