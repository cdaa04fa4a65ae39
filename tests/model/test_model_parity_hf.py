"""Outputs against Hugging Face transformers, with random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.presets import preset

transformers = pytest.importorskip("transformers")

HF_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def hf_blocks(state, ours, theirs):
    """The blocks' tensors under Hugging Face's names."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(f"{ours}.transformer.resblocks."):
            continue
        index, rest = name.removeprefix(f"{ours}.transformer.resblocks.").split(".", 1)
        stem = f"{theirs}.encoder.layers.{index}."
        kind = rest.rsplit(".", 1)[-1]
        if rest.startswith("attn.in_proj_"):
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{stem}self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = value
        else:
            target = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                      "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}[rest.rsplit(".", 1)[0]]  # fmt: skip
            renamed[f"{stem}{target}.{kind}"] = tensor
    return renamed


def hf_clip(model):
    """A `CLIPModel` with the weights of `model`."""
    vision, text = model.config.vision, model.config.text
    common = {"attn_implementation": "eager"}
    config = transformers.CLIPConfig(
        projection_dim=model.config.embed_dim,
        text_config={
            "hidden_size": text.width, "intermediate_size": text.mlp_width, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length,
            "hidden_act": HF_ACTIVATIONS[text.activation], "eos_token_id": 2 if text.pool == "argmax" else text.eos_id,
            "bos_token_id": text.vocab_size - 2, "pad_token_id": 0, "projection_dim": model.config.embed_dim,
        },
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.mlp_width, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "patch_size": vision.patch_size, "image_size": vision.image_size,
            "hidden_act": HF_ACTIVATIONS[vision.activation], "projection_dim": model.config.embed_dim,
        },
        **common,
    )  # fmt: skip
    state = model.state_dict()
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["text.positional_embedding"],
        "text_projection.weight": state["text.text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "visual_projection.weight": state["visual.proj"].T,
        "logit_scale": state["logit_scale"],
        **{f"text_model.final_layer_norm.{kind}": state[f"text.ln_final.{kind}"] for kind in ("weight", "bias")},
        **{f"vision_model.pre_layrnorm.{kind}": state[f"visual.ln_pre.{kind}"] for kind in ("weight", "bias")},
        **{f"vision_model.post_layernorm.{kind}": state[f"visual.ln_post.{kind}"] for kind in ("weight", "bias")},
        **hf_blocks(state, "visual", "vision_model"),
        **hf_blocks(state, "text", "text_model"),
    }
    theirs = transformers.CLIPModel(config).eval()
    theirs.load_state_dict(renamed)
    return theirs


def hf_siglip(model):
    """A `SiglipModel` with the weights of `model`."""
    vision, text = model.config.vision, model.config.text
    config = transformers.SiglipConfig(
        text_config={
            "hidden_size": text.width, "intermediate_size": text.mlp_width, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length,
            "hidden_act": HF_ACTIVATIONS[text.activation], "projection_size": text.width,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.mlp_width, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "patch_size": vision.patch_size, "image_size": vision.image_size,
            "hidden_act": HF_ACTIVATIONS[vision.activation],
        },
        attn_implementation="eager",
    )  # fmt: skip
    state = model.state_dict()
    head = "vision_model.head."
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["text.positional_embedding"],
        "text_model.head.weight": state["text.text_projection"].T,
        "text_model.head.bias": state["text.text_projection_bias"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.patch_embedding.bias": state["visual.conv1.bias"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        head + "probe": state["visual.attn_pool.probe"],
        "logit_scale": state["logit_scale"].view(1),
        "logit_bias": state["logit_bias"].view(1),
        **hf_blocks(state, "visual", "vision_model"),
        **hf_blocks(state, "text", "text_model"),
    }
    for kind in ("weight", "bias"):
        renamed[f"text_model.final_layer_norm.{kind}"] = state[f"text.ln_final.{kind}"]
        renamed[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        renamed[f"{head}attention.in_proj_{kind}"] = state[f"visual.attn_pool.attn.in_proj_{kind}"]
        renamed[f"{head}attention.out_proj.{kind}"] = state[f"visual.attn_pool.attn.out_proj.{kind}"]
        renamed[f"{head}layernorm.{kind}"] = state[f"visual.attn_pool.ln.{kind}"]
        renamed[f"{head}mlp.fc1.{kind}"] = state[f"visual.attn_pool.mlp.c_fc.{kind}"]
        renamed[f"{head}mlp.fc2.{kind}"] = state[f"visual.attn_pool.mlp.c_proj.{kind}"]
    theirs = transformers.SiglipModel(config).eval()
    theirs.load_state_dict(renamed)
    return theirs


def assert_equal_outputs(model, theirs, images, tokens):
    with torch.no_grad():
        output = theirs(input_ids=tokens, pixel_values=images)
        pairs = {
            "image": (model.encode_image(images, normalize=True), output.image_embeds),
            "text": (model.encode_text(tokens, normalize=True), output.text_embeds),
            "plain text": (model.encode_text(tokens, normalize=True, plain=True), output.text_embeds),
            "logits": (model(images, tokens), output.logits_per_image),
        }
    for name, (ours, other) in pairs.items():
        scale = max(1.0, float(other.abs().max()))
        assert (ours - other).abs().max() / scale < 1e-5, name


def with_towers(config, **changes):
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, **changes.get("vision", {})),
        text=dataclasses.replace(config.text, **changes.get("text", {})),
    )  # fmt: skip


@pytest.mark.parametrize("activation", HF_ACTIVATIONS)
@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_clip_agrees_with_hugging_face(tiny, tokens, activation, pool):
    text = {"activation": activation, "pool": pool, "eos_id": 1000 if pool == "eos" else None}
    model = tiny(with_towers(preset("tiny-vit"), vision={"activation": activation}, text=text))
    if pool == "eos":  # ends and is padded with an id below the start token's
        tokens = torch.where((tokens == 0) | (tokens == 1023), 1000, tokens)
    assert_equal_outputs(model, hf_clip(model), torch.randn(3, 3, 32, 32), tokens)


@pytest.mark.parametrize("activation", HF_ACTIVATIONS)
def test_siglip_agrees_with_hugging_face(tiny, tokens, activation):
    config = with_towers(preset("tiny-siglip"), vision={"activation": activation}, text={"activation": activation})
    model = tiny(config)
    assert_equal_outputs(model, hf_siglip(model), torch.randn(3, 3, 32, 32), tokens)


@pytest.mark.slow
def test_vit_b_32_at_its_true_size_agrees_with_hugging_face():
    model = CLIP(preset("ViT-B-32")).eval()
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([49406, 320, 2368, 49407])
    tokens[1, :7] = torch.tensor([49406, 320, 1125, 539, 320, 2368, 49407])
    tokens[2] = torch.tensor([49406, *range(1000, 1075), 49407])
    assert_equal_outputs(model, hf_clip(model), torch.randn(2, 3, 224, 224), tokens)
