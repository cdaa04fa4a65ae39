"""OpenAI's archives are read without running them, and give the model that OpenAI's own code computes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from format_samples import inputs, openai_model, traced

from ostension.errors import CheckpointError
from ostension.formats import openai, torchscript
from ostension.formats.inspect import describe
from ostension.formats.load import load
from ostension.formats.table import expected_shapes, to_ours
from ostension.model.presets import preset

ENTRIES = {
    "RN50": 489,
    "RN101": 795,
    "RN50x4": 669,
    "RN50x16": 921,
    "RN50x64": 1353,
    "ViT-B-32": 302,
    "ViT-B-16": 302,
    "ViT-L-14": 446,
    "ViT-L-14-336": 446,
}


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_an_archive_gives_the_tensors_of_torch_jit_load(vision, tmp_path):
    path = traced(openai_model(vision), tmp_path / "model.pt", half=True)
    tensors, _ = torchscript.read_archive(path)
    program = torch.jit.load(path)
    expected = dict(program.named_parameters()) | dict(program.named_buffers())
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_an_archive_encodes_as_openais_code_does(vision, tmp_path):
    theirs = openai_model(vision)
    path = traced(openai_model(vision), tmp_path / "model.pt")
    ours = load(path, dtype="float32")
    images, tokens = inputs(ours)
    with torch.no_grad():
        image, text = ours.encode_image(images), ours.encode_text(tokens)
        assert torch.allclose(image, theirs.encode_image(images), atol=1e-5)
        assert torch.allclose(text, theirs.encode_text(tokens), atol=1e-5)
        assert torch.allclose(ours(images, tokens), theirs(images, tokens)[0], atol=1e-4)
    assert ours.config.text.activation == "quick_gelu"
    assert ours.config.preprocess.mode == "openai-exact"
    assert ours.config.tokenizer.mode == "openai"
    assert ours.config.layout == "openai"


def test_half_precision_is_cast_to_the_dtype_asked_for(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt", half=True)
    assert describe(path)["dtypes"].keys() == {"float16", "float32"}
    ours = load(path, dtype="float32")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert ours.provenance["facts"]["vision.activation"]["from"].startswith("a TorchScript archive with half-precision")


def test_an_archive_of_unknown_origin_says_its_activation_class_and_asks_for_the_rest(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt", integers=False)
    with pytest.raises(CheckpointError, match="does not say its preprocess nor its tokenizer"):
        load(path)
    ours = load(path, preprocess="openai", tokenizer="openai", dtype="float32")
    assert ours.config.vision.activation == "quick_gelu"
    with pytest.raises(CheckpointError, match="of a class QuickGELU"):
        load(path, activation="gelu")


def test_the_released_files_are_known_by_their_hash(tmp_path, monkeypatch):
    model = openai_model()
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="does not say its activation"):
        load(path)
    monkeypatch.setitem(openai.RELEASED, describe(path)["sha256"]["model.pt"], "ViT-B-32")
    ours = load(path, dtype="float32")
    assert ours.config.name == "ViT-B-32"
    assert ours.config.vision.activation == "quick_gelu"


def test_tensors_of_an_archive_can_be_written_to_without_changing_the_file(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt")
    before = path.read_bytes()
    tensors, _ = torchscript.read_archive(path)
    for tensor in tensors.values():
        tensor.zero_()
    assert path.read_bytes() == before


DEEP = ("RN101", "RN50x4", "RN50x16", "RN50x64")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in ENTRIES])
def test_the_architecture_of_the_nine_models_is_read_off_their_shapes(name):
    config = preset(name)
    shapes = expected_shapes(config)
    assert len(shapes) == ENTRIES[name]
    with torch.device("meta"):
        state = {openai.entry(key).theirs[0]: torch.empty(shape) for key, shape in shapes.items()}
    state["logit_scale"] = torch.tensor(4.6052)
    state |= {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    path = Path("model.pt")  # only named in messages
    reading = openai.read(state, path, container="torchscript", evidence={}, digest=None)
    from ostension.formats.facts import Asked, resolve

    found, _ = resolve(reading, Asked())
    assert found.vision == config.vision
    assert found.text == config.text
    assert found.embed_dim == config.embed_dim
    ours = to_ours(state, openai.entry, found, path, "openai", lambda key, tensor: tensor)
    assert {key: tuple(tensor.shape) for key, tensor in ours.items()} == shapes


def rewritten(path, target, change):
    """A copy of a zip archive with some records changed: `change(name, bytes)` gives the new bytes, or None to drop it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_code_in_an_archives_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    code = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    path = traced(openai_model(), tmp_path / "model.pt")
    hostile = rewritten(path, tmp_path / "hostile.pt", lambda name, data: code if name.endswith("/data.pkl") else data)
    with pytest.raises(CheckpointError, match="wants to run or build 'os.system'"):
        load(hostile)
    assert not marker.exists()


def test_the_program_in_an_archive_is_never_read(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt")
    broken = rewritten(path, tmp_path / "broken.pt", lambda name, data: b"not a program" if "/code/" in name else data)
    assert load(broken, dtype="float32").config.embed_dim == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name.endswith("/data/3") else data, "the record 'data/3' is missing"),
        (lambda name, data: data[:-4] if name.endswith("/data/3") else data, "the storage '3' holds"),
        (lambda name, data: data[:-20] if name.endswith("/data.pkl") else data, "not a sound TorchScript archive"),
        (lambda name, data: b"\x80\x02}." if name.endswith("/data.pkl") else data, "the archive holds a dict"),
        (lambda name, data: b"" if name.endswith("/data.pkl") else data, "not a sound TorchScript archive"),
    ],
)
def test_a_damaged_archive_is_one_clear_line(change, message, tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(rewritten(path, tmp_path / "damaged.pt", change))
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_an_archive_fails_its_checksum(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    data[entry.header_offset + entry.file_size // 2 + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="fails its checksum"):
        load(path)


def test_a_compressed_record_is_refused(tmp_path):
    path = traced(openai_model(), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        load(tmp_path / "packed.pt")
