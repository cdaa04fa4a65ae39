"""int8: graphs in 8 bits, what they lose, and the commands that write and use them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.export.calibration import read_calibration
from ostension.export.engines import load_encoder
from ostension.export.folder import open_export
from ostension.export.judge import Agreement, agreement, losses
from ostension.export.write import Options, write_export
from ostension.runtime import numpy_generator
from ostension.store.key import ModelKey

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, folder):
    """The model in a folder, its graphs, and a few pictures in two classes."""
    root = tmp_path_factory.mktemp("int8")
    ostension.save(model, root / "model")
    (root / "graphs").symlink_to(folder)
    for index in range(12):
        place = root / "pictures" / ("cat" if index % 2 else "dog") / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numpy_generator(index, "int8").integers(0, 256, (40, 40, 3), dtype="uint8")).save(place)
    shutil.copytree(root / "pictures", root / "spoiled")
    (root / "spoiled" / "cat" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def recorded(made, monkeypatch, tmp_path):
    """Graphs are not recorded again, which takes seconds; the cache folder is the test's."""

    def copy(model, side, scratch, opset):
        return Path(shutil.copy(made / "graphs" / f"{side}.onnx", scratch))

    monkeypatch.setattr("ostension.export.write._record", copy)
    monkeypatch.setenv("OSTENSION_CACHE", str(tmp_path / "cache"))
    return made


def test_int8_with_fixed_ranges_says_what_it_loses_and_runs_in_both_engines(recorded, tmp_path, capsys):
    pictures, target = str(recorded / "pictures"), tmp_path / "small"
    status = main(
        ["export", "onnx", str(recorded / "model"), "-o", str(target), "--int8", "--calibration", str(recorded / "spoiled"),
         "--measure", pictures, "--seven-bits"]  # so that it holds on a processor without VNNI too
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert status == 0
    assert "6 pictures that did not calibrate" in out
    assert "pictures (12 pictures)" in out
    assert "1 pictures could not be read" in err
    opened = open_export(target)
    assert {graph.precision for graph in opened.graphs} == {"int8"}
    record = json.loads((target / "export.json").read_text())
    assert record["accuracy"][0]["count"] == 12
    assert 0.9 < record["agreement"]["mean_cosine"] < 1
    size = sum((target / f"{side}.int8.onnx").stat().st_size for side in ("image", "text"))
    assert size < 0.8 * sum((recorded / "graphs" / f"{side}.onnx").stat().st_size for side in ("image", "text"))
    model = ostension.load(recorded / "model", dtype="float32")
    for engine in ("onnx", "openvino"):
        encoder = load_encoder(target, engine, dtype="auto")
        assert encoder.computed == f"{engine}-int8"
        found = agreement(model, encoder, model.transform.batch(sorted((recorded / "pictures").rglob("*.png"))))
        assert found.least_cosine > 0.95
        assert found.text_cosine > 0.9
        assert ModelKey.of(encoder).computed == f"{engine}-int8"


def test_embeddings_that_int8_moves_far_are_said_to_be_so():
    near = Agreement(count=8, top1=1.0, mean_cosine=0.99, least_cosine=0.9, text_cosine=0.98)
    assert near.warning == ""
    for far in ({"mean_cosine": 0.8}, {"text_cosine": 0.9}):
        assert "leave --int8 out" in dataclasses.replace(near, **far).warning


def test_int8_in_openvinos_own_files(recorded, tmp_path):
    model = ostension.load(recorded / "model", dtype="float32")
    calibration = read_calibration(model, str(recorded / "pictures"), count=8)
    assert len(calibration.held_out) == 4
    options = Options(form="openvino", int8=True, calibration=calibration, sides=("image",), seven_bits=True)
    write_export(model, tmp_path / "out", options)
    [graph] = open_export(tmp_path / "out").graphs
    assert (graph.file, graph.precision) == ("image.int8.xml", "int8")
    assert graph.made is not None
    assert graph.made["calibration_rows"] == 4
    assert graph.difference["cosine"] > 0.95


def test_int8_without_data_finds_its_ranges_at_run_time(recorded, tmp_path):
    model = ostension.load(recorded / "model", dtype="float32")
    graphs = write_export(model, tmp_path / "out", Options(int8=True, seven_bits=True))
    assert [graph.made["form"] for graph in graphs if graph.made] == ["dynamic", "dynamic"]
    assert all(graph.difference["cosine"] > 0.95 for graph in graphs)


def test_convolutions_in_int8_need_pictures(recorded, tmp_path):
    import onnx

    from ostension.export.quantize import quantise

    path = tmp_path / "conv.onnx"
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "conv",
        [info("x", 1, ["batch", 3, 4, 4])], [info("y", 1, ["batch", 4, 4, 4])], [weight],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(ConfigError, match="1 convolutions"):
        quantise(path, tmp_path / "out.onnx", tmp_path, calibration=None)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["onnx", "MODEL", "-o", "out", "--towers", "sound"], "--towers"),
        (["onnx", "MODEL", "-o", "out", "--calibration", "x"], "--int8"),
        (["onnx", "MODEL", "-o", "out", "--seven-bits"], "--int8"),
        (["onnx", "MODEL", "-o", "out", "--opset", "9"], "--opset"),
        (["onnx", "MODEL", "-o", "out", "--towers", "text", "--measure", "emoji"], "both towers"),
        (["openvino", "MODEL", "-o", "out", "--int8"], "--calibration"),
        (["openvino", "MODEL", "-o", "out", "--int8", "--half", "--calibration", "x"], "--half"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_read(arguments, what, capsys):
    assert main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert what in err
    assert err.count("\n") == 1


def test_a_folder_with_something_in_it_is_not_replaced_unasked(recorded, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    command = ["export", "onnx", str(recorded / "model"), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "mine.txt").exists()
    out = capsys.readouterr().out
    assert "image.onnx: largest difference" in out
    assert "text.onnx: largest difference" in out


def test_classify_answers_the_same_with_every_engine(recorded, tmp_path, capsys):
    pictures = sorted(map(str, (recorded / "pictures").rglob("*.png")))[:3]
    common = ["classify", *pictures, "--format", "jsonl", "--dtype", "float32"]
    ours = ["--labels", "cat,dog,tea", "--model", str(recorded / "model")]
    answers = {}
    for engine in ("torch", "onnx", "openvino"):
        assert main([*common, *ours, "--engine", engine, "--save-predictor", str(tmp_path / engine)]) == 0
        out, err = capsys.readouterr()
        answers[engine] = [json.loads(line) for line in out.splitlines()]
        assert (f"computed by {engine}-float32" in err) == (engine != "torch")
    assert main([*common, "--predictor", str(tmp_path / "torch"), "--engine", "openvino"]) == 0
    answers["saved"] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for found in answers.values():
        for one, two in zip(found, answers["torch"], strict=True):
            assert one["label"] == two["label"]
            assert one["probability"] == pytest.approx(two["probability"], abs=1e-3)


def test_doctor_shows_every_engine_and_what_auto_takes(recorded, capsys, monkeypatch):
    monkeypatch.setattr("ostension.export.choice.SECONDS", 0.01)
    threads = torch.get_num_threads()
    try:
        assert main(["doctor", "--quick", "--model", str(recorded / "model")]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert out.count("<- auto") == 2
    for name in ("torch-float32", "onnx-float32", "openvino-float32", "images/s", "texts/s", "1 - cosine"):
        assert name in out


def test_a_folder_of_classes_is_measured_and_others_are_refused(recorded, tmp_path):
    model = ostension.load(recorded / "model", dtype="float32")
    [loss] = losses(model, model, str(recorded / "pictures"))
    assert loss.count == 12
    assert loss.before == loss.after
    with pytest.raises(DataError, match="broken"):
        losses(model, model, str(recorded / "spoiled"))
    with pytest.raises(DataError, match="folder for each class"):
        losses(model, model, str(recorded / "pictures" / "cat"))
