"""The encoder's contract and the calls for users."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ostension.errors import ConfigError, DataError
from ostension.model import clip
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator

NAMES = ("cat", "dog", "black bear", "crane (bird)", "aircraft carrier")
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "{}", "a photo of the small {}, outdoors")


def pictures(count=3):
    random = numpy_generator(0, "pictures")
    return [Image.fromarray(random.integers(0, 256, (40, 50, 3), "uint8")) for _ in range(count)]


def test_logits_are_scale_times_cosine_plus_bias(tiny):
    for name in ("tiny-vit", "tiny-siglip"):
        model, images = tiny(name), torch.randn(2, 3, 32, 32)
        tokens = model.tokenizer(["a cat", "a dog", "a bird"])
        cosines = F.normalize(model.encode_image(images)) @ F.normalize(model.encode_text(tokens)).T
        expected = model.logit_scale.exp() * cosines + (0 if model.logit_bias is None else model.logit_bias)
        assert torch.allclose(model(images, tokens), expected, atol=1e-5)


def test_the_scale_is_capped_and_past_the_cap_has_no_gradient(tiny):
    model = tiny("tiny-vit")
    assert float(model.scale().detach()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(5.0)
    model.scale().backward()
    assert float(model.scale().detach()) == pytest.approx(100) and float(model.logit_scale.grad) == 0


def test_without_a_cap_the_scale_may_grow(tiny):
    model = tiny("tiny-siglip")
    with torch.no_grad():
        model.logit_scale.fill_(5.0)
    assert float(model.scale().detach()) == pytest.approx(math.exp(5.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_are_cast_to_the_weights_and_normalised_rows_are_float32_or_wider(tiny, dtype):
    model = tiny("tiny-vit").to(dtype)
    images, tokens = torch.randn(2, 3, 32, 32), model.tokenizer(["a cat", "a dog"])
    assert model.dtype == dtype
    wide = dtype if dtype == torch.float64 else torch.float32
    for encode, batch in ((model.encode_image, images), (model.encode_text, tokens)):
        assert encode(batch).dtype == dtype
        rows = encode(batch, normalize=True)
        assert rows.dtype == wide
        assert torch.allclose(rows.norm(dim=1), torch.ones(2, dtype=wide), atol=1e-6)


def test_casting_keeps_the_logit_scale_in_float32(tiny):
    model = tiny("tiny-siglip")
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    for cast in (model.bfloat16, model.half, lambda: model.to("cpu", torch.bfloat16)):
        cast()
        assert model.logit_scale.dtype == torch.float32 and model.logit_bias.dtype == torch.float32
        assert float(model.logit_scale.detach()) == pytest.approx(4.6052)
        assert model.text.text_projection.dtype in (torch.bfloat16, torch.float16)


def test_a_model_built_on_meta_takes_weights_by_assignment(tiny):
    weights = tiny("tiny-vit").state_dict()
    with torch.device("meta"):
        model = CLIP(preset("tiny-vit"))
    model.load_state_dict(weights, assign=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_pictures_become_unit_rows_however_they_are_given(tiny, tmp_path):
    model, images = tiny("tiny-vit"), pictures()
    paths, contents = [], []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
        contents.append(paths[-1].read_bytes())
    rows = model.embed_images(images)
    assert rows.shape == (3, 32) and rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))
    for given in (paths, [str(path) for path in paths], contents, model.transform.batch(images)):
        assert torch.equal(model.embed_images(given), rows)
    assert torch.allclose(model.embed_images(images, batch_size=1), rows, atol=1e-6)
    assert model.embed_images([]).shape == (0, 32)


def test_texts_become_unit_rows(tiny):
    model = tiny("tiny-vit")
    rows = model.embed_texts(["a cat", "a dog", "a cat"])
    assert torch.equal(rows[0], rows[2]) and torch.allclose(rows.norm(dim=1), torch.ones(3))
    assert torch.allclose(model.embed_texts("a dog")[0], rows[1], atol=1e-6)
    assert torch.allclose(model.embed_texts(["a cat", "a dog", "a cat"], batch_size=2), rows, atol=1e-6)
    assert model.embed_texts([]).shape == (0, 32)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_uses_running_statistics_and_restores_the_mode(tiny, training):
    model = tiny("tiny-resnet").train(training)
    images = torch.randn(4, 3, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.allclose(model.embed_images(images)[:2], model.embed_images(images[:2]), atol=1e-6)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip"])
@pytest.mark.parametrize("rows", [16384, 7, 1])
def test_a_class_is_the_mean_of_its_prompts_unit_embeddings(tiny, monkeypatch, name, rows):
    model = tiny(name)
    monkeypatch.setattr(clip, "GRID_ROWS", rows)
    prompts = [template.format(class_name) for class_name in NAMES for template in TEMPLATES]
    with torch.no_grad():
        plain = F.normalize(model.encode_text(model.tokenizer(prompts), plain=True))
    expected = F.normalize(plain.view(len(NAMES), len(TEMPLATES), -1).mean(dim=1))
    assert torch.allclose(model.class_embeddings(NAMES, TEMPLATES), expected, atol=1e-6)


def test_a_classifier_predicts_with_the_nearest_class(tiny):
    model = tiny("tiny-vit")
    classifier = model.classifier(NAMES, TEMPLATES)
    results = classifier(pictures())
    cosines = model.embed_images(pictures()) @ model.class_embeddings(NAMES, TEMPLATES).T
    assert [result.label for result in results] == [NAMES[i] for i in cosines.argmax(dim=1)]
    expected = (cosines * model.scale()).softmax(dim=1).max(dim=1).values
    assert [result.probability for result in results] == pytest.approx(expected.tolist(), abs=1e-5)


def test_checkpointing_changes_no_image_gradient(tiny):
    for name, size in (("tiny-vit", 32), ("tiny-resnet", 64)):
        model, images = tiny(name).double(), torch.randn(2, 3, size, size, dtype=torch.float64)
        gradients = []
        for checkpointing in (False, True):
            model.set_checkpointing(image=checkpointing)
            gradients.append(torch.autograd.grad(model.encode_image(images).square().sum(), list(model.visual.parameters())))
        assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*gradients, strict=True))


def test_checkpointing_keeps_fewer_activations(tiny):
    model, images = tiny("tiny-vit"), torch.randn(2, 3, 32, 32)
    kept = []
    for checkpointing in (False, True):
        model.set_checkpointing(image=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            model.encode_image(images)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_the_tokenizer_and_the_transform_belong_to_the_configuration(tiny):
    model = tiny("tiny-vit")
    assert model.tokenizer is model.tokenizer and model.tokenizer.config == model.config.tokenizer
    assert model.transform.config == model.config.preprocess
    buffer = io.BytesIO()
    pictures()[0].save(buffer, "PNG")
    assert model.transform(buffer.getvalue()).shape == (3, 32, 32)


def test_a_configuration_whose_parts_disagree_is_refused():
    config = preset("tiny-vit")
    with pytest.raises(ConfigError, match="preprocess.image_size is 64"):
        dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, image_size=64))
    with pytest.raises(ConfigError, match="tokenizer.context_length is 30"):
        dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, context_length=30))
    with pytest.raises(ConfigError, match="embed_dim is 32; expected the vision width 48"):
        dataclasses.replace(config, vision=dataclasses.replace(config.vision, projection=False))


def test_images_of_another_size_are_refused(tiny):
    with pytest.raises(DataError, match=r"\(2, 3, 64, 64\); expected \(B, 3, 32, 32\)"):
        tiny("tiny-vit").encode_image(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("wrong", [-1, 1024])
def test_ids_outside_the_vocabulary_are_refused(tiny, wrong):
    tokens = torch.zeros(2, 24, dtype=torch.int64)
    tokens[1, 3] = wrong
    with pytest.raises(DataError, match="expected ids from 0 to 1023"):
        tiny("tiny-vit").encode_text(tokens)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip", "tiny-resnet"])
@pytest.mark.parametrize("gradients", [True, False])
def test_an_empty_batch_gives_an_empty_one(tiny, name, gradients):
    model = tiny(name)
    size = model.config.vision.image_size
    with torch.set_grad_enabled(gradients):
        assert model.encode_image(torch.zeros(0, 3, size, size)).shape == (0, model.config.embed_dim)
        assert model.encode_text(torch.zeros(0, 24, dtype=torch.int64)).shape == (0, model.config.embed_dim)
