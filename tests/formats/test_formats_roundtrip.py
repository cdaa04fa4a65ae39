"""Every layout gives back what was written, bit for bit, with everything that belongs to the weights."""

from __future__ import annotations

import dataclasses
import json

import numpy
import pytest
import torch
from format_samples import KINDS, inputs, random_model, same_weights

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.formats import big_vision, ours
from ostension.formats.load import load, save
from ostension.formats.table import to_theirs

FACTS = {"preprocess", "tokenizer", "vision", "text", "embed_dim", "logit_scale_cap"}


@pytest.mark.parametrize("kind", KINDS)
def test_our_folder_gives_back_the_weights_and_the_whole_configuration(kind, tmp_path):
    model = random_model(kind)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", dtype="float32")
    same_weights(model, again)
    assert again.config == model.config
    assert not again.training
    assert again.provenance["sha256"].keys() == {"config.json", "model.safetensors", "provenance.json", "tokenizer.json"}


FOREIGN = [(kind, layout) for kind in KINDS for layout in ("open_clip", "hf") if (kind, layout) != ("tiny-resnet", "hf")]


@pytest.mark.parametrize(("kind", "layout"), FOREIGN)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_a_foreign_folder_gives_back_the_weights_and_the_facts(kind, layout, activation, tmp_path):
    model = random_model(kind, activation=activation)
    save(model, tmp_path / "model", layout)
    again = load(tmp_path / "model", dtype="float32")
    same_weights(model, again)
    for part in ("embed_dim", "vision", "text", "logit_scale_cap", "init_logit_bias"):
        assert getattr(again.config, part) == getattr(model.config, part), part
    for part in ("image_size", "mean", "std", "resize", "interpolation"):
        assert getattr(again.config.preprocess, part) == getattr(model.config.preprocess, part)
    # Tokenizer files for transformers mean its cleaning and its padding; the vocabulary is kept.
    assert dataclasses.replace(again.config.tokenizer, mode="openai", pad="zero") == model.config.tokenizer


def test_the_end_token_rule_survives_hugging_face(tmp_path):
    model = random_model("tiny-vit")
    text = dataclasses.replace(model.config.text, pool="eos", eos_id=1023)
    model = random_model("tiny-vit", text=text)
    save(model, tmp_path / "eos", "hf")
    assert json.loads((tmp_path / "eos" / "config.json").read_text())["text_config"]["eos_token_id"] == 1023
    assert load(tmp_path / "eos", dtype="float32").config.text == text
    save(random_model("tiny-vit"), tmp_path / "argmax", "hf")
    # 2 is how the format says "read at the highest id".
    assert json.loads((tmp_path / "argmax" / "config.json").read_text())["text_config"]["eos_token_id"] == 2


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_big_vision_arrays_are_read_numbered_or_stacked(stacked, prefix, tmp_path):
    model = random_model("tiny-siglip")
    heads = {"visual": model.config.vision.heads, "text": model.config.text.heads}
    arrays = {name: part.numpy() for name, part in to_theirs(model.state_dict(), big_vision.layout(heads)).items()}
    assert arrays["img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"].shape == (48, 3, 16)
    assert arrays["img/embedding/kernel"].shape == (8, 8, 3, 48)
    assert arrays["t"].shape == (1,)
    if stacked:
        for name in [name for name in arrays if "encoderblock_0/" in name]:
            parts = [arrays.pop(name.replace("encoderblock_0/", f"encoderblock_{index}/")) for index in range(2)]
            arrays[name.replace("encoderblock_0/", "encoderblock/")] = numpy.stack(parts)
    numpy.savez(tmp_path / "siglip.npz", **{prefix + name: array for name, array in arrays.items()})
    with pytest.raises(CheckpointError, match="does not say its preprocess nor its tokenizer"):
        load(tmp_path / "siglip.npz")
    again = load(tmp_path / "siglip.npz", dtype="float32", preprocess="siglip", tokenizer="openai")
    same_weights(model, again)
    assert again.config.vision == model.config.vision
    assert again.config.text == model.config.text
    assert again.config.logit_scale_cap is None


def test_a_bare_state_dict_asks_for_what_it_cannot_say(tmp_path):
    model = random_model("tiny-resnet")
    vision = dataclasses.replace(model.config.vision, width=16)
    text = dataclasses.replace(model.config.text, width=64, head_width=64)
    model = random_model("tiny-resnet", vision=vision, text=text)
    path = tmp_path / "weights.pt"
    torch.save({name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="does not say its activation nor its preprocess nor its tokenizer") as caught:
        load(path)
    assert "--activation quick_gelu|gelu|gelu_tanh" in str(caught.value)
    again = load(path, dtype="float32", activation="gelu", preprocess="openai", tokenizer="openai")
    same_weights(model, again)
    assert again.config.vision == model.config.vision
    assert again.config.text == model.config.text
    assert again.provenance["facts"]["text.activation"] == {"value": "gelu", "from": "given"}


def test_an_activation_that_contradicts_the_file_is_refused(tmp_path):
    model = random_model("tiny-vit", activation="quick_gelu")
    save(model, tmp_path / "a", "open_clip")
    with pytest.raises(CheckpointError, match=r"'gelu' was given, but the vision tower's is 'quick_gelu' \(open_clip_config"):
        load(tmp_path / "a", activation="gelu")
    save(model, tmp_path / "b")
    with pytest.raises(CheckpointError, match="text tower's is 'quick_gelu'"):
        load(tmp_path / "b", activation="gelu")
    load(tmp_path / "b", activation="quick_gelu", dtype="float32")


def test_a_residual_network_cannot_be_a_hugging_face_folder(tmp_path):
    with pytest.raises(CheckpointError, match="CLIP has no residual network; .* write --to open_clip or ostension"):
        save(random_model("tiny-resnet"), tmp_path / "model", "hf")


@pytest.mark.parametrize("layout", ["open_clip", "hf"])
def test_a_layout_refuses_what_it_cannot_say(layout, tmp_path):
    model = random_model("tiny-vit")
    odd = random_model("tiny-vit", vision=dataclasses.replace(model.config.vision, class_token=False, pool="mean"))
    with pytest.raises(CheckpointError, match="cannot say vision.class_token = False"):
        save(odd, tmp_path / "odd", layout)
    assert not (tmp_path / "odd").exists()
    assert list(tmp_path.iterdir()) == []


def test_two_activations_cannot_be_said_by_open_clip_but_by_hugging_face(tmp_path):
    model = random_model("tiny-vit")
    model = random_model("tiny-vit", text=dataclasses.replace(model.config.text, activation="quick_gelu"))
    with pytest.raises(CheckpointError, match="two activations, gelu and quick_gelu"):
        save(model, tmp_path / "a", "open_clip")
    save(model, tmp_path / "b", "hf")
    assert load(tmp_path / "b", dtype="float32").config.text.activation == "quick_gelu"


def test_the_logit_scale_has_clips_cap_unless_the_file_is_past_it(tmp_path):
    model = random_model("tiny-vit")
    for value, cap in ((4.6051702, 100.0), (4.7, None)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        save(model, tmp_path / str(value), "hf")
        assert load(tmp_path / str(value), dtype="float32").config.logit_scale_cap == cap


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_are_cast_and_the_logit_scale_is_not(dtype, tmp_path):
    model = random_model("tiny-siglip")
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", dtype=dtype)
    assert again.dtype == getattr(torch, dtype)
    assert torch.equal(again.visual.conv1.weight, model.visual.conv1.weight.to(again.dtype))
    assert again.logit_scale.dtype == again.logit_bias.dtype == torch.float32


def test_position_embeddings_are_interpolated_on_request(tmp_path):
    for kind, size in (("tiny-vit", 48), ("tiny-siglip", 48), ("tiny-resnet", 96)):
        model = random_model(kind)
        save(model, tmp_path / kind)
        larger = load(tmp_path / kind, dtype="float32", image_size=size, context_length=12)
        assert larger.config.preprocess.image_size == larger.config.vision.image_size == size
        assert larger.tokenizer.context_length == larger.config.text.context_length == 12
        images, tokens = inputs(larger)
        assert larger.encode_image(images).shape == larger.encode_text(tokens).shape
    first, grid = model.visual.attnpool.positional_embedding, larger.visual.attnpool.positional_embedding
    assert torch.equal(first[0], grid[0])
    assert grid.shape[0] == 10
    with pytest.raises(ConfigError, match="vision.image_size is 50; expected a multiple of 32"):
        load(tmp_path / "tiny-resnet", image_size=50)


def test_unknown_names_list_the_nearest(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model")
    with pytest.raises(ConfigError, match="unknown layout 'open_clap'.*'open_clip'"):
        load(tmp_path / "model", layout="open_clap")
    with pytest.raises(ConfigError, match="unknown layout to write 'hugging'"):
        save(random_model("tiny-vit"), tmp_path / "other", "hugging")
    with pytest.raises(ConfigError, match="unknown preprocessing family 'opnai'.*'openai'"):
        load(tmp_path / "model", preprocess="opnai")


def test_config_json_is_the_tree_of_the_configuration(tmp_path):
    model = random_model("tiny-vit")
    save(model, tmp_path / "model")
    tree = json.loads((tmp_path / "model" / ours.CONFIG).read_text())
    assert tree == to_tree(model.config)
    assert tree.keys() >= FACTS
    tree["vision"]["activatoin"] = "gelu"
    (tmp_path / "model" / ours.CONFIG).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"unknown setting 'vision.activatoin'.*'activation'|nearest"):
        load(tmp_path / "model", verify=False)


def test_the_record_that_travels_with_a_model_does_not_say_where_it_lay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(random_model("tiny-vit"), "first", "open_clip")
    model = load("first", dtype="float32")
    assert model.config.name == "first"
    assert model.provenance["source"] == str(tmp_path / "first")
    save(model, "second")
    text = (tmp_path / "second" / "provenance.json").read_text()
    assert json.loads(text)["source"] == "first"
    assert str(tmp_path) not in text
