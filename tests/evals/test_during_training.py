"""Evaluation during training: against the plain computation, in bounded memory, without touching the run."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.cli.main import main
from ostension.data.labelled import open_labelled
from ostension.errors import ConfigError, DataError, LimitError
from ostension.evals import during_training
from ostension.evals.during_training import EvaluationConfig, ZeroShotConfig, parse_task
from ostension.losses import contrastive_loss
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining

COLOURS = {"red_ball": (255, 0, 0), "green_box": (0, 160, 0), "blue_cone": (0, 0, 255)}
NEW_NAMES = ZeroShotConfig(data="emoji:new-style-new-names", candidates="present")


def tiny():
    """A tiny model whose context holds every prompt of the emoji task."""
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return dataclasses.replace(base, text=text, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model():
    return CLIP(tiny(), seed=1).eval()


@pytest.fixture
def folder(tmp_path):
    """Three classes of two pictures each, one with three."""
    root = tmp_path / "shapes" / "val"
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for index in range(2 + (label == "red_ball")):
            pixels = np.random.default_rng([index, *colour]).integers(0, 60, (40, 40, 3)) + np.array(colour) // 2
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{index}.png")
    return root


@pytest.fixture
def captioned(folder):
    """A table of the same pictures, the red ones with two captions each."""
    table = folder.parent / "pairs.csv"
    with open(table, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["filepath", "title", "label"])
        for path in sorted(folder.rglob("*.png")):
            writer.writerow([path.relative_to(table.parent), f"a {path.parent.name} {path.stem}", path.parent.name])
    return table


def test_a_folder_of_classes_is_measured_as_the_classifier_says(folder, model):
    found = EvaluationConfig(zero_shot=(ZeroShotConfig(data=str(folder)),), batch_size=2).build(model)(model, 1)
    paths = sorted(folder.rglob("*.png"))
    names = [name.replace("_", " ") for name in sorted(COLOURS)]
    predictor = model.classifier(names)
    right = np.mean([predictor([path])[0].label == path.parent.name.replace("_", " ") for path in paths])
    assert found == {"folder:val/top1": pytest.approx(right), "folder:val/samples": 7, "folder:val/classes": 3}


def test_the_emoji_task_names_its_split_and_may_ask_for_the_present_names_only(model):
    everything = dataclasses.replace(NEW_NAMES, candidates="all")
    for config, classes in ((everything, 1636), (NEW_NAMES, 245)):
        found = EvaluationConfig(zero_shot=(config,)).build(model)(model, 1)
        assert found["emoji:new-style-new-names/classes"] == classes and found["emoji:new-style-new-names/samples"] == 245
        assert 0 <= found["emoji:new-style-new-names/top1"] <= found["emoji:new-style-new-names/top5"] < 0.2


def test_the_loss_of_held_out_pairs_is_exact_over_all_of_them_and_blocks_change_nothing(model, monkeypatch):
    config = EvaluationConfig(pairs=("emoji:new-style-new-names",), batch_size=100)
    found = config.build(model)(model, 1)
    evaluation = config.build(model)
    images = torch.cat([model.encode_image(block, normalize=True) for block in evaluation.pairs[0].pictures.blocks()])
    texts = model.encode_text(model.tokenizer(_captions()), normalize=True)
    expected = contrastive_loss(images.detach(), texts.detach(), model.scale().detach())
    assert found["emoji:new-style-new-names/loss"] == pytest.approx(float(expected.loss), abs=2e-6)
    hits = (images @ texts.T).argmax(1) == torch.arange(245)
    assert found["emoji:new-style-new-names/image_to_text_r1"] == pytest.approx(float(hits.float().mean()))
    monkeypatch.setattr(during_training, "SCORES", 1000)  # four rows at a time
    monkeypatch.setattr(during_training, "TEXT_ROWS", 7)
    small = dataclasses.replace(config, batch_size=9, cache_mb=0).build(model)(model, 1)
    assert small == pytest.approx(found, abs=2e-6)


def _captions():
    from ostension.data.open import open_pairs

    source = open_pairs("emoji:new-style-new-names")
    return [source.read(index).texts[0] for index in range(len(source))]


def test_a_picture_with_several_captions_is_found_by_any_of_them(tmp_path, model):
    for index in range(3):
        Image.new("RGB", (32, 32), (80 * index, 10, 200)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("\n".join(f"caption {word} {index}" for word in ("one", "two")[: 1 + index % 2]))
    found = EvaluationConfig(pairs=(str(tmp_path),)).build(model)(model, 1)
    assert found[f"{tmp_path}/samples"] == 3 and found[f"{tmp_path}/texts"] == 4
    assert found[f"{tmp_path}/image_to_text_r5"] == found[f"{tmp_path}/text_to_image_r5"] == 1.0


def test_pictures_are_decoded_once_as_far_as_the_memory_goes(model, monkeypatch):
    config = EvaluationConfig(zero_shot=(NEW_NAMES,), batch_size=100)
    decoded = []
    real = model.transform.pixels
    monkeypatch.setattr(type(model.transform), "pixels", lambda self, image, **rest: decoded.append(1) or real(image, **rest))
    # One block of 100 is 100 x 3 x 32 x 32 bytes = 0.3 MB.
    for cache_mb, again in ((512, 0), (0, 245)):
        decoded.clear()
        evaluation = dataclasses.replace(config, cache_mb=cache_mb).build(model)
        first = evaluation(model, 1)
        assert len(decoded) == 245
        assert evaluation(model, 2) == first and len(decoded) == 245 + again


def test_a_source_that_serves_twice_is_embedded_once(model, monkeypatch):
    config = EvaluationConfig(zero_shot=(NEW_NAMES,), pairs=("emoji:new-style-new-names",), batch_size=245)
    evaluation = config.build(model)
    calls = []
    real = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda *args, **rest: calls.append(1) or real(*args, **rest))
    evaluation(model, 1)
    assert len(calls) == 1


def test_what_cannot_be_used_is_an_error_that_names_it(folder, captioned, model, tmp_path):
    def build(**settings):
        return EvaluationConfig(**settings).build(model)

    record = tmp_path / "shapes.toml"
    record.write_text(
        'title = "Shapes"\nversion = 1\ntemplates = ["{}"]\nlicence = "none"\ncitation = "none"\n'
        '[splits.val]\ncount = 7\n[splits.small]\ncount = 2\n[classes]\nred_ball = "ball"\ngreen_box = "box"\n'
    )
    with pytest.raises(DataError, match="blue_cone/0.png: the label 'blue_cone' is no class of the task"):
        build(zero_shot=(ZeroShotConfig(data=str(folder), task=str(record)),))
    with open(record, "a") as handle:
        handle.write('blue_cone = "cone"\n')
    for data in (folder, captioned):
        task = ZeroShotConfig(data=str(data), task=str(record), split="val")
        assert build(zero_shot=(task,))(model, 1)["shapes:val/samples"] == 7
    with pytest.raises(DataError, match="7 samples in the split 'small'"):
        build(zero_shot=(ZeroShotConfig(data=str(folder), task=str(record), split="small"),))
    with pytest.raises(ConfigError, match="split"):
        build(zero_shot=(ZeroShotConfig(data=str(folder), task=str(record), split="test"),))
    with pytest.raises(ConfigError, match="has no task"):
        build(zero_shot=(ZeroShotConfig(data=str(captioned)),))
    with pytest.raises(ConfigError, match="twice"):
        EvaluationConfig(pairs=("a.tar", "a.tar"))
    broken = folder / "green_box" / "1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(DataError, match="green_box/1.png"):
        build(zero_shot=(ZeroShotConfig(data=str(folder)),))(model, 1)
    (folder / "green_box" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="1 x no picture by its name"):
        build(zero_shot=(ZeroShotConfig(data=str(folder)),))


def test_a_prompt_that_the_context_cannot_hold_is_told_before_the_run():
    short = CLIP(preset("tiny-vit"), seed=1)
    with pytest.raises(LimitError, match="class 'hand with index finger and thumb crossed'"):
        EvaluationConfig(zero_shot=(NEW_NAMES,)).build(short)


def test_a_labelled_folder_is_a_source_of_pairs(folder):
    source = open_labelled(str(folder))
    assert len(source) == 7 and source.key(0) == "blue_cone/0.png" and source.read(0).meta["label"] == "blue_cone"


def test_how_a_task_is_written():
    assert parse_task("emoji:train") == ZeroShotConfig(data="emoji:train")
    assert parse_task("oxford_pets=data/pets") == ZeroShotConfig(data="data/pets", task="oxford_pets")
    assert parse_task("a/b.toml@val=data/pets").name == "b:val"
    assert parse_task("data/flowers/val").name == "folder:val"


def pretraining(**settings):
    base = Pretraining(
        model=tiny(), batches=PairBatchesConfig(data="emoji:train", batch_size=16), train=_train_config(),
        evaluation=EvaluationConfig(zero_shot=(NEW_NAMES,)),
    )  # fmt: skip
    return base.changed(settings)


def _train_config():
    from ostension.train.train_config import TrainConfig

    return TrainConfig(steps=4, precision="fp32", evaluate_every=2, average=0.5)


def test_a_run_has_the_same_bits_with_and_without_evaluation(tmp_path):
    pretraining().run(tmp_path / "one")
    plain = dataclasses.replace(pretraining(**{"train.evaluate_every": 0}), evaluation=None)
    plain.run(tmp_path / "two")
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    records = read_records(tmp_path / "one", ["evaluation"])
    assert [record["step"] for record in records] == [2, 4] and "emoji:new-style-new-names/top5" in records[0]


def test_the_averaged_weights_are_what_is_evaluated_and_the_run_gets_its_own_back(tmp_path):
    seen = []

    class Looks:
        def build(self, model):
            return lambda model, step: seen.append(model.visual.proj.clone()) or {"x": 0.0}

    from ostension.formats.load import load

    made = dataclasses.replace(pretraining(), evaluation=None)
    made = dataclasses.replace(made, evaluation=Looks())
    made.run(tmp_path / "run")
    assert torch.equal(seen[-1], load(tmp_path / "run" / "model", device="cpu", dtype="float32").visual.proj)


def test_the_lowest_loss_and_the_highest_share_are_the_best(tmp_path):
    from ostension.train.checkpoint import CheckpointConfig, CheckpointStore

    class Plan:
        def build(self, model):
            return lambda model, step: {"a/loss": [3.0, 1.0, 2.0, float("nan")][step - 1], "a/top1": step / 10}

    for best, kept in (("a/loss", 2), ("a/top1", 4)):
        made = dataclasses.replace(pretraining(), evaluation=None, train=dataclasses.replace(
            _train_config(), evaluate_every=1, best=best, checkpoint=CheckpointConfig(every=100, keep=1))
        )  # fmt: skip
        dataclasses.replace(made, evaluation=Plan()).run(tmp_path / best.replace("/", "-"))
        assert list(CheckpointStore(tmp_path / best.replace("/", "-")).paths()) == sorted({kept, 4})


def test_evaluation_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["train", "--model", "tiny-vit", "--data", "emoji:train", "--steps", "1", "--batch-size", "4"]
    command += ["--run", str(tmp_path / "run"), "--eval-task", "emoji:new-style-new-names"]
    assert main(command) == 2 and "--eval-every" in capsys.readouterr().err
    pairs = ["--eval-every", "1", "--eval-pairs", "emoji:seen-style-new-names"]
    assert main([*command, *pairs, "--dry-run"]) == 0
    tree = json.loads(capsys.readouterr().out)["evaluation"]
    assert tree["pairs"] == ["emoji:seen-style-new-names"] and tree["zero_shot"][0]["data"] == "emoji:new-style-new-names"
    settings = [
        "train.best=emoji:new-style-new-names/top1",
        "model.text.context_length=48",
        "model.tokenizer.context_length=48",
    ]
    settings += [f"evaluation.zero_shot={json.dumps([dataclasses.asdict(NEW_NAMES)])}"]
    assert main([*command, *pairs, "--set", *settings]) == 0
    assert "evaluation at step 1: emoji:new-style-new-names/top1" in capsys.readouterr().err
