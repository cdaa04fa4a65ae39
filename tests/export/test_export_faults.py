"""Exports that are damaged, hostile, stale or asked for in vain: one line that says so, and never another model's numbers."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ostension
from ostension.cli.main import main
from ostension.errors import CheckpointError, ConfigError
from ostension.export.engines import engine_encoder, load_encoder, open_tower, stays_in_torch
from ostension.export.folder import open_export
from ostension.formats.manifest import write_manifest

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

PIXELS = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the export whose graphs may be changed, with a manifest that says that all is well."""

    def change(graph="image.onnx", edit=None, instead=None):
        target = shutil.copytree(folder, tmp_path / "changed")
        if instead is not None:
            shutil.copy(target / instead, target / graph)
        if edit is not None:
            model = onnx.load(target / graph)
            edit(model.graph)
            onnx.save(model, target / graph)
        write_manifest(target)
        return target

    return change


def rename_outputs(graph):
    for output in graph.output:
        graph.node.append(onnx.helper.make_node("Identity", [output.name], [output.name + "s"]))
        output.name += "s"


def point_outside(secret: Path):
    def edit(graph):
        tensor = max(graph.initializer, key=lambda one: len(one.raw_data))
        secret.write_bytes(tensor.raw_data)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", f"../{secret.name}"), ("offset", "0"), ("length", str(size))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return edit


def widen(graph):
    """Rows of one number more than the model's."""
    output = next(one for one in graph.output if one.name == "embeddings")
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == "embeddings":
                node.output[place] = "narrow"
        for place, name in enumerate(node.input):
            if name == "embeddings":
                node.input[place] = "narrow"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 0, 1]), "pads"))
    graph.node.append(onnx.helper.make_node("Pad", ["narrow", "pads"], ["embeddings"]))
    nodes = sorted(graph.node, key=lambda node: "embeddings" in node.input)  # who reads it comes after it
    del graph.node[:]
    graph.node.extend(nodes)
    output.type.tensor_type.shape.dim[1].dim_value = 33


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_graph_of_another_tower_or_with_other_outputs_is_refused_in_one_line(changed, engine):
    changes = [{"instead": "text.onnx"}]
    if engine == "onnx":  # OpenVINO leaves the added nodes out, and then knows the output by both names
        changes.append({"edit": rename_outputs})
    for options in changes:
        target = changed(**options)
        with pytest.raises(CheckpointError, match="is no graph of the image tower") as caught:
            load_encoder(target, engine)
        assert "\n" not in str(caught.value)
        shutil.rmtree(target)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_graph_whose_weights_lie_outside_its_folder_is_refused(changed, engine, tmp_path):
    target = changed(edit=point_outside(tmp_path / "secret.bin"))
    with pytest.raises(CheckpointError, match=r"image\.onnx") as caught:
        open_tower(open_export(target), "image", engine)
    assert "\n" not in str(caught.value)


def test_a_graph_that_gives_rows_of_another_width_is_refused(changed):
    tower = open_tower(open_export(changed(edit=widen)), "image", "onnx", "float32")
    with pytest.raises(CheckpointError, match=r"gives \(1, 33\)"):
        tower(PIXELS)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_what_a_graph_cannot_run_on_is_one_line(folder, engine):
    tower = open_tower(open_export(folder), "image", engine, "float32")
    with pytest.raises(CheckpointError, match="cannot run it") as caught:
        tower(torch.zeros(1, 3, 31, 32))  # the encoder checks sizes; the tower alone does not
    assert "\n" not in str(caught.value)
    assert tower(PIXELS).shape == (1, 32)  # and it goes on


@pytest.mark.parametrize("name", ["image.onnx", "export.json", "manifest.json"])
def test_a_cache_that_lost_a_file_is_written_anew(model, folder, tmp_path, monkeypatch, copied, caplog, name):
    engine_encoder(model, "onnx", cache=tmp_path)
    (copied[0] / name).unlink()
    encoder = engine_encoder(model, "onnx", cache=tmp_path)
    assert len(copied) == 2
    assert ("written anew" in caplog.text) == (name != "export.json")
    assert encoder.embed_texts(["a cat"]).shape == (1, 32)


def test_models_that_differ_in_a_few_bits_have_graphs_and_choices_of_their_own(model, tmp_path, copied):
    from ostension.export.cache import identity
    from ostension.export.choice import _place
    from ostension.model.fingerprint import fingerprint

    other, third = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        other.logit_scale.add_(1e-3)  # a temperature that has been tuned a little
        third.visual.proj.mul_(1 + 1e-6)
    assert fingerprint(model) == fingerprint(other)  # which sees weights in bfloat16
    assert len({identity(one) for one in (model, other, third)}) == 3
    assert identity(copy.deepcopy(model)) == identity(model)
    for one in (model, other, third):
        engine_encoder(one, "onnx", cache=tmp_path)
    assert len(copied) == 3
    assert len({_place(one, "auto", 1, tmp_path) for one in (model, other, third)}) == 3


def test_an_engine_of_the_processor_runs_there_beside_a_gpu_and_refuses_a_gpu_that_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr("ostension.runtime.pick_device", lambda name="auto": torch.device("cuda" if name != "cpu" else "cpu"))
    assert not stays_in_torch("onnx", "auto")
    assert not stays_in_torch("openvino", "cpu")
    assert stays_in_torch("auto", "auto")
    assert not stays_in_torch("auto", "cpu")
    assert load_encoder(folder, "onnx").device.type == "cpu"
    for engine in ("onnx", "auto"):
        with pytest.raises(ConfigError, match="runs on the processor"):
            load_encoder(folder, engine, device="cuda:0")


def test_a_folder_in_openvinos_form_alone_asks_for_openvino(folder, monkeypatch):
    from ostension.export.engines import encoder_of_export

    opened = open_export(folder)
    only = [type(graph)(**{**vars(graph), "file": graph.file.replace(".onnx", ".xml")}) for graph in opened.graphs]
    opened = type(opened)(**{**vars(opened), "graphs": tuple(only)})
    monkeypatch.setattr("ostension.export.sessions.available", lambda engine: False)
    asked = []

    def note(path, engine, *rest):
        asked.append(engine)
        raise ConfigError("enough")

    monkeypatch.setattr("ostension.export.engines.open_session", note)
    with pytest.raises(ConfigError, match="enough"):
        encoder_of_export(opened, "auto", precision="float32")
    assert asked == ["openvino"]


def test_a_store_made_with_exported_graphs_is_searched_with_them(folder, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "pictures" / f"{index}.png")
    store = str(tmp_path / "store")
    assert main(["embed", str(tmp_path / "pictures"), "-o", store, "--model", str(folder), "--engine", "onnx"]) == 0
    assert main(["search", store, "red"]) == 0
    out, err = capsys.readouterr()
    assert out.count(".png") == 3, err


def test_a_service_runs_exported_graphs_in_the_precision_that_is_asked_for(folder, model):
    pytest.importorskip("fastapi")
    from ostension.serve.compute import load_computation
    from ostension.serve.model_files import read_model_files

    files = read_model_files(folder)
    assert files.config == model.config
    assert files.tokenizer("a cat").shape == (1, 24)
    options = {"device": "auto", "threads": 1, "predictors": {}}
    computation = load_computation(str(folder), dtype="float32", engine="openvino", **options)
    facts = computation.facts()
    assert (facts.engine, facts.dtype) == ("openvino", "float32")
    assert computation.run("text", [[1, 2, 500]]).shape == (1, 32)
    with pytest.raises(ConfigError, match="int8"):
        load_computation(str(folder), dtype="int8", engine="onnx", **options)


def test_a_model_that_a_service_exports_is_exported_in_float32(model, tmp_path, monkeypatch, copied):
    from ostension.serve.compute import load_computation

    monkeypatch.setenv("OSTENSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ostension.runtime.has_bfloat16_units", lambda device="cpu": True)
    asked = []
    real = engine_encoder

    def note(one, *rest, **options):
        asked.append(one.dtype)
        return real(one, *rest, **options)

    monkeypatch.setattr("ostension.export.engines.engine_encoder", note)
    ostension.save(model, tmp_path / "model")
    load_computation(str(tmp_path / "model"), device="auto", dtype="auto", engine="onnx", threads=1, predictors={})
    assert asked == [torch.float32]


@pytest.fixture(autouse=True)
def threads():
    """Commands set torch's threads."""
    before = torch.get_num_threads()
    logging.getLogger("ostension.export").setLevel(logging.INFO)
    yield
    torch.set_num_threads(before)
    logging.getLogger("ostension.export").setLevel(logging.NOTSET)
