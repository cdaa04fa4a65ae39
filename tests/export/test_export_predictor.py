"""A predictor as one ONNX file: the predictor's answers from pixels, with nothing of Ostension at hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.errors import CheckpointError, ConfigError
from ostension.export.engines import load_encoder
from ostension.export.predictor import Compared, write_predictor_onnx
from ostension.model.predictor import Predictor
from ostension.runtime import numpy_generator

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "export.md"
NAMES = ["cat", "dog", 'a "red" fox, 狐', "tea"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """A model and a predictor in folders, the predictor's file, and pictures of three shapes."""
    root = tmp_path_factory.mktemp("predictor")
    ostension.save(model, root / "model")
    loaded = ostension.load(root / "model", dtype="float32", device="cpu")
    loaded.classifier(NAMES, ("a photo of a {}.", "{}")).save(root / "pets")
    for index, size in enumerate(((40, 40), (90, 50), (33, 71))):
        data = numpy_generator(index, "predictor export").integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(data).resize(size).save(root / f"{index}.png")
    status = main(["export", "predictor", str(root / "pets"), "-o", str(root / "pets.onnx")])
    assert status == 0
    return root


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rows", [1, 3])
def test_the_file_gives_the_probabilities_of_the_predictor(made, rows):
    predictor = Predictor.load(made / "pets", device="cpu", dtype="float32")
    pixels = predictor.pixels([made / f"{index}.png" for index in range(rows)])
    probabilities, logits = session(made / "pets.onnx").run(["probabilities", "logits"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(probabilities, predictor.predict(pixels).numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, predictor.forward(pixels).detach().numpy(), atol=1e-3)
    assert probabilities.dtype == np.float32


def test_the_file_says_what_its_columns_are_called_and_how_pictures_are_prepared(made, model):
    found = {one.key: json.loads(one.value) for one in onnx.load(made / "pets.onnx").metadata_props}
    assert found["class_names"] == NAMES
    assert found["templates"] == ["a photo of a {}.", "{}"]
    assert found["preprocess"]["image_size"] == 32
    assert found["preprocess"]["mean"] == list(model.config.preprocess.mean)
    assert any("bicubic" in step for step in found["preprocess"]["steps"])
    assert found["difference"]["probability"] < 1e-5
    assert str(made) not in (made / "pets.onnx").read_bytes().decode("latin-1")


def test_the_file_has_one_tower_and_nothing_wider_than_float32(made, model):
    graph = onnx.load(made / "pets.onnx").graph
    assert [one.name for one in graph.input] == ["pixels"]
    assert [one.name for one in graph.output] == ["probabilities", "logits"]
    assert not [one.name for one in graph.initializer if one.data_type == onnx.TensorProto.DOUBLE]
    weights = sum(parameter.numel() for parameter in model.visual.parameters())
    assert (made / "pets.onnx").stat().st_size < 4 * weights + 150_000


def test_openvino_gives_the_same(made):
    pytest.importorskip("openvino")
    from ostension.export.sessions import open_session

    predictor = Predictor.load(made / "pets", device="cpu", dtype="float32")
    pixels = predictor.pixels([made / "0.png", made / "1.png"])
    [found] = open_session(made / "pets.onnx", "openvino", "float32")(pixels.numpy(), ["probabilities"])
    np.testing.assert_allclose(found, predictor.predict(pixels).numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_page_s_example_gives_the_answers_of_classify_without_ostension(made, capsys):
    [code] = re.findall(r"^```python\n(# classify\.py.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (made / "classify.py").write_text(code, encoding="utf-8")
    blocked = "import sys; sys.modules['ostension'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:]; import runpy;"
    run = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')", "classify.py", "pets.onnx"]
    pictures = [f"{index}.png" for index in range(3)]
    done = subprocess.run([*run, *pictures], cwd=made, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert main(["classify", *(str(made / name) for name in pictures), "--predictor", str(made / "pets"), "--dtype", "float32",
                 "--format", "jsonl"]) == 0  # fmt: skip
    for (name, label, probability), ours in zip(lines, map(json.loads, capsys.readouterr().out.splitlines()), strict=True):
        assert (name, label) == (Path(ours["image"]).name, ours["label"])
        assert float(probability) == pytest.approx(ours["probability"], abs=2e-4)


def test_an_image_side_that_was_learned_is_exported_with_it(made, model):
    predictor = prompted(model)
    found = write_predictor_onnx(predictor, made / "vpt.onnx")
    assert found.largest < 1e-5
    plain = model.classifier(list(predictor.class_names))
    pixels = predictor.pixels([made / "0.png"])
    [ours] = session(made / "vpt.onnx").run(["probabilities"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(ours, predictor.predict(pixels).numpy(), atol=1e-5)
    assert not np.allclose(ours, plain.predict(pixels).numpy(), atol=1e-3)  # what was learned is in it


def prompted(model):
    """Visual prompts, moved away from where they start, and a class matrix."""
    from ostension.model.insert import VisualInsert

    class Prompted(Predictor):
        kind, own_images = "prompted in a test", True

        def features(self, images):
            tokens = torch.linspace(-1, 1, 2 * 48).view(2, 48)
            return self.encoder.encode_image(images, normalize=True, insert=VisualInsert(tokens=tokens, place="before_ln_pre"))

    made = model.classifier(["cat", "dog"])
    found = Prompted(class_names=made.class_names, weights=made.weights, scale=made.scale, encoder=model)
    Predictor._kinds.pop(Prompted.kind)
    return found


def test_what_cannot_be_one_graph_is_refused_before_anything_is_written(made, model, folder, tmp_path):
    predictor = model.classifier(["cat", "dog"])
    with pytest.raises(ConfigError, match=r"\.onnx"):
        write_predictor_onnx(predictor, tmp_path / "out")
    with pytest.raises(CheckpointError, match="--overwrite"):
        write_predictor_onnx(predictor, made / "pets.onnx")
    with pytest.raises(ConfigError, match="has no weights"):
        write_predictor_onnx(load_encoder(folder, "onnx").classifier(["cat"]), tmp_path / "out.onnx")
    for depends, why in (("views", "many views"), ("batch", "whole batch")):
        predictor.depends = depends
        with pytest.raises(ConfigError, match=why):
            write_predictor_onnx(predictor, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_answers_otherwise_leaves_nothing_behind(made, model, tmp_path, monkeypatch):
    import ostension.export.predictor as module

    def other(graph, example, path, **options):
        path.write_bytes((made / "pets.onnx").read_bytes())

    monkeypatch.setattr(module, "record_onnx", other)
    with pytest.raises(CheckpointError, match="other answers"):
        write_predictor_onnx(model.classifier(NAMES, ("a drawing of a {}.",)), tmp_path / "out.onnx")
    with pytest.raises(CheckpointError, match=r"gives \(1, 4\)"):
        write_predictor_onnx(model.classifier(["cat", "dog"]), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "what"), [(["-o", "pets"], "--output"), (["-o", "pets.onnx", "--opset", "9"], "--opset")]
)
def test_flags_that_cannot_be_meant_are_refused(arguments, what, capsys):
    assert main(["export", "predictor", "pets", *arguments]) == 2
    err = capsys.readouterr().err
    assert what in err and err.count("\n") == 1


def test_a_difference_is_said_in_words():
    assert Compared(1e-7, 8, 8, ((1, 3, 32, 32),)).line().startswith("largest difference of a probability 1e-07, the same best")
