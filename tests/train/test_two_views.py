"""Training on pictures and their copies: the loss against its definition, resumed runs, batches, what does not go together."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ostension.data.pictures import open_pictures
from ostension.errors import ConfigError, DataError
from ostension.formats.duplicate_detector import load_detector
from ostension.model.fingerprint import fingerprint
from ostension.recipes import RECIPES
from ostension.runtime import numpy_generator
from ostension.store import Store, embed
from ostension.train.objective import ContrastiveConfig
from ostension.train.step import backward
from ostension.train.two_views import TwoViewBatchesConfig, TwoViews, TwoViewsConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures, the last of them the same file as the first, in a folder and one within."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "more").mkdir()
    for index in range(12):
        draw = numpy_generator("two-views", index % 11)
        pixels = draw.integers(0, 255, (5, 7, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((35, 25)).save(place / ("more" if index % 2 else ".") / f"{index:02d}.png")
    (place / "notes.csv").write_text("not a picture")
    (place / ".hidden.png").write_text("passed over")
    return place


def pretraining(folder, **settings):
    base = RECIPES.load("duplicate-detector-small").smoke()
    return base.changed({"batches.data": str(folder), "batches.batch_size": 6, **settings})


def batch_of(folder, step=0):
    run = pretraining(folder)
    return run.batches.build(run.initial_model()).batch(step)


def test_a_folder_of_pictures_is_read_whole_and_other_files_are_counted(folder, tmp_path):
    source = open_pictures(folder)
    assert len(source) == 12
    assert source.key(0) == "00.png"
    assert source.key(11) == "more/11.png"
    assert source.summary().rejects == {"no picture by its name": 1}
    assert len(open_pictures([folder, "emoji:train"])) > 12
    with pytest.raises(DataError, match="no picture"):
        open_pictures(tmp_path)


def test_the_loss_is_the_n_pair_loss_at_the_fixed_temperature_in_both_directions(folder):
    run, batch = pretraining(folder), batch_of(folder)
    batch = dataclasses.replace(batch, groups=torch.arange(len(batch)))
    objective = TwoViews(run.initial_model().double(), TwoViewsConfig(temperature=0.07))
    found = objective.loss(objective.embed(batch), batch.groups)
    original, copy = (F.normalize(objective.detector(batch.images[:, view].double()), dim=1) for view in range(2))
    logits, right = original @ copy.T / 0.07, torch.arange(len(batch))
    plain = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(found.loss, plain)
    hits = (logits.argmax(1) == right).double().mean() + (logits.argmax(0) == right).double().mean()
    assert float(found.measured["copy_accuracy"]) == pytest.approx(float(hits / 2))


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(folder):
    gradients = []
    for piece in (None, 2):
        objective = TwoViews(pretraining(folder).initial_model().double())
        batch = batch_of(folder)
        backward(objective, dataclasses.replace(batch, images=batch.images.double()), piece)
        gradients.append([weight.grad for weight in objective.module.parameters()])
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_files_of_the_same_bytes_are_no_negatives_of_each_other(folder):
    batches = pretraining(folder, **{"batches.batch_size": 12}).batches.build(pretraining(folder).initial_model())
    batch = batches.batch(0)
    groups = dict(zip(batch.keys, batch.groups.tolist(), strict=True))
    assert groups["00.png"] == groups["more/11.png"]
    assert len(set(groups.values())) == 11


def test_the_first_view_is_the_picture_as_the_detector_sees_it_and_a_step_gives_the_same_batch_twice(folder):
    run = pretraining(folder)
    detector = run.initial_model()
    batches = run.batches.build(detector)
    batch = batches.batch(3)
    torch.testing.assert_close(batch.images, batches.batch(3).images, rtol=0, atol=0)
    assert batch.images.shape == (6, 2, 3, 16, 16)
    torch.testing.assert_close(batch.images[0, 0], detector.transform(folder / batch.keys[0]))
    halves = [batches.batch(3, rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat([half.images for half in halves]), batch.images, rtol=0, atol=0)


def test_a_run_that_stopped_half_way_and_went_on_ends_with_the_bits_of_one_that_did_not(folder, tmp_path):
    settings = {
        "train.steps": 6, "train.precision": "fp32", "train.device": "cpu", "train.checkpoint.every": 2,
        "train.checkpoint.keep": 9,
    }  # fmt: skip
    whole = pretraining(folder, **settings).run(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    # The state of a run that was killed after its checkpoint at step 4.
    (tmp_path / "whole" / "checkpoints" / "step_00000004").rename(tmp_path / "cut" / "step_00000004")
    resumed = pretraining(folder, **settings).run(tmp_path / "resumed", resume=tmp_path / "cut" / "step_00000004")
    first, second = load_detector(whole.model_folder), load_detector(resumed.model_folder)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(weight, second.state_dict()[name], rtol=0, atol=0)
    assert first.provenance["run"]["settings"]["objective"]["temperature"] == 0.07


def test_a_trained_detector_fills_a_store_under_its_own_fingerprint_and_can_be_gone_on_from(folder, tmp_path):
    settings = {"train.steps": 2, "train.precision": "fp32", "train.device": "cpu"}
    done = pretraining(folder, **settings).run(tmp_path / "run")
    detector = load_detector(done.model_folder)
    found = embed(Store(tmp_path / "store"), detector, open_pictures(folder), split="train")["post", 0]
    assert found.key.weights == fingerprint(detector)
    assert len(found) == 12
    rows = found.rows[:]
    assert np.array_equal(rows[0], rows[list(found.ids).index("more/11.png")])
    assert {"digest", "perceptual"} <= set(found.columns)
    later = dataclasses.replace(pretraining(folder, **settings), start=done.model_folder)
    assert fingerprint(later.initial_model()) == fingerprint(detector)
    with pytest.raises(ConfigError, match="another model: model.width"):
        later.changed({"model.width": 8}).initial_model()


def test_what_does_not_go_together_is_refused(folder):
    run = pretraining(folder)
    with pytest.raises(ConfigError, match=r"objective.kind is 'contrastive'"):
        dataclasses.replace(run, objective=ContrastiveConfig())
    with pytest.raises(ConfigError, match=r"objective.kind is 'contrastive'"):
        run.changed({"objective.kind": "contrastive"})
    with pytest.raises(ConfigError, match="no text tower"):
        run.changed({"train.checkpointing": "both"})
    with pytest.raises(ConfigError, match="freeze"):
        run.changed({"freeze.image.locked": True})
    with pytest.raises(ConfigError, match="temperature"):
        run.changed({"objective.temperature": 0})
    with pytest.raises(ConfigError, match="batch_size"):
        TwoViewBatchesConfig(data="emoji", batch_size=1)


def test_a_picture_that_cannot_be_read_is_replaced_and_told(folder, tmp_path):
    for name in ("00.png", "02.png", "04.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    run = pretraining(tmp_path, **{"batches.batch_size": 4})
    batch = run.batches.build(run.initial_model()).batch(0)
    assert [key for key, _ in batch.rejects] == ["zz.png"]
    assert len(batch) == 4


def test_the_paper_s_recipe_has_its_batch_temperature_and_number_of_pictures():
    found = RECIPES.load("duplicate-detector")
    run = found.recipe()
    assert (run.batches.batch_size, run.objective.temperature, found.pairs) == (1712, 0.07, 30_000_000)
    assert run.model.layers == (3, 4, 6, 3)
    assert run.tree()["model"]["preprocess"]["resize"] == "squash"


def test_a_grey_and_a_transparent_picture_have_two_views(tmp_path):
    Image.new("L", (9, 9), 40).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    (tmp_path / "dot.png").write_bytes(buffer.getvalue())
    run = pretraining(tmp_path, **{"batches.batch_size": 3})
    assert not run.batches.build(run.initial_model()).batch(0).rejects
