"""The Predictor contract on tiny random models: equation, ensembles, permutation, independence, saving."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.model.predictor import Predictor, unique_labels
from ostension.model.presets import preset
from ostension.runtime import numpy_generator, torch_generator
from ostension.text.prompts import class_names, fill

NAMES = ["red fox", "bear", "tabby cat", "wolf"]
TEMPLATES = ["a photo of a {}.", "{}", "a small drawing of the {}"]


@pytest.fixture(scope="module")
def model():
    return CLIP(preset("tiny-vit"), seed=0).eval()


@pytest.fixture(scope="module")
def images():
    pixels = numpy_generator(0, "images").integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch_generator(seed, "unit")), dim=-1)


def test_logits_are_the_scaled_cosines_and_probabilities_their_softmax(model, images):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    embeddings = model.embed_images(images)
    expected = model.scale().item() * embeddings @ predictor.weights.T
    torch.testing.assert_close(predictor.logits(embeddings), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(predictor.predict(images), expected.softmax(-1), rtol=0, atol=1e-5)


def test_the_ensemble_is_the_unit_mean_of_unit_prompt_embeddings(model):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    for name, row in zip(NAMES, predictor.weights, strict=True):
        prompts = model.embed_texts([fill(template, name) for template in TEMPLATES])
        torch.testing.assert_close(row, F.normalize(prompts.mean(0), dim=0), rtol=0, atol=1e-5)


def test_several_names_of_a_class_are_pooled_with_the_templates(model):
    predictor = Predictor.zero_shot(model, [["happy", "smiling"], ["sad"]], TEMPLATES)
    assert predictor.class_names == ("happy", "sad")
    prompts = model.embed_texts([fill(template, name) for name in ("happy", "smiling") for template in TEMPLATES])
    torch.testing.assert_close(predictor.weights[0], F.normalize(prompts.mean(0), dim=0), rtol=0, atol=1e-5)


def test_one_name_and_one_template_is_the_prompts_own_embedding(model):
    predictor = Predictor.zero_shot(model, ["bear"], ["{}"])
    torch.testing.assert_close(predictor.weights, model.embed_texts(["bear"]), rtol=0, atol=1e-5)


def test_permuted_names_permute_the_logits_exactly(model):
    weights, embeddings = unit(6, 16), unit(3, 16, seed=1)
    names, order = [f"class {i}" for i in range(6)], [4, 2, 0, 5, 1, 3]
    plain = Predictor(class_names=names, weights=weights, scale=20.0)
    permuted = Predictor(class_names=[names[i] for i in order], weights=weights[order], scale=20.0)
    assert torch.equal(permuted.logits(embeddings), plain.logits(embeddings)[:, order])
    zero_shot = [Predictor.zero_shot(model, chosen, TEMPLATES) for chosen in (NAMES, NAMES[::-1])]
    torch.testing.assert_close(zero_shot[1].weights, zero_shot[0].weights.flip(0), rtol=0, atol=1e-6)


def test_an_images_prediction_does_not_depend_on_its_companions(model, images):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    together = predictor.predict(images, batch_size=5)
    torch.testing.assert_close(predictor.predict(images, batch_size=2), together, rtol=0, atol=1e-6)
    for index, image in enumerate(images):
        torch.testing.assert_close(predictor.predict([image])[0], together[index], rtol=0, atol=1e-6)


def test_calling_gives_predictions_with_labels_best_first(model, images):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    results, probabilities = predictor(images), predictor.predict(images)
    assert len(results) == 5
    for result, row in zip(results, probabilities, strict=True):
        top = result.top(3)
        assert result.label == NAMES[int(row.argmax())] == top[0][0] and result.probability == pytest.approx(float(row.max()))
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
        assert len(result.top(99)) == 4 and sum(value for _, value in result.top(4)) == pytest.approx(1.0, abs=1e-5)


def test_one_picture_alone_counts_as_a_list_of_one(model, images):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    assert [result.label for result in predictor(images[0])] == [predictor(images[:1])[0].label]
    assert predictor([]) == []


def test_prediction_leaves_the_model_in_the_mode_that_it_was_in(model, images):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    model.train()
    try:
        predictor(images)
        assert model.training
    finally:
        model.eval()


def test_five_thousand_classes_are_fine(model):
    names = [f"thing number {i}" for i in range(5_000)]
    predictor = Predictor.zero_shot(model, names, ["{}"])
    assert predictor.weights.shape == (5_000, model.config.embed_dim)
    assert predictor.logits(unit(2, model.config.embed_dim)).shape == (2, 5_000)


def test_a_published_list_with_a_name_twice_gets_numbered_labels():
    labels = unique_labels([(name,) for name in class_names("imagenet")])
    assert len(set(labels)) == 1000
    assert [label for label in labels if label.startswith("missile")] == ["missile (657)", "missile (744)"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog", "cat"], r"class_names\[2\] is 'cat', as is class_names\[0\]"),
        (["cat", " "], r"class_names\[1\] is ' '"),
        ([], "class names"),
        ("cat", "class names are 'cat'"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(model, names, message):
    with pytest.raises(DataError, match=message):
        Predictor.zero_shot(model, names, ["{}"])
    with pytest.raises(DataError, match=message):
        Predictor(class_names=names, weights=unit(3, 4), scale=1.0)


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_templates_without_exactly_one_place_are_refused(model, template):
    with pytest.raises(ConfigError, match="one"):
        Predictor.zero_shot(model, NAMES, [template])


def test_braces_in_a_class_name_are_ordinary_characters(model):
    predictor = Predictor.zero_shot(model, ["{}", "set {a, b}"], ["the sign {}"])
    torch.testing.assert_close(predictor.weights, model.embed_texts(["the sign {}", "the sign set {a, b}"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(unit(2, 4), "one row for each of 3"), (2 * unit(3, 4), "norm 2"), (torch.full((3, 4), torch.nan), "norm nan")],
)
def test_weights_that_are_not_unit_rows_for_each_class_are_refused(weights, message):
    with pytest.raises(DataError, match=message):
        Predictor(class_names=["a", "b", "c"], weights=weights, scale=1.0)


def test_freezing_keeps_every_prediction(model):
    predictor, embeddings = Predictor.zero_shot(model, NAMES, TEMPLATES), unit(4, model.config.embed_dim)
    assert torch.equal(predictor.freeze().logits(embeddings), predictor.logits(embeddings))


class Rotating(Predictor):
    """W depends on the image: each image sees the rows scaled by its own sign pattern."""

    kind = "rotating-test"
    depends = "feature"

    def class_weights(self, embeddings):
        return self.weights[None] * embeddings.sign()[:, None, :]


def test_a_predictor_whose_matrix_depends_on_the_image_uses_each_images_own():
    weights, embeddings = unit(3, 8), unit(5, 8, seed=1)
    predictor = Rotating(class_names=["a", "b", "c"], weights=weights, scale=7.0)
    expected = torch.stack([7.0 * (weights * row.sign()) @ row for row in embeddings])
    torch.testing.assert_close(predictor.logits(embeddings), expected)
    with pytest.raises(ConfigError, match="depends on its feature"):
        predictor.freeze()


def test_a_derived_predictor_is_saved_and_loaded_as_itself(model, tmp_path):
    predictor = Rotating(class_names=NAMES, weights=unit(4, model.config.embed_dim), scale=7.0, encoder=model)
    predictor.save(tmp_path)
    loaded = Predictor.load(tmp_path, encoder=model)
    assert type(loaded) is Rotating and torch.equal(loaded.weights, predictor.weights)


def test_saving_and_loading_keeps_bits_names_templates_and_scale(model, images, tmp_path):
    predictor = Predictor.zero_shot(model, NAMES, TEMPLATES)
    predictor.save(tmp_path / "saved")
    loaded = Predictor.load(tmp_path / "saved", encoder=model)
    assert torch.equal(loaded.predict(images), predictor.predict(images))
    assert (loaded.class_names, loaded.templates, loaded.scale) == (tuple(NAMES), tuple(TEMPLATES), predictor.scale)
    record = json.loads((tmp_path / "saved" / "predictor.json").read_text())
    assert record["encoder"]["fingerprint"] == fingerprint(model)
    assert len(record["class_list_sha256"]) == len(record["prompts_sha256"]) == 64


def test_the_fingerprint_is_of_behaviour_not_of_name_or_loading_type(model):
    same = CLIP(dataclasses.replace(model.config, name="other", layout="openai"), seed=0)
    assert fingerprint(same) == fingerprint(model)
    assert fingerprint(CLIP(model.config, seed=0).to(torch.bfloat16)) == fingerprint(model)
    assert fingerprint(CLIP(model.config, seed=1)) != fingerprint(model)
    gelu = dataclasses.replace(model.config.text, activation="gelu_tanh")
    assert fingerprint(CLIP(dataclasses.replace(model.config, text=gelu), seed=0)) != fingerprint(model)


def test_another_encoder_is_refused_with_both_hashes(model, tmp_path):
    Predictor.zero_shot(model, NAMES, TEMPLATES).save(tmp_path)
    other = CLIP(model.config, seed=1)
    with pytest.raises(CheckpointError) as caught:
        Predictor.load(tmp_path, encoder=other)
    assert fingerprint(model) in str(caught.value) and fingerprint(other) in str(caught.value)


def test_a_predictor_finds_its_encoder_also_after_both_were_moved(model, images, tmp_path):
    import ostension

    ostension.save(model, tmp_path / "here" / "model")
    loaded = ostension.load(tmp_path / "here" / "model", dtype="float32", device="cpu")
    predictor = Predictor.zero_shot(loaded, NAMES, TEMPLATES)
    predictor.save(tmp_path / "here" / "classifier")
    (tmp_path / "here").rename(tmp_path / "there")
    found = Predictor.load(tmp_path / "there" / "classifier")
    assert found.class_names == tuple(NAMES) and fingerprint(found.encoder) == fingerprint(model)


def test_an_encoder_that_is_gone_or_was_never_saved_is_an_error(model, tmp_path):
    Predictor.zero_shot(model, NAMES, TEMPLATES).save(tmp_path)
    with pytest.raises(CheckpointError, match="was not saved"):
        Predictor.load(tmp_path)
    record = json.loads((tmp_path / "predictor.json").read_text())
    record["encoder"]["source"] = str(tmp_path / "gone")
    (tmp_path / "predictor.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="no longer at .*gone"):
        Predictor.load(tmp_path)


def test_predicting_from_images_without_an_encoder_is_an_error_and_from_embeddings_is_not():
    predictor = Predictor(class_names=["a", "b"], weights=unit(2, 4), scale=1.0)
    assert predictor.logits(unit(3, 4)).shape == (3, 2)
    with pytest.raises(ConfigError, match="no encoder"):
        predictor(torch.zeros(1, 3, 8, 8))




@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, record: (folder / "predictor.safetensors").unlink(), "cannot be read"),
        (lambda folder, record: (folder / "predictor.json").unlink(), "holds no predictor"),
        (lambda folder, record: (folder / "predictor.json").write_text("{"), "not JSON"),
        (lambda folder, record: record.pop("kind"), "not a predictor's record"),
        (lambda folder, record: record.update(format=9), "format 9"),
        (lambda folder, record: record.update(kind="no-such-kind"), "unknown kind"),
        (lambda folder, record: record["settings"]["class_names"].reverse(), "class names are not those"),
        (lambda folder, record: record["settings"]["class_names"].pop(), "not a usable predictor"),
        (lambda folder, record: record["settings"].pop("scale"), "not a usable predictor"),
    ],
)
def test_a_damaged_predictor_is_refused_with_the_reason(model, tmp_path, change, message):
    Predictor.zero_shot(model, NAMES, TEMPLATES).save(tmp_path)
    path = tmp_path / "predictor.json"
    record = json.loads(path.read_text())
    change(tmp_path, record)
    if path.exists() and path.read_text() != "{":
        path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(tmp_path, encoder=model)


def test_a_flipped_byte_in_the_tensors_is_refused(model, tmp_path):
    Predictor.zero_shot(model, NAMES, TEMPLATES).save(tmp_path)
    path = tmp_path / "predictor.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Predictor.load(tmp_path, encoder=model)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Predictor.load(tmp_path / "nowhere")
