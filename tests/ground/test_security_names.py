"""Names that lead out of a folder, written into everything that names files: what they point at is never opened.

In each case the file outside is a sound copy of the right one, so that following the name would work.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from ostension.data.open import open_pairs
from ostension.errors import OstensionError
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import open_collection
from ostension.store.collection import collection_folder, drop
from ostension.store.folder import Store
from ostension.store.key import ModelKey
from ostension.store.writer import Writer


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return CLIP(preset("tiny-vit"), seed=0).eval()


def named_files(tree, names, place=()):
    """Every place in a JSON tree (as a key or a value) that holds the name of a file."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in names:
                yield (*place, ("key", key)), key
            yield from named_files(value, names, (*place, ("in", key)))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from named_files(value, names, (*place, ("in", index)))
    elif isinstance(tree, str) and tree in names:
        yield place, tree


def changed(tree, place, name):
    """A copy of the tree with another name at a place."""
    tree = json.loads(json.dumps(tree))
    within = tree
    for _, step in place[:-1]:
        within = within[step]
    kind, step = place[-1]
    if kind == "key":
        within[name] = within.pop(step)
    else:
        within[step] = name
    return tree


def saved_model(model, folder):
    save(model, folder)
    return lambda: load(folder, dtype="float32")


def saved_hub_folder(model, folder):
    save(model, folder, layout="hf")
    whole = (folder / "model.safetensors").read_bytes()
    names = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    (folder / "model-00001-of-00001.safetensors").write_bytes(whole)
    (folder / "model.safetensors").unlink()
    places = {name: "model-00001-of-00001.safetensors" for name in names if name != "__metadata__"}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return lambda: load(folder, dtype="float32")


def saved_predictor(model, folder):
    model.classifier(["cat", "dog"]).save(folder)
    return lambda: Predictor.load(folder, model)


def saved_collection(model, folder):
    from ostension.store.collection import collection_key

    rows = np.eye(4, model.config.embed_dim, dtype=np.float32)
    key = collection_key(ModelKey.of(model), "default")
    with Store(folder).writer(key, shard_rows=2) as writer:
        assert isinstance(writer, Writer)
        for start in (0, 2):
            writer.append(rows[start : start + 2], id=[f"id{start}", f"id{start + 1}"])
    return lambda: np.asarray(open_collection(folder).rows)


MAKERS = (saved_model, saved_hub_folder, saved_predictor, saved_collection)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_name_that_leads_out_of_the_folder_is_refused_wherever_it_stands(make, model, tmp_path):
    folder, outside = tmp_path / "inside", tmp_path / "outside"
    read = make(model, folder)
    read()
    shutil.copytree(folder, outside)
    files = {path for path in folder.rglob("*") if path.is_file()}
    tried = 0
    for record in sorted(path for path in files if path.suffix == ".json"):
        text = record.read_text()
        tree = json.loads(text)
        others = [path for path in record.parent.rglob("*") if path != record]
        names = {path.stem: path.with_suffix("") for path in others}
        names |= {path.name: path for path in others}
        for place, name in list(named_files(tree, names))[:4]:
            there = outside / names[name].relative_to(folder)
            depth = len(record.parent.relative_to(folder).parts) + 1
            for hostile in (str(there), "../" * depth + str(there.relative_to(tmp_path)), f"./{name}/../{name}"):
                record.write_text(json.dumps(changed(tree, place, hostile)))
                with pytest.raises(OstensionError) as caught:
                    read()
                assert "\n" not in str(caught.value)
                tried += 1
        record.write_text(text)
    read()
    assert tried or make is saved_predictor  # a predictor's record names no file at all


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "-x", "x" * 300])
def test_the_name_of_a_collection_is_never_a_path(name, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "outside").mkdir()
    for act in (open_collection, collection_folder, drop):
        with pytest.raises(OstensionError) as caught:
            act(tmp_path / "store", name)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "outside").is_dir()


HOSTILE = (
    "../escape.jpg",
    "{root}/escape-by-root.jpg",
    "a/../../escape.jpg",
    "..\\escape.jpg",
    "C:\\escape.jpg",
    "./../escape.jpg",
)


def test_members_of_archives_are_never_written_where_their_names_say(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    hostile = [name.format(root=tmp_path.as_posix()) for name in HOSTILE]
    inside = tmp_path / "inside"
    inside.mkdir()
    picture = b"\xff\xd8\xff no picture"
    (tmp_path / "file").write_bytes(picture)
    with tarfile.open(inside / "a.tar", "w") as archive:
        for name in hostile:
            archive.add(tmp_path / "file", arcname=name)
            info = tarfile.TarInfo(name.replace("jpg", "txt"))
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    with zipfile.ZipFile(inside / "a.pt", "w") as archive:
        for name in ("archive/data.pkl", "archive/version", *hostile):
            archive.writestr(name, b"\x80\x02}.")
    before = set(tmp_path.rglob("*"))
    for read in (lambda: [open_pairs(str(inside / "a.tar")).read(0)], lambda: load(inside / "a.pt", dtype="float32")):
        with pytest.raises(OstensionError):
            read()
    assert {path for path in tmp_path.rglob("*") if path.suffix != ".idx"} <= before
    assert not (tmp_path / "escape-by-root.jpg").exists() and not (tmp_path.parent / "escape.jpg").exists()
