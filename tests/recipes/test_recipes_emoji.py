"""The demo's batches and its evaluation: what training may see, and that planted answers are measured as what they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ostension.config import from_tree, to_tree
from ostension.data.embedded import load_emoji
from ostension.data.task import read_task
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.recipes import RECIPES, demo
from ostension.recipes._emoji_batches import EmojiBatches, EmojiBatchesConfig, thinned
from ostension.recipes._emoji_evaluation import EmojiEvaluation
from ostension.runtime import numpy_generator
from ostension.train.pretraining import Pretraining


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture(scope="module")
def model():
    return CLIP(demo.model(), seed=0).eval()


@pytest.fixture(scope="module")
def batches(emoji, model):
    config = demo.recipe(100).batches
    assert isinstance(config, EmojiBatchesConfig)
    return EmojiBatches(emoji, config, model)


def test_the_recipe_is_found_by_name_and_survives_as_a_tree():
    assert "demo" in RECIPES.names() and RECIPES.summary("demo")
    for made in (demo.recipe(), demo.smoke()):
        assert isinstance(made, Pretraining)
        assert from_tree(EmojiBatchesConfig, to_tree(made.batches)) == made.batches


def test_the_demo_asks_with_the_templates_of_the_emoji_task():
    assert read_task("emoji").prompt_templates() == demo.TEMPLATES


def test_a_batch_is_a_function_of_its_step(batches, emoji, model):
    again = EmojiBatches(emoji, batches.config, model)
    for step in (0, 7, 60):
        one, other = batches.batch(step), again.batch(step)
        assert torch.equal(one.images, other.images) and torch.equal(one.tokens, other.tokens) and one.keys == other.keys
    assert not torch.equal(batches.batch(3).images, batches.batch(4).images)


def test_the_parts_of_two_processes_make_the_batch_of_one(batches):
    whole, parts = batches.batch(5), [batches.batch(5, rank, 2) for rank in range(2)]
    for name in ("images", "tokens", "groups"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [key for part in parts for key in part.keys] == whole.keys
    assert sum(part.texts_cut for part in parts) == whole.texts_cut


def test_training_never_sees_the_held_out_style_or_a_held_out_name(batches, emoji):
    held_out = {concept.concept for concept in emoji.concepts if concept.held_out}
    assert len(held_out) == 245
    for step in range(0, 60, 3):
        for key in batches.batch(step).keys:
            style, _, concept = key.partition("-")
            assert style != "twemoji" and concept not in held_out


def test_a_batch_has_each_concept_once_in_different_styles_with_one_caption(batches):
    batch = batches.batch(5)
    concepts, drawings = batches.config.concepts, batches.config.drawings
    assert batch.images.shape == (concepts * drawings, 3, demo.SIDE, demo.SIDE) and len(batch) == batches.batch_size
    assert batch.groups.view(concepts, drawings).unique(dim=1).shape[1] == 1
    assert len(batch.groups.unique()) == concepts and len(set(batch.keys)) == len(batch.keys)
    for first in range(0, len(batch), drawings):
        assert (batch.tokens[first : first + drawings] == batch.tokens[first]).all()


def test_an_epoch_visits_nearly_every_seen_concept_once(batches):
    steps = batches.sampler.steps_per_epoch
    seen = torch.cat([batches.batch(step).groups.unique() for step in range(steps)])
    assert len(seen.unique()) == len(seen) == steps * batches.config.concepts


def test_captions_are_the_name_perhaps_with_keywords_in_a_template(batches, emoji):
    concept = next(concept for concept in emoji.concepts if concept.concept == "1F98A")
    random = numpy_generator(0, "captions")
    captions = {batches.caption(concept, random) for _ in range(300)}
    assert all("fox" in caption for caption in captions) and "fox" in captions and "an emoji of fox" in captions
    assert any(concept.tags[0] in caption for caption in captions)


def test_other_languages_share_half_of_the_captions(emoji, model):
    config = dataclasses.replace(demo.recipe(100, languages=("de", "ja")).batches)
    batches = EmojiBatches(emoji, config, model)
    concept = next(concept for concept in emoji.concepts if concept.concept == "1F98A")
    random = numpy_generator(1, "captions")
    captions = [batches.caption(concept, random) for _ in range(600)]
    for language in ("de", "ja"):
        assert captions.count(concept.names[language]) == pytest.approx(150, abs=50)


def test_the_augmentation_grows_over_its_ramp(batches):
    ramp = batches.config.ramp_steps
    assert [batches.strength(step) for step in (0, ramp // 2, ramp, 10 * ramp)] == [0.0, pytest.approx(0.5, abs=0.05), 1.0, 1.0]


def test_at_strength_zero_a_view_is_what_the_model_is_given_in_use(batches, emoji, model):
    from ostension.recipes._emoji_evaluation import pictures

    batch = batches.batch(0)
    index = {batches._key(row): row for row in emoji.rows("train")}
    rows = np.array([index[key] for key in batch.keys])
    used = model.transform.batch(pictures(emoji, rows))
    # Two ways from 64 to 32 pixels: bilinear at the centres of the new pixels, and Pillow's bicubic.
    assert float((batch.images - used).abs().mean()) < 0.25 and np.corrcoef(batch.images.flatten(), used.flatten())[0, 1] > 0.95


def test_thinning_keeps_a_share_of_the_seen_and_of_the_held_out_names(emoji):
    thin = thinned(emoji, 8)
    assert len(thin.concepts) == 31 + 174 and sum(concept.held_out for concept in thin.concepts) == 31
    assert len(thin.rows("new-style-new-names")) == 31 and thin.fingerprint != emoji.fingerprint
    row = int(thin.rows("train")[5])
    name = thin.concepts[thin.concept[row]].concept
    original = next(r for r in range(len(emoji)) if np.array_equal(emoji.pixels[r], thin.pixels[row]))
    assert emoji.concepts[emoji.concept[original]].concept == name


def test_settings_without_meaning_are_refused():
    config = demo.recipe(100).batches
    for change in ({"concepts": 0}, {"blend": 1.5}, {"templates": ()}, {"ramp_steps": -1}):
        with pytest.raises(ConfigError):
            dataclasses.replace(config, **change)


class Planted(EmojiEvaluation):
    """An evaluation of a model whose pictures lie at the given place between their name and noise."""

    noise = 0.0

    def __init__(self, model, emoji, templates, *, seed=0):
        original = CLIP.embed_images
        outer = self

        def embed_images(self, images, **options):
            weights = outer.ensemble.weights.numpy()
            rows = weights[emoji.concept[outer.embedded]]
            rows = rows + outer.noise * numpy_generator(0, "noise").normal(size=rows.shape)
            return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))

        CLIP.embed_images = embed_images
        try:
            super().__init__(model, emoji, templates, seed=seed)
        finally:
            CLIP.embed_images = original


@pytest.mark.slow
def test_a_model_that_knows_everything_is_measured_as_perfect(emoji, model):
    evaluation = Planted(model, thinned(emoji, 8), demo.TEMPLATES)
    records = {}
    for view in evaluation.views:
        records |= evaluation.measure_view(view)
    for name in ("seen-names", "new-names", "familiar-style", "all-names"):
        assert records[f"zero-shot/{name}"].metrics["top1"].value == 1.0
        assert records[f"retrieval/{name}"].metrics["text_to_image_r1"].value == 1.0
        assert 0 < records[f"nearest-pixels/{name}"].metrics["top1"].value < 1
        assert records[f"zero-shot/{name}"].metrics["top1"].chance == 1 / records[f"zero-shot/{name}"].counts["classes"]
    assert records["zero-shot/all-names"].counts == {"samples": 205, "classes": 205}


@pytest.mark.slow
def test_the_whole_evaluation_gives_records_galleries_answers_and_a_map(emoji, model):
    class Noisy(Planted):
        noise = 0.08

    thin = thinned(emoji, 8)
    evaluation = Noisy(model, thin, demo.TEMPLATES)
    found = evaluation.run(languages=("de",))
    assert {name.split("/")[0] for name in found.records} == {
        "zero-shot", "zero-shot-bare", "prompt-ensemble", "retrieval", "nearest-pixels", "linear-probe", "language",
    }  # fmt: skip
    probe = found.records["linear-probe/new-names"]
    assert probe.config["largest_gradient_norm"] <= 1e-5 and len(probe.metrics) >= 3
    held_out = {concept.name for concept in thin.concepts if concept.held_out}
    assert all(query.words in held_out and query.meant is not None for query in found.new_queries)
    assert not held_out & {query.words for query in found.seen_queries}
    for one in found.hits:
        assert one.best[0][0] == thin.concepts[thin.concept[one.row]].name
    for one in found.misses:
        assert one.best[0][0] != thin.concepts[thin.concept[one.row]].name
    assert len({tuple(cell) for cell in found.map_cells.tolist()}) == len(found.map_rows) == 205
