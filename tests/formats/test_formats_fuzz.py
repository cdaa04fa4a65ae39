"""Damaged and senseless files are refused in words, never with a traceback, and never run."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from format_samples import openai_model, random_model, traced

from ostension.errors import CheckpointError
from ostension.formats import containers, torchscript
from ostension.formats.load import save
from ostension.formats.reader import open_weights

SENSELESS = [None, "x", -1, 0, [], {}, 1e9, 10**9, True, [1, 2], float("inf"), "gelu"]
FILES = {
    "ostension": ["config.json", "manifest.json"],
    "open_clip": ["open_clip_config.json"],
    "hf": ["config.json", "preprocessor_config.json", "tokenizer_config.json"],
}


def places(tree, prefix=()):
    """The path of every value in a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", ["tiny-vit", "tiny-siglip"])
@pytest.mark.parametrize("layout", FILES)
def test_a_senseless_setting_is_refused_in_one_line(layout, kind, tmp_path):
    save(random_model(kind), tmp_path / "model", layout)
    choice = random.Random(f"{layout} {kind}")
    for name in FILES[layout]:
        path = tmp_path / "model" / name
        original = path.read_text()
        for place in places(json.loads(original)):
            changed = copy.deepcopy(json.loads(original))
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = choice.choice(SENSELESS)
            path.write_text(json.dumps(changed))
            try:
                open_weights(tmp_path / "model", verify=name == "manifest.json").state(lambda key, tensor: tensor)
            except CheckpointError as error:
                assert "\n" not in str(error)
        path.write_text(original)


def damaged(data: bytes, choice: random.Random, within: int) -> bytes:
    """`data` with some bytes of its beginning changed, now and then cut short."""
    changed = bytearray(data)
    for _ in range(choice.choice([1, 2, 8])):
        changed[choice.randrange(min(len(changed), within))] = choice.randrange(256)
    return bytes(changed[: choice.randrange(len(changed))] if choice.random() < 0.1 else changed)


@pytest.mark.parametrize("container", ["safetensors", "torch_zip", "torch_pickle"])
def test_a_damaged_file_is_read_or_refused(container, tmp_path):
    path, state, choice = tmp_path / "weights", random_model("tiny-vit").state_dict(), random.Random(container)
    if container == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "torch_zip")
    data = path.read_bytes()
    for _ in range(60):
        path.write_bytes(damaged(data, choice, 12_000))
        try:
            containers.read(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_a_damaged_description_of_an_archive_builds_nothing_but_tensors(tmp_path):
    path: Path = traced(openai_model(), tmp_path / "model.pt")
    choice = random.Random("archive")
    with zipfile.ZipFile(path) as archive:
        records = torchscript._Records(path, archive)
        data = records.text("data.pkl")
        for _ in range(300):
            try:
                torchscript._Unpickler(io.BytesIO(damaged(data, choice, len(data))), records).load()
            except (CheckpointError, *torchscript.DAMAGE):
                continue


def test_a_description_that_announces_a_huge_array_reserves_no_memory(tmp_path):
    path: Path = traced(openai_model(), tmp_path / "model.pt")
    announced = pickle.PROTO + b"\x02" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**50) + b"x" + pickle.STOP
    with zipfile.ZipFile(path) as archive:
        records = torchscript._Records(path, archive)
        with pytest.raises(KeyError):
            torchscript._Unpickler(io.BytesIO(announced), records).load()
