"""Conversions prove themselves, and the model commands say what they found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from format_samples import random_model, same_weights

from ostension.cli.main import main
from ostension.errors import CheckpointError
from ostension.formats import convert as converting
from ostension.formats.convert import Comparison, convert
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.presets import preset, preset_names


@pytest.fixture
def folder(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("to", ["ostension", "open_clip"])
def test_a_conversion_encodes_the_same_on_both_sides(folder, to, tmp_path):
    _, compared = convert(folder, tmp_path / to, to)
    assert compared == Comparison(0, 0, "ostension")
    same_weights(load(folder, dtype="float32"), load(tmp_path / to, dtype="float32"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hugging_face_folder_is_encoded_by_transformers(folder, tmp_path):
    _, compared = convert(folder, tmp_path / "hf", "hf")
    assert compared.by == "transformers"
    assert 0 <= max(compared.image, compared.text) < 1e-5


def test_without_transformers_our_reader_encodes_and_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(converting.importlib.util, "find_spec", lambda name: None)
    _, compared = convert(folder, tmp_path / "hf", "hf")
    assert compared.by == "ostension"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_conversion_to_a_shorter_type_is_checked_too(folder, dtype, tmp_path):
    model, compared = convert(folder, tmp_path / dtype, "open_clip", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert compared.image < 1e-6
    assert load(tmp_path / dtype, dtype=dtype).dtype == model.dtype


def test_a_conversion_that_changes_the_model_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    from ostension.formats import openai
    from ostension.formats.table import Entry

    honest = openai.entry

    def wrong(name):
        entry = honest(name)
        # Written upside down: the reader, which expects it as it stands, sees another matrix.
        return Entry(name, entry.theirs, entry.read, lambda tensor: (tensor.flip(0),)) if name == "visual.proj" else entry

    monkeypatch.setattr(openai, "entry", wrong)
    with pytest.raises(
        CheckpointError, match="the written folder encodes otherwise: images differ by .*; expected at most 1e-04 in float32"
    ):
        convert(folder, tmp_path / "out", "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_probes_depend_on_nothing_but_shapes():
    model = random_model("tiny-vit")
    images, tokens = converting.probes(model)
    torch.manual_seed(99)
    again = converting.probes(model)
    assert torch.equal(images, again[0])
    assert torch.equal(tokens, again[1])
    assert (tokens.max(dim=1).values == 1023).all()
    assert (tokens == 1023).sum() == len(tokens)


def test_the_commands_convert_inspect_and_check(folder, tmp_path, capsys):
    assert main(["model", "convert", str(folder), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    out = capsys.readouterr().out
    assert "largest difference of unit embeddings over 4 probe images 0, texts 0 (encoded by ostension)" in out
    assert main(["model", "inspect", str(tmp_path / "out"), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["container"], tree["layout"], tree["asked_for"]) == ("safetensors", "open_clip", [])
    assert tree["parameters"] == 169_361
    assert tree["facts"]["vision.activation"] == {"value": "gelu", "from": "open_clip_config.json (no quick_gelu)"}
    assert main(["model", "inspect", str(folder)]) == 0
    assert "layout      ostension" in capsys.readouterr().out
    assert main(["model", "check", str(folder)]) == 0
    assert "4 files are as the manifest says" in capsys.readouterr().out


def test_the_commands_print_one_clean_line_for_bad_input(folder, tmp_path, capsys):
    assert main(["model", "convert", str(folder), str(folder)]) == 1
    assert main(["model", "inspect", str(tmp_path / "none")]) == 1
    (folder / "model.safetensors").write_bytes(b"")
    assert main(["model", "check", str(folder)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("ostension: error: ") for line in errors)


def test_check_finds_numbers_that_are_not_finite(tmp_path, capsys):
    model = random_model("tiny-vit")
    with torch.no_grad():
        model.visual.proj[0, :2] = float("nan")
    save(model, tmp_path / "model")
    assert main(["model", "check", str(tmp_path / "model")]) == 1
    assert "'visual.proj' has 2 values that are not finite" in capsys.readouterr().err


def test_inspect_says_what_has_to_be_asked_for(tmp_path, capsys):
    torch.save(random_model("tiny-resnet").state_dict(), tmp_path / "weights.pt")
    # Heads of 16 cannot be read off, so the width is that of a known model's.
    assert main(["model", "inspect", str(tmp_path / "weights.pt")]) == 1
    assert "no multiple of 64, and shapes do not show the number of heads" in capsys.readouterr().err


@pytest.mark.slow
def test_list_has_every_preset_with_its_size(capsys):
    assert main(["model", "list", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == preset_names()
    assert rows["ViT-B-32"]["parameters"] == 151_277_313
    assert rows["RN50"]["parameters"] == 102_007_137
    assert rows["RN50"]["gflops_image"] == pytest.approx(12.22, abs=0.005)
    assert rows["ViT-H-14"]["gflops_image"] == pytest.approx(334.59, abs=0.005)


@pytest.mark.slow
def test_loading_never_holds_two_copies(tmp_path):
    config = preset("ViT-B-32")
    vision, text = dataclasses.replace(config.vision, layers=1), dataclasses.replace(config.text, layers=1)
    model = CLIP(dataclasses.replace(config, vision=vision, text=text), seed=None)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    save(model, tmp_path / "model")
    code = f"""
from ostension.formats.load import load
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
load({str(tmp_path / "model")!r}, dtype="float32")  # imports what there is to import
before = anonymous()
whole = load({str(tmp_path / "model")!r}, dtype="float32")
mapped = anonymous()
half = load({str(tmp_path / "model")!r}, dtype="bfloat16")
print(mapped - before, anonymous() - mapped)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mapped, cast = map(int, found.stdout.split())
    # In its own type the weights stay in the mapped file; cast, they are there once, at half the size.
    assert mapped < 0.1 * size
    assert 0.4 * size < cast < 0.6 * size
