"""Export: every tower as a graph with free sizes, folders that describe themselves, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch

import ostension
from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.export.engines import EngineEncoder, encoder_of_export, engine_encoder, load_encoder, open_tower
from ostension.export.folder import open_export
from ostension.export.graphs import free_length
from ostension.export.parity import compare, encoder_of, probe_batches
from ostension.export.write import Options, write_export, write_openvino
from ostension.formats.convert import probes
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig, VitConfig
from ostension.model.presets import preset
from ostension.model.towers.config import BagConfig, BertConfig, EfficientNetConfig, Stage
from ostension.runtime import torch_generator
from ostension.store.key import ModelKey

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

# Rounding of float32 in two orders of summation: measured 1e-7 to 5e-7 on unit rows.
CLOSE = 1e-5
VOCABULARY = preset("tiny-vit").text.vocab_size
TEXTS = ["a cat", "two dogs on the beach", "rain"]


def tiny(name: str = "tiny-vit", *, layers=2, text_layers: int = 2, **text) -> CLIP:
    """A preset with fewer layers, for recording a graph takes a second a block."""
    config = preset(name)
    vision = dataclasses.replace(config.vision, layers=layers)
    return CLIP(
        dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, layers=text_layers, **text))
    ).eval()


def small(vision=None, text=None) -> CLIP:
    """A model of towers that no preset has."""
    base = preset("tiny-vit")
    text = text or BertConfig(context_length=24, vocab_size=VOCABULARY, width=32, layers=1, head_width=16, pool="mean")
    vision = vision or VitConfig(
        image_size=32, patch_size=16, width=32, layers=1, head_width=16, activation="gelu", pool="mean", class_token=False
    )
    parts = {"vision": vision, "text": text, "preprocess": base.preprocess, "tokenizer": base.tokenizer}
    return CLIP(ModelConfig(embed_dim=16, **parts)).eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def encoder(request, folder):
    return encoder_of_export(open_export(folder), request.param, precision="float32")


def same(one, two, bound=CLOSE):
    """Whether two encoders give the same unit embeddings of either side."""
    for side in ("image", "text"):
        found = compare(encoder_of(one, side), encoder_of(two, side), probe_batches(one, side))
        assert found.largest < bound, (side, found)


def test_an_exported_model_gives_the_embeddings_of_the_model_at_every_batch_size_and_length(model, encoder):
    same(model, encoder)
    assert encoder.embed_texts(TEXTS).shape == (3, 32)


def test_texts_of_different_lengths_keep_their_order_and_may_be_padded_further(model, encoder):
    tokens = model.tokenizer([*TEXTS, "a", *TEXTS[::-1]])
    shortest = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
    for rows in (tokens, shortest):
        found = encoder.encode_text(rows, normalize=True)
        torch.testing.assert_close(found, model.encode_text(rows, normalize=True).detach(), atol=CLOSE, rtol=0)


def test_plain_unit_and_pooled_outputs_are_the_models(model, encoder):
    pixels = probes(model)[0]
    with torch.no_grad():
        ours = model.image_features(pixels, ("pooled", "embedding"))
    theirs = encoder.image_features(pixels, ("pooled", "embedding"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-4)
    tokens = model.tokenizer(TEXTS)
    with torch.no_grad():
        wanted = model.text_features(tokens, ("pooled",))["pooled"]
    torch.testing.assert_close(encoder.text_features(tokens, ("pooled",))["pooled"], wanted, atol=1e-4, rtol=1e-4)


def test_no_rows_give_no_rows(encoder):
    assert encoder.embed_images([]).shape == (0, 32)
    assert encoder.embed_texts([]).shape == (0, 32)
    assert encoder.encode_image(torch.zeros(0, 3, 32, 32)).shape == (0, 32)
    assert encoder.encode_text(torch.zeros(0, 24, dtype=torch.int64)).shape == (0, 32)


def test_a_classifier_and_its_saved_form_are_those_of_the_model(model, encoder, tmp_path):
    pixels = probes(model)[0]
    ours, theirs = (one.classifier(["cat", "dog"], ("a photo of a {}.", "{}")) for one in (model, encoder))
    torch.testing.assert_close(theirs.predict(pixels), ours.predict(pixels), atol=1e-4, rtol=0)
    theirs.save(tmp_path / "predictor")
    again = ostension.Predictor.load(tmp_path / "predictor", model)
    torch.testing.assert_close(again.predict(pixels), ours.predict(pixels), atol=1e-4, rtol=0)


def test_keys_of_a_store_name_the_same_weights_and_another_computation(model, encoder):
    ours, theirs = ModelKey.of(model), ModelKey.of(encoder)
    assert theirs.weights == ours.weights
    assert theirs.preprocess == ours.preprocess
    assert theirs.tokenizer == ours.tokenizer
    assert theirs.computed.endswith("-float32")
    assert theirs.computed != ours.computed


@pytest.mark.parametrize(
    "use",
    [
        lambda encoder: encoder.train(),
        lambda encoder: encoder.requires_grad_(True),
        lambda encoder: encoder.bfloat16(),
        lambda encoder: encoder.resized(image_size=64),
        lambda encoder: encoder.set_checkpointing(image=True),
        lambda encoder: encoder.visual.transformer,
        lambda encoder: encoder.project_image(torch.zeros(1, 48)),
        lambda encoder: encoder.image_features(torch.zeros(1, 3, 32, 32), ("blocks.0",)),
        lambda encoder: encoder.encode_image(torch.zeros(1, 3, 32, 32, requires_grad=True)),
        lambda encoder: encoder.text(torch.ones(1, 4, dtype=torch.int64), insert=object()),
    ],
)
def test_what_needs_the_inside_of_a_tower_is_refused_in_one_line(encoder, use):
    with pytest.raises(ConfigError) as caught:
        use(encoder)
    assert "\n" not in str(caught.value)


def test_ids_outside_the_vocabulary_and_pictures_of_another_size_are_refused(encoder):
    with pytest.raises(DataError, match="token ids"):
        encoder.encode_text(torch.full((1, 5), 10**6))
    with pytest.raises(DataError, match="positions"):
        encoder.encode_text(torch.ones(1, 25, dtype=torch.int64))
    with pytest.raises(DataError, match="shape"):
        encoder.encode_image(torch.zeros(1, 3, 33, 33))


def test_a_folder_needs_nothing_but_itself(folder, model):
    again = load_encoder(folder, "onnx", dtype="float32")
    assert isinstance(again, EngineEncoder)
    torch.testing.assert_close(again.embed_texts(TEXTS), model.embed_texts(TEXTS), atol=CLOSE, rtol=0)
    assert again.scale().item() == pytest.approx(model.scale().item())
    assert not [path for path in folder.iterdir() if path.suffix in (".pt", ".pkl", ".py")]
    record = json.loads((folder / "export.json").read_text())
    assert {graph["side"] for graph in record["graphs"]} == {"image", "text"}
    assert all(graph["difference"]["largest"] < CLOSE for graph in record["graphs"])


def test_an_onnx_graph_runs_without_ostension_and_says_what_is_free(folder, model):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "text.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "length"]
    tokens = model.tokenizer(TEXTS)
    unit = session.run(["unit_embeddings"], {"tokens": tokens[:, :12].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(unit), model.embed_texts(TEXTS), atol=CLOSE, rtol=0)


def test_a_damaged_folder_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / "image.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "image.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"image\.onnx"):
        load_encoder(copy, "onnx")
    with pytest.raises(CheckpointError, match=r"export\.json"):
        open_export(tmp_path)


def test_an_export_folder_has_no_torch_in_it_and_says_so(folder):
    with pytest.raises(ConfigError, match="--engine onnx"):
        load_encoder(folder, "torch")
    with pytest.raises(ConfigError, match="int8"):
        load_encoder(folder, "onnx", dtype="int8")
    with pytest.raises(ConfigError, match="dtype"):
        load_encoder(folder, "onnx", dtype="float16")
    with pytest.raises(ConfigError, match="bfloat16"):
        load_encoder(folder, "onnx", dtype="bfloat16")


def test_a_graph_that_gives_other_embeddings_leaves_nothing_behind(model, folder, tmp_path, monkeypatch):
    import ostension.export.write as write

    # Recording takes seconds; the graph is the one of the other tests.
    monkeypatch.setattr(write, "_record", lambda model, side, *rest: folder / f"{side}.onnx")
    monkeypatch.setattr(write, "FLOAT32_BOUND", 0.0)
    with pytest.raises(CheckpointError, match="other embeddings"):
        write_export(model, tmp_path / "out", Options(form="openvino", sides=("image",)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("half", [False, True])
def test_openvinos_own_files_are_made_from_onnxs(folder, model, tmp_path, half):
    from ostension.export.sessions import open_session
    from ostension.export.write import through

    path = write_openvino(folder / "image.onnx", tmp_path / "image.xml", half=half)
    assert path.with_suffix(".bin").stat().st_size < (folder / "image.onnx").stat().st_size * (0.6 if half else 1)
    found = compare(model.encode_image, through(open_session(path, "openvino", "float32")), probe_batches(model, "image"))
    assert found.largest < (1e-2 if half else CLOSE)


STAGES = (Stage(blocks=1, channels=8, kernel=3, stride=2, expansion=1),)
EFFICIENT = EfficientNetConfig(image_size=32, stem=8, stages=STAGES, width=16)
TOWERS = {
    "resnet": (lambda: tiny("tiny-resnet", layers=(1, 1), text_layers=1), ("image",)),
    "siglip": (lambda: tiny("tiny-siglip", layers=1, text_layers=1), ("image", "text")),
    "efficientnet and bert": (lambda: small(vision=EFFICIENT), ("image", "text")),
    "bag of words": (lambda: small(text=BagConfig(context_length=24, vocab_size=VOCABULARY, width=16)), ("text",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_every_tower_can_be_exported(name, tmp_path):
    made, sides = TOWERS[name][0](), TOWERS[name][1]
    with torch.no_grad():
        for key, value in made.named_parameters():
            if key.endswith("bn3.weight"):
                value.fill_(0.3)  # zero at the start, which would hide the bottlenecks
    write_export(made, tmp_path / "out", Options(sides=sides))
    opened = open_export(tmp_path / "out")
    for engine in ("onnx", "openvino"):
        for side in sides:
            tower = open_tower(opened, side, engine, "float32")
            found = compare(encoder_of(made, side), tower, probe_batches(made, side))
            assert found.largest < CLOSE, (engine, side, found)
    for graph in opened.graphs:
        assert graph.free_length == (graph.side == "text" and free_length(made))
    if name == "siglip":
        with pytest.raises(DataError, match="context length"):
            open_tower(opened, "text", "onnx")(torch.ones(1, 5, dtype=torch.int64))


def test_a_text_transformer_that_reads_at_an_end_token_reads_the_first_one(tmp_path):
    made = tiny(text_layers=1, pool="eos", eos_id=7)
    write_export(made, tmp_path / "out", Options(sides=("text",)))
    opened = open_export(tmp_path / "out")
    with pytest.raises(ConfigError, match="no image tower"):
        encoder_of_export(opened, "onnx")
    tower = open_tower(opened, "text", "onnx", "float32")
    tokens = torch.randint(10, 90, (6, 24), generator=torch_generator("eos"))
    for row, place in enumerate((3, 23, 1, 9, 9, 20)):
        tokens[row, place] = 7
        tokens[row, place + 1 :] = 7 if row == 3 else 0
    torch.testing.assert_close(tower(tokens), made.encode_text(tokens).detach(), atol=1e-4, rtol=1e-4)


def test_a_model_is_exported_once_into_the_cache_folder(model, cache, copied):
    one = engine_encoder(model, "onnx", cache=cache, precision="float32")
    two = engine_encoder(model, "openvino", cache=cache, precision="float32")
    assert len(copied) == 1
    assert cache in copied[0].parents
    same(one, two)
    assert engine_encoder(model, "torch", cache=cache) is model
    assert engine_encoder(one, "openvino", cache=cache) is one
    with pytest.raises(ConfigError, match="nearest"):
        engine_encoder(model, "onyx", cache=cache)  # type: ignore[arg-type]


def test_auto_takes_the_fastest_within_the_tolerance_and_keeps_the_choice(model, cache, copied, monkeypatch):
    import ostension.export.choice as choice

    monkeypatch.setattr(choice, "SECONDS", 0.01)
    encoder = engine_encoder(model, "auto", cache=cache)
    assert [one.side for one in encoder.choice] == ["image", "text"]
    for one in encoder.choice:
        assert {"torch-float32", "onnx-float32", "openvino-float32"} <= {row.name for row in one.rows}
        taken = next(row for row in one.rows if row.name == one.taken)
        assert 1 - taken.cosine <= choice.TOLERANCE
        within = [row.per_second for row in one.rows if 1 - row.cosine <= choice.TOLERANCE]
        assert taken.per_second * choice.HEADWAY >= max(within)
    same(model, encoder, 0.05)

    def never(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(choice, "_measure", never)
    assert engine_encoder(model, "auto", cache=cache).choice == encoder.choice
    kept = next((cache / "choices").iterdir())
    kept.write_text("{")
    with pytest.raises(AssertionError, match="measured again"):  # what is damaged is as good as nothing
        engine_encoder(model, "auto", cache=cache)


def test_which_engine_is_taken_follows_from_the_figures():
    from ostension.export.choice import Measured, _best

    slow, exact = Measured("torch", "float32", 10, 0, 1.0), Measured("onnx", "float32", 10.5, 1e-7, 1.0)
    fast, far = Measured("openvino", "bfloat16", 20, 1e-3, 0.9999), Measured("openvino", "int8", 40, 1e-1, 0.99)
    assert _best([slow, exact]) is slow  # too little to be worth it
    assert _best([slow, exact, fast]) is fast
    assert _best([slow, exact, fast, far]) is fast


def test_a_cache_folder_that_cannot_be_written_is_said_and_does_without(model, tmp_path, caplog, monkeypatch):
    import ostension.export.cache as module

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(module, "_temporary", {})
    calls = []
    monkeypatch.setattr("ostension.export.write.write_export", lambda model, target, **options: calls.append(target))
    monkeypatch.setattr(module, "open_export", lambda target: target)
    target = module.cached_export(model, tmp_path / "file")
    assert calls == [target]
    assert tmp_path not in target.parents
    assert "cannot be written to" in caplog.text
    for held in module._temporary.values():
        held.cleanup()


def test_openvinos_reports_are_not_sent():
    """The package that sends them is installed with OpenVINO; nothing here makes one of its senders."""
    code = (
        "import sys, torch, ostension.export.sessions as sessions; sessions._openvino_core();"
        "import openvino_telemetry.main as telemetry;"
        "print([value for name, value in vars(telemetry.Telemetry).items() if 'single_instance' in name])"
    )
    pytest.importorskip("openvino_telemetry")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[None]"
