"""Hugging Face folders in both directions, against transformers itself."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from format_samples import inputs, random_model

from ostension.errors import CheckpointError
from ostension.formats import hf_clip, siglip
from ostension.formats.load import load, save
from ostension.formats.table import expected_shapes, to_theirs
from ostension.model.presets import preset

transformers = pytest.importorskip("transformers")
# The first of these tests imports transformers, which takes seconds.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TEXT = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 700}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def hf_model(kind: str, activation: str, folder, **text):
    """A tiny random model of transformers, saved in `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "clip":
            config = transformers.CLIPConfig(
                text_config=TEXT | {"hidden_act": activation, "max_position_embeddings": 20} | text,
                vision_config=VISION | {"hidden_act": activation},
                projection_dim=40,
            )
            model = transformers.CLIPModel(config)
        else:
            config = transformers.SiglipConfig(
                text_config=TEXT
                | {
                    "hidden_act": activation,
                    "max_position_embeddings": 20,
                    "projection_size": 64,
                    "bos_token_id": None,
                    "eos_token_id": 1,
                }
                | text,
                vision_config=VISION | {"hidden_act": activation},
            )
            model = transformers.SiglipModel(config)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn(tensor.shape) * 0.1)
    model.eval().save_pretrained(folder)
    return model


def assert_same_outputs(theirs, ours, images, tokens):
    with torch.no_grad():
        out = theirs(pixel_values=images, input_ids=tokens)
        image, text = ours.encode_image(images, normalize=True), ours.encode_text(tokens, normalize=True)
        assert torch.allclose(image, out.image_embeds, atol=1e-5)
        assert torch.allclose(text, out.text_embeds, atol=1e-5)
        assert torch.allclose(ours(images, tokens), out.logits_per_image, atol=1e-4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_model_saved_by_transformers_encodes_the_same_here(kind, activation, tmp_path):
    theirs = hf_model(kind, activation, tmp_path)
    ours = load(tmp_path, dtype="float32", preprocess="openai" if kind == "clip" else "siglip", tokenizer="hf")
    assert ours.config.vision.activation == ours.config.text.activation == activation.replace("pytorch_", "")
    assert ours.config.vision.mlp_width == 128
    images, tokens = inputs(ours)
    # A CLIP configuration without another end token reads at the first 49407, which no id of this vocabulary is.
    if kind == "clip":
        assert (ours.config.text.pool, ours.config.text.eos_id) == ("eos", 49407)
    assert_same_outputs(theirs, ours, images, tokens)


@pytest.mark.parametrize(("end", "pool"), [(2, "argmax"), (699, "eos"), (5, "eos")])
def test_the_end_token_rule_is_transformers_own(end, pool, tmp_path):
    theirs = hf_model("clip", "gelu", tmp_path, eos_token_id=end)
    ours = load(tmp_path, dtype="float32", preprocess="openai", tokenizer="hf")
    assert ours.config.text.pool == pool
    images, tokens = inputs(ours)
    tokens[:, 3] = 5
    assert_same_outputs(theirs, ours, images, tokens)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("kind", "name"), [("tiny-vit", "CLIPModel"), ("tiny-siglip", "SiglipModel")])
def test_a_folder_written_here_encodes_the_same_in_transformers(kind, name, activation, tmp_path):
    ours = random_model(kind, activation=activation)
    save(ours, tmp_path / "model", "hf")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
    assert_same_outputs(theirs, ours, *inputs(ours))


def test_the_tokenizer_written_here_gives_our_ids_in_transformers(tmp_path):
    ours = random_model("tiny-vit")
    save(ours, tmp_path / "model", "hf")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", dtype="float32").tokenizer
    texts = ["a photo of a cat", "Zwölf  42 & naïve!", "", "🦜 parrot's"]
    found = theirs(texts, padding="max_length", truncation=True, max_length=24)["input_ids"]
    assert again(texts).tolist() == found


def test_the_image_processor_written_here_is_read_by_transformers(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    tree = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "model")
    assert processor.crop_size == tree["crop_size"] == {"height": 32, "width": 32}
    import numpy
    from PIL import Image

    from ostension.image.transforms import Transform

    pixels = numpy.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=numpy.uint8)
    theirs = torch.from_numpy(numpy.asarray(processor(Image.fromarray(pixels))["pixel_values"][0]))
    ours = Transform(load(tmp_path / "model", dtype="float32").config.preprocess)(Image.fromarray(pixels))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_sentencepiece_model_travels_in_both_directions(tmp_path):
    import dataclasses
    import io

    import sentencepiece

    from ostension.text.sentencepiece import SentencePieceTokenizer
    from ostension.text.tokenizer import SentencePieceConfig

    stream = io.BytesIO()
    words = ["a photo of a cat", "the dog runs over the hill", "twelve small red houses by the sea", "many pictures"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=stream,
        vocab_size=64,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
        control_symbols=["<zero>"],
    )
    config = SentencePieceConfig(context_length=24, vocab_size=1024)
    model = random_model("tiny-siglip", tokenizer=config)
    model.tokenizer = SentencePieceTokenizer(config, stream.getvalue())
    expected = model.tokenizer(["A photo, of a cat!"])
    for layout in ("ostension", "open_clip", "hf"):
        save(model, tmp_path / layout, layout)
        again = load(tmp_path / layout, dtype="float32")
        assert dataclasses.asdict(again.config.tokenizer) == dataclasses.asdict(config), layout
        assert torch.equal(again.tokenizer(["A photo, of a cat!"]), expected)
    theirs = transformers.SiglipTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(["A photo, of a cat!"], padding="max_length", max_length=24)["input_ids"] == expected.tolist()


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "ViT-SO400M-14-SigLIP-384"]
)
def test_names_and_shapes_at_true_size_are_those_of_transformers(name, tmp_path):
    config = preset(name)
    kind = siglip if config.init_logit_bias is not None else hf_clip
    tree = kind.write_config(config, "float32")
    with torch.device("meta"), warnings.catch_warnings():
        theirs = getattr(transformers, tree["architectures"][0])(
            getattr(transformers, tree["architectures"][0].replace("Model", "Config"))(**tree)
        )
        ours = to_theirs({key: torch.empty(shape) for key, shape in expected_shapes(config).items()}, kind.entry)
    expected = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items() if not key.endswith("position_ids")}
    assert {key: tuple(tensor.shape) for key, tensor in ours.items()} == expected


def test_an_old_configuration_with_dict_entries_is_read_as_transformers_does(tmp_path):
    theirs = hf_model("clip", "gelu", tmp_path)
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text())
    # What transformers 4.2x wrote: the real settings under *_config_dict, others beside them, and nulls.
    tree["text_config_dict"] = {
        **TEXT,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 20,
        "eos_token_id": 2,
        "layer_norm_eps": None,
    }
    tree["vision_config_dict"] = None
    path.write_text(json.dumps(tree))
    ours = load(tmp_path, dtype="float32", preprocess="openai", tokenizer="hf")
    assert ours.config.text.activation == "quick_gelu"
    assert ours.config.text.pool == "argmax"
    assert ours.config.vision.activation == "gelu"
    del theirs


def test_a_model_in_parts_is_read_through_its_index(tmp_path):
    theirs = hf_model("clip", "gelu", tmp_path / "whole", eos_token_id=2)
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    ours = load(tmp_path / "parts", dtype="float32", preprocess="openai", tokenizer="hf")
    assert_same_outputs(theirs, ours, *inputs(ours))
    index = tmp_path / "parts" / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    first = next(iter(tree["weight_map"]))
    for name in ("../whole/model.safetensors", "/etc/passwd", ".."):
        index.write_text(json.dumps({"weight_map": tree["weight_map"] | {first: name}}))
        with pytest.raises(CheckpointError, match="expected a plain file name"):
            load(tmp_path / "parts")


def test_another_vocabulary_is_refused(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    path = tmp_path / "model" / "vocab.json"
    tree = json.loads(path.read_text())
    tree["!"], tree['"'] = tree['"'], tree["!"]
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="the tokenizer is another one: 0 is"):
        load(tmp_path / "model")


def test_a_crop_out_of_a_longer_short_side_is_read_as_it_is(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 40}}))
    found = load(tmp_path / "model", device="cpu", dtype="float32").config.preprocess
    assert (found.image_size, found.short_side) == (32, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"resample": 1}, r"resample is 1; expected one of 2 \(bilinear\), 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 24}}, "crop_size is 32 and size is 24"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"image_mean": None}, "image_mean is None; expected three numbers"),
        ({"size": {"height": 32, "width": 40}}, "expected a square"),
    ],
)
def test_preprocessing_that_cannot_be_repeated_is_refused(change, message, tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model")


def test_an_unknown_activation_is_refused(tmp_path):
    hf_model("clip", "gelu", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"mish"'))
    with pytest.raises(CheckpointError, match="hidden_act is 'mish'; expected one of 'quick_gelu', 'gelu'"):
        load(tmp_path)
