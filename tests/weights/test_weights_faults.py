"""What does not belong together is refused in one line, damage is noticed, and nothing half-written is left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch
from weight_samples import moved, state, tiny, weights, written

from ostension.cli.main import main
from ostension.errors import CheckpointError, ConfigError
from ostension.formats import manifest
from ostension.formats.load import load, save
from ostension.formats.manifest import write_manifest
from ostension.formats.quick_sum import quick_sum_file
from ostension.model.fingerprint import fingerprint
from ostension.weights import arithmetic
from ostension.weights.comparison import compare
from ostension.weights.sink import order
from ostension.weights.tensor_file import TensorFile


@pytest.fixture
def pair(tmp_path):
    model = tiny()
    return written(model, tmp_path / "start"), written(moved(model, 1), tmp_path / "end")


def refused(kind, message, call):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def changed(folder, change):
    """Change the tensors of a folder, with a manifest that fits."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(folder)


def test_a_file_that_is_not_as_it_was_saved_gives_no_result(pair, tmp_path):
    data = bytearray(weights(pair[1]))
    data[-3] ^= 1
    (pair[1] / "model.safetensors").write_bytes(bytes(data))
    refused(CheckpointError, "checksum differs", lambda: arithmetic.soup(pair, tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "start"]


def test_damage_is_noticed_where_a_copied_end_is_all_that_is_written(pair, tmp_path):
    data = bytearray(weights(pair[1]))
    data[-3] ^= 1
    (pair[1] / "model.safetensors").write_bytes(bytes(data))
    refused(CheckpointError, "checksum differs", lambda: arithmetic.interpolate(*pair, {1.0: tmp_path / "out"}))
    arithmetic.interpolate(pair[0], pair[0], {1.0: tmp_path / "whole"})
    assert manifest.verify(tmp_path / "whole") == manifest.verify(pair[0]) | {
        name: digest for name, digest in manifest.verify(tmp_path / "whole").items() if name == "provenance.json"
    }


def test_a_file_is_summed_while_it_is_read_from_front_to_back(pair):
    path = pair[0] / "model.safetensors"
    file = TensorFile(path)
    names = order(file.dtypes)
    file.follow()
    whole = {name: torch.Size(file.shapes[name]).numel() for name in names}
    file.read(names[-1], 0, whole[names[-1]])  # out of turn: counts for nothing
    for name in names:
        assert file.followed() is None
        middle = whole[name] // 3
        for start, stop in ((0, middle), (middle, whole[name])):
            file.read(name, start, stop)
    assert file.followed() == quick_sum_file(path)
    file.close()
    with TensorFile(path) as other:
        assert other.followed() is None  # nobody asked


def test_files_are_read_once_and_verified_by_what_was_read(pair, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(manifest, "quick_sum_file", lambda path: passes.append(path.name) or quick_sum_file(path))
    arithmetic.interpolate(*pair, {0.5: tmp_path / "half"})
    assert "model.safetensors" not in passes
    assert manifest.verify(tmp_path / "half", quick=True)


def test_a_file_cut_short_is_refused(pair, tmp_path):
    os.truncate(pair[1] / "model.safetensors", 10_000)
    refused(CheckpointError, "cut short", lambda: arithmetic.soup(pair, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_and_another_shape_are_named(pair, tmp_path):
    changed(pair[1], lambda tensors: tensors.pop("visual.proj"))
    refused(CheckpointError, r"missing: 'visual\.proj'", lambda: arithmetic.soup(pair, tmp_path / "out"))
    other = written(tiny("tiny-resnet"), tmp_path / "other")
    refused(CheckpointError, "the tensor .* is", lambda: arithmetic.soup([pair[0], other], tmp_path / "out", force=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(value, pair, tmp_path):
    changed(pair[1], lambda tensors: tensors["visual.proj"].view(-1)[7].fill_(value))
    message = r"end: the tensor 'visual\.proj' holds 1 numbers that are not finite"
    refused(CheckpointError, message, lambda: arithmetic.soup(pair, tmp_path / "out"))
    refused(CheckpointError, message, lambda: arithmetic.diff(*pair, tmp_path / "v.safetensors"))
    arithmetic.interpolate(*pair, {0.0: tmp_path / "start-alone"})  # the other one does not count
    assert weights(tmp_path / "start-alone") == weights(pair[0])


def test_a_result_that_overflows_its_type_is_refused(tmp_path):
    model, other = tiny().to(torch.float16), tiny().to(torch.float16)
    with torch.no_grad():
        model.visual.proj[0, 0], other.visual.proj[0, 0] = -60000.0, 60000.0
    folders = [written(model, tmp_path / "a"), written(other, tmp_path / "b")]
    refused(CheckpointError, "overflows float16", lambda: arithmetic.interpolate(*folders, {1.5: tmp_path / "out"}))


def test_a_variance_below_zero_is_refused(tmp_path):
    model = tiny("tiny-resnet")
    other = moved(model, 3, 0.5)
    folders = [written(model, tmp_path / "a"), written(other, tmp_path / "b")]
    refused(CheckpointError, "would be below 0", lambda: arithmetic.interpolate(*folders, {-9.0: tmp_path / "out"}))


def test_models_with_other_starts_are_refused_and_can_be_forced(tmp_path):
    base, stranger = tiny(seed=0), tiny(seed=1)
    folders = [
        written(moved(start, 3), tmp_path / name, start={"fingerprint": fingerprint(start)}, run={"step": 1})
        for name, start in (("a", base), ("b", stranger))
    ]
    refused(ConfigError, "share no start.*--force", lambda: arithmetic.soup(folders, tmp_path / "out"))
    notes = arithmetic.soup(folders, tmp_path / "out", force=True)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())["weights"]
    assert len(record["forced"]) == 1 and any("share no start" in note for note in notes)


def test_a_model_and_what_was_trained_from_it_share_a_start(tmp_path):
    base = tiny()
    start = written(base, tmp_path / "start", run={"step": 1})
    tuned = written(moved(base, 3), tmp_path / "tuned", start={"fingerprint": fingerprint(base)}, run={"step": 1})
    assert arithmetic.soup([start, tuned], tmp_path / "soup") == []
    again = written(moved(base, 4), tmp_path / "again", start={"fingerprint": fingerprint(base)}, run={"step": 1})
    assert arithmetic.soup([tmp_path / "soup", again], tmp_path / "sequel") == []


@pytest.mark.parametrize(
    ("key", "what"), [("class_list_sha256", "class lists"), ("prompts_sha256", "templates")], ids=["classes", "prompts"]
)
def test_heads_of_other_classes_or_templates_are_refused(key, what, tmp_path):
    model = tiny()
    folders = [written(moved(model, seed), tmp_path / f"m{seed}", **{key: f"{seed}abc"}) for seed in (1, 2)]
    refused(ConfigError, f"have other {what}", lambda: arithmetic.soup(folders, tmp_path / "out"))
    arithmetic.soup(folders, tmp_path / "out", force=True)


def test_other_preprocessing_is_refused_with_the_settings_that_differ(pair, tmp_path):
    tree = json.loads((pair[1] / "config.json").read_text())
    tree["preprocess"]["mean"] = [0.5, 0.5, 0.5]
    (pair[1] / "config.json").write_text(json.dumps(tree))
    write_manifest(pair[1])
    refused(ConfigError, "differ in preprocessing: preprocess.mean", lambda: arithmetic.soup(pair, tmp_path / "out"))
    assert main(["weights", "check", *map(str, pair)]) == 1


def test_a_vector_of_another_start_is_refused(pair, tmp_path):
    stranger = written(tiny(seed=9), tmp_path / "stranger")
    vector = tmp_path / "v.safetensors"
    arithmetic.diff(*pair, vector)
    refused(ConfigError, "does not come from", lambda: arithmetic.apply(stranger, [vector], [1.0], tmp_path / "out"))
    arithmetic.apply(stranger, [vector], [1.0], tmp_path / "out", force=True)
    # The same start in another layout is the same start.
    save(load(pair[0], dtype="float32"), tmp_path / "hf", layout="hf")
    refused(CheckpointError, "is no task vector",
            lambda: arithmetic.apply(pair[0], [pair[1] / "model.safetensors"], [1.0], tmp_path / "x"))  # fmt: skip


def test_coefficients_that_do_not_sum_to_one_are_refused(pair, tmp_path):
    refused(ConfigError, "sum to 0.9", lambda: arithmetic.mix(pair, [0.5, 0.4], tmp_path / "out"))
    refused(ConfigError, "finite", lambda: arithmetic.mix(pair, [float("nan"), 1.0], tmp_path / "out"))


def test_a_folder_that_is_read_or_full_is_not_written_over(pair, tmp_path):
    refused(ConfigError, "written and read", lambda: arithmetic.interpolate(*pair, {0.5: pair[0]}, overwrite=True))
    before = weights(pair[0])
    refused(CheckpointError, "already has something", lambda: arithmetic.soup(pair[:1], pair[1]))
    assert weights(pair[0]) == before


def test_a_full_disk_leaves_nothing_behind(pair, tmp_path, monkeypatch):
    written_bytes = []
    real = os.write

    def write(descriptor, data):
        if len(data) > 5_000:
            written_bytes.append(len(data))
            if len(written_bytes) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("ostension.weights.sink.os.write", write)
    for call in (
        lambda: arithmetic.soup(pair, tmp_path / "out"),
        lambda: arithmetic.diff(*pair, tmp_path / "v.safetensors"),
    ):
        written_bytes.clear()
        refused(CheckpointError, "No space left on device", call)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "start"]


def test_a_killed_process_leaves_the_old_result_and_the_next_one_cleans_up(pair, tmp_path):
    arithmetic.soup(pair[:1], tmp_path / "out")
    before = weights(tmp_path / "out")
    code = f"""
        import os
        from ostension.weights import arithmetic, sink
        sink.Sink.finish = lambda self: os._exit(9)
        arithmetic.soup([{str(pair[0])!r}, {str(pair[1])!r}], {str(tmp_path / "out")!r}, overwrite=True)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 9
    assert weights(tmp_path / "out") == before
    arithmetic.soup(pair, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "out", "start"]
    assert state(tmp_path / "out").keys() == state(pair[0]).keys()


def test_unrelated_models_are_far_apart_and_related_ones_near(pair, tmp_path):
    stranger = written(tiny(seed=9), tmp_path / "stranger")
    near, far = compare([pair[0], pair[1], stranger])
    assert near["cosine"] > 0.5 > 0.1 > abs(far["cosine"])
    assert near["notes"] and far["distance"] > near["distance"]
    assert compare([pair[0]])[0]["changed"] == 0
