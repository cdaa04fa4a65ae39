"""Whatever is wrong with a file, the answer is one clear line that names it, and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from format_samples import random_model, same_weights

from ostension.errors import CheckpointError
from ostension.formats import containers
from ostension.formats.load import load, save

ASKED = {"activation": "gelu", "preprocess": "openai", "tokenizer": "openai", "dtype": "float32"}


def refused(path, message: str, **options) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def native():
    """The state dict of a small model in OpenAI's names, whose architecture can be read off."""
    import dataclasses

    model = random_model("tiny-vit")
    config = model.config
    vision = dataclasses.replace(config.vision, width=64, head_width=64)
    text = dataclasses.replace(config.text, width=64, head_width=64)
    model = random_model("tiny-vit", vision=vision, text=text)
    return {name.removeprefix("text."): tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def weights(tmp_path, native):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(native, path)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (LFS, r"is a Git LFS pointer, not the weights \(those have 605157884 bytes\); run: git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>404", "is a web page, not weights"),
        (b"\n <HTML>", "is a web page"),
        (b'{"weights": 1}', "of no known kind"),
        (b"\x1f\x8b\x08\x00", "of no known kind"),
        (b"abc", "of no known kind"),
        (struct.pack("<Q", 2**40) + b"{}", "header claims 1099511627776 bytes; expected at most 100000000"),
        (struct.pack("<Q", 500) + b'{"a": ', "cut short or damaged: the safetensors header claims 500 bytes of a file of 14"),
        (struct.pack("<Q", 4) + b"{{{{", "the safetensors header is not readable JSON"),
        (struct.pack("<Q", 2) + b"{}" + b"tail", "4 bytes follow the last tensor"),
        (b"PK\x03\x04" + b"\0" * 40, "the zip archive has no readable directory"),
        (b"\x80\x02", "cut short or damaged: torch cannot read it"),
        (b"\x80\x02}q\x00.", "cut short or damaged|holds no tensors"),
    ],
)
def test_files_that_are_no_weights(data, message, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    assert str(path) in refused(path, message)


def test_every_cut_of_a_safetensors_file_is_noticed(weights):
    data = weights.read_bytes()
    for length in (1, 8, 9, 100, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:length])
        refused(weights, "cut short|of no known kind|not readable")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_pickle_is_noticed(legacy, native, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(native, path, _use_new_zipfile_serialization=not legacy)
    assert containers.identify(path) == ("torch_pickle" if legacy else "torch_zip")
    assert load(path, **ASKED).config.embed_dim == 32
    data = path.read_bytes()
    for length in (10, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        refused(path, "cut short or damaged")


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, native, tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    torch.save(native | {"hook": Hostile(marker)}, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "wants to run or build '(posix|os).system', which is refused because that can execute code")
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"a": Hostile(marker)}, protocol=2))
    refused(plain, "refused|cut short")
    assert not marker.exists()


def test_an_npz_with_objects_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "weights.npz", tmp_path / "marker"
    numpy.savez(path, a=numpy.array([Hostile(marker)], dtype=object))
    refused(path, "not a sound npz file")
    assert not marker.exists()


def test_folders_without_one_model_say_what_they_hold(tmp_path, weights):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"holds no weights \(it has nothing\)")
    (empty / "notes.txt").write_text("hello")
    refused(f"local-dir:{empty}", r"holds no weights \(it has notes.txt\)")
    (empty / ".metadata").write_text("")
    refused(empty, "is a sharded training checkpoint.*dcp_to_torch")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.pt", "b.pt"):
        (two / name).write_bytes(weights.read_bytes())
    refused(two, r"holds several weight files \(a.pt, b.pt\); name the file to load")
    with pytest.raises(CheckpointError, match="is a folder"):
        containers.identify(two)


def test_missing_files_and_names_without_weights_say_so(tmp_path):
    refused(tmp_path / "no.pt", "no such file or folder")
    refused("ViT-B-32", "ViT-B-32 is an architecture without weights")
    refused("laion/CLIP-ViT-B-32", "for a model on the Hugging Face hub write hf-hub:laion/CLIP-ViT-B-32")
    refused(f"local-dir:{tmp_path}/no", "is not a folder")


def test_a_renamed_tensor_names_the_nearest(weights, native):
    native["visual.ln_post.wieght"] = native.pop("visual.ln_post.weight")
    safetensors.torch.save_file(native, weights)
    text = refused(weights, "1 tensor is missing: 'visual.ln_post.weight'", **ASKED)
    assert "nearest in the file: 'visual.ln_post.wieght'" in text
    assert "1 tensor is unexpected: 'visual.ln_post.wieght'" in text


@pytest.mark.parametrize(
    "name", ["visual.proj", "text_projection", "visual.conv1.weight", "positional_embedding", "logit_scale"]
)
def test_a_renamed_key_tensor_does_not_hide_the_layout(name, weights, native):
    native[f"{name}_old"] = native.pop(name)
    safetensors.torch.save_file(native, weights)
    assert f"'{name}_old'" in refused(weights, f"missing.*'{name}'|'{name}' is missing", **ASKED)


def test_an_additional_tensor_names_the_nearest_known(weights, native):
    safetensors.torch.save_file(native | {"visual.prok": torch.zeros(2)}, weights)
    refused(weights, r"1 tensor is unexpected: 'visual.prok' \(nearest known: 'visual.proj'\)", **ASKED)


def test_a_wrong_shape_says_both(weights, native):
    native["visual.ln_post.bias"] = torch.zeros(65)
    safetensors.torch.save_file(native, weights)
    refused(
        weights,
        r"'visual.ln_post.bias' has the shape \(65,\); expected \(64,\) for this architecture \(openai layout\)",
        **ASKED,
    )
    native["visual.positional_embedding"] = torch.zeros(16, 64)
    safetensors.torch.save_file(native, weights)
    refused(weights, "'visual.positional_embedding' has 16 rows; expected a square number of patches and the class token")
    native["visual.conv1.weight"] = torch.zeros(64)
    safetensors.torch.save_file(native, weights)
    refused(weights, r"'visual.conv1.weight' has the shape \(64,\); expected 4 dimensions")


def test_an_integer_tensor_is_refused(weights, native):
    safetensors.torch.save_file(native | {"visual.proj": torch.zeros(64, 32, dtype=torch.int64)}, weights)
    refused(weights, "'visual.proj' holds torch.int64; expected floating-point numbers", **ASKED)


def test_an_unknown_layout_lists_its_names(tmp_path):
    path = tmp_path / "bert.safetensors"
    names = [f"encoder.layer.{index}.output.dense.weight" for index in range(9)]
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, path)
    text = refused(path, "of no known layout: 0 of its 9 names match")
    assert names[0] in text
    assert "and 4 more" in text
    safetensors.torch.save_file({"visual.trunk.blocks.0.a": torch.zeros(1), "text_decoder.b": torch.zeros(1)}, path)
    refused(path, "of no known layout")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()},
        lambda state: {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}, "scaler": None},
        lambda state: {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": state},
        lambda state: state | {"logit_scale": state["logit_scale"].reshape(1)},
        lambda state: state | {"transformer.attn_mask": torch.zeros(3), "context_length": torch.tensor(24)},
    ],
)
def test_wrapped_and_older_checkpoints_are_unwrapped(wrap, native, tmp_path):
    torch.save(native, tmp_path / "plain.pt")
    torch.save(wrap(native), tmp_path / "wrapped.pt")
    same_weights(load(tmp_path / "plain.pt", **ASKED), load(tmp_path / "wrapped.pt", **ASKED))


def test_averaged_weights_are_a_choice(native, tmp_path):
    path = tmp_path / "epoch_3.pt"
    averaged = {name: tensor + 1 for name, tensor in native.items()}
    torch.save({"epoch": 3, "state_dict": native, "state_dict_ema": averaged}, path)
    model = load(path, **ASKED)
    assert any("left the averaged weights" in note for note in model.provenance["notes"])
    assert torch.equal(load(path, ema=True, **ASKED).visual.proj, model.visual.proj + 1)
    torch.save({"state_dict": native}, path)
    refused(path, "has no averaged weights", ema=True)
    torch.save({"state_dict_ema": native}, path)
    refused(path, "holds only averaged weights")


def test_checkpoints_that_hold_something_else(native, tmp_path):
    path = tmp_path / "weights.pt"
    for tree, message in (
        ({"state_dict": {}}, "holds no tensors"),
        ([1, 2], "holds a list; expected a dict of tensors"),
        (native | {"note": "hello"}, "the entry 'note' is a str"),
        (
            {"module.a._orig_mod.b": native["visual.proj"], "module.a.b": native["visual.proj"]},
            "two tensors are both called 'a.b'",
        ),
    ):
        torch.save(tree, path)
        refused(path, message)


# Our own folder and its manifest.


@pytest.fixture
def folder(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model")
    return tmp_path / "model"


def test_a_flipped_byte_is_found_by_the_manifest(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(folder, r"'model.safetensors' is not the one that was saved \(its SHA-256 differs\)")
    load(folder, verify=False)  # safetensors itself does not notice


def test_a_cut_a_missing_and_a_swapped_file_are_found(folder, tmp_path):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(folder, rf"'model.safetensors' has {len(data) - 1} bytes; expected {len(data)}")
    path.unlink()
    refused(folder, "holds no weights|is missing")
    save(random_model("tiny-vit", activation="quick_gelu"), tmp_path / "other")
    path.write_bytes(data)
    (folder / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    refused(folder, "'config.json' (has|is not the one)")


def test_a_missing_or_malformed_manifest_is_refused(folder):
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    path.unlink()
    refused(folder, "no manifest.json, so the files cannot be checked")
    for change, message in (
        ({"version": 9}, "not a manifest of this version"),
        ({"files": {"../secret": {"bytes": 1, "sha256": "0"}}}, "names the file '../secret'; expected a plain file name"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}}, "names the file '/etc/passwd'"),
        ({"files": {"config.json": {"bytes": "1"}}}, "the entry of 'config.json' is malformed"),
        ({"files": {"gone.bin": {"bytes": 1, "sha256": "0"}}}, "the file 'gone.bin' of the manifest is missing"),
    ):
        path.write_text(json.dumps(tree | change))
        refused(folder, message)
    path.write_text("{")
    refused(folder, "not JSON")


def test_a_folder_with_something_in_it_is_not_written_over(folder, tmp_path):
    other = random_model("tiny-resnet")
    with pytest.raises(CheckpointError, match="already has something in it"):
        save(other, folder)
    save(other, folder, overwrite=True)
    same_weights(other, load(folder, dtype="float32"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        save(other, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(folder, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(
        "ostension.formats.writer.write_manifest", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        save(random_model("tiny-resnet"), folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointError, match="cannot be written"):
            save(random_model("tiny-vit"), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_died_half_way_is_put_back(folder):
    before = random_model("tiny-vit")
    folder.rename(folder.with_name(".model.replaced"))  # where the kill struck
    with pytest.raises(CheckpointError, match="already has something in it"):
        save(random_model("tiny-resnet"), folder)
    same_weights(before, load(folder, dtype="float32"))


@pytest.mark.slow
def test_a_save_that_is_killed_never_leaves_a_half_folder(tmp_path):
    import subprocess
    import sys

    code = (
        "import os; import ostension.formats.writer as writer\n"
        "writer.write_manifest = lambda folder: os._exit(9)\n"
        "from ostension.formats.load import save\n"
        "from ostension.model.clip import CLIP\n"
        "from ostension.model.presets import preset\n"
        f"save(CLIP(preset('tiny-vit')), {str(tmp_path / 'model')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "model").exists()
    refused(tmp_path / "model", "no such file or folder")
    assert len(list(tmp_path.iterdir())) == 1  # what the dead process was writing
    save(random_model("tiny-vit"), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"qk_norm": True}}, "vision_cfg.qk_norm is True, which this library does not compute"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text_cfg.hf_model_name is 'roberta-base'"),
        ({"text_cfg": {"embed_cls": True}}, "text_cfg.embed_cls is True"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "vision_cfg.layers is|timm's 'convnext_base'"),
        ({"multimodal_cfg": {}}, "model_cfg.multimodal_cfg is"),
        ({"vision_cfg": {"layers": 4}}, "tensors are missing: 'visual.transformer.resblocks.3"),
        ({"vision_cfg": {"head_width": 5}}, "vision.width is 48; expected a multiple of head_width 5"),
        ({"text_cfg": {"heads": 5}}, "text_cfg.heads is 5; expected a divisor"),
        ({"embed_dim": "512"}, "embed_dim is '512'; expected a whole number"),
        ({"vision_cfg": {"act_kwargs": {"approximate": "weird"}}}, "act_kwargs is"),
    ],
)
def test_open_clip_settings_that_cannot_be_computed_are_named(change, message, tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "open_clip")
    path = tmp_path / "model" / "open_clip_config.json"
    tree = json.loads(path.read_text())
    for key, value in change.items():
        if isinstance(value, dict) and key in tree["model_cfg"]:
            tree["model_cfg"][key] |= value
        else:
            tree["model_cfg"][key] = value
    path.write_text(json.dumps(tree))
    refused(tmp_path / "model", message)


def test_an_open_clip_folder_without_preprocessing_asks_for_it(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "open_clip")
    path = tmp_path / "model" / "open_clip_config.json"
    tree = json.loads(path.read_text())
    del tree["preprocess_cfg"]
    path.write_text(json.dumps(tree))
    refused(tmp_path / "model", "does not say its preprocess, and shapes cannot tell")
    assert load(tmp_path / "model", preprocess="openai").config.preprocess.mode == "openai-exact"


def test_a_hugging_face_file_without_its_configuration_asks_for_the_folder(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    (tmp_path / "model" / "config.json").unlink()
    refused(tmp_path / "model" / "model.safetensors", "needs its config.json beside it")


def test_a_weight_file_finds_the_configuration_beside_it(tmp_path):
    model = random_model("tiny-vit")
    for layout, name in (
        ("hf", "model.safetensors"),
        ("open_clip", "open_clip_model.safetensors"),
        ("ostension", "model.safetensors"),
    ):
        save(model, tmp_path / layout, layout)
        same_weights(model, load(tmp_path / layout / name, dtype="float32"))


def test_a_folder_with_two_layouts_reads_the_one_asked_for(tmp_path):
    one, other = random_model("tiny-vit"), random_model("tiny-vit", activation="quick_gelu")
    save(one, tmp_path / "both", "open_clip")
    save(other, tmp_path / "hf", "hf")
    for path in (tmp_path / "hf").iterdir():
        (tmp_path / "both" / path.name).write_bytes(path.read_bytes())
    assert load(tmp_path / "both").config.text.activation == "gelu"
    assert load(tmp_path / "both", layout="hf_clip").config.text.activation == "quick_gelu"


def test_a_zip_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    refused(tmp_path / "photos.zip", r"a zip archive of no known kind \(it holds photo.jpg\)")
