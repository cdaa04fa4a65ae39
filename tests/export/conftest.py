"""One tiny model and its graphs for all tests of exports: recording a graph takes seconds."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from ostension.model.clip import CLIP
from ostension.model.presets import preset


@pytest.fixture(scope="session", autouse=True)
def operators():
    """torch's exporter makes its table of operators anew for every graph, which is a third of the time of a tiny one."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    with pytest.MonkeyPatch.context() as patch:
        made = functools.cache(registration.ONNXRegistry.from_torchlib.__func__)
        patch.setattr(registration.ONNXRegistry, "from_torchlib", classmethod(made))
        yield


@pytest.fixture(scope="session")
def model():
    """tiny-vit with fewer layers."""
    config = preset("tiny-vit")
    vision, text = dataclasses.replace(config.vision, layers=1), dataclasses.replace(config.text, layers=2)
    return CLIP(dataclasses.replace(config, vision=vision, text=text)).eval()


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    """Its towers as ONNX files."""
    from ostension.export.write import write_export

    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    target = tmp_path_factory.mktemp("export") / "tiny"
    write_export(model, target)
    return target


@pytest.fixture
def copied(folder, monkeypatch):
    """Exports into a cache folder are copies of `folder`; gives the list of them."""
    import shutil

    made = []

    def copy(model, target, **options):
        shutil.rmtree(target, ignore_errors=True)
        made.append(shutil.copytree(folder, target))

    monkeypatch.setattr("ostension.export.write.write_export", copy)
    return made
