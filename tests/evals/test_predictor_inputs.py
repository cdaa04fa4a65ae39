"""Saved predictors as what is measured: every method, with the task's names, by protocols that look at answers alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from eval_making import picture

import ostension
from ostension.adapt.base import METHODS, Examples, Labelled
from ostension.cli.main import main
from ostension.errors import CheckpointError, ConfigError
from ostension.evals.predictor_inputs import PredictorEmbedder
from ostension.evals.protocol import PROTOCOLS, load_protocol
from ostension.evals.results import Results
from ostension.evals.suite_run import Runner
from ostension.evals.targets import OpenedTasks, find_protocols, find_targets
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import Store

NAMES = ("cat", "dog", "cow")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=0).eval()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three classes in train and test, and two domains."""
    root = tmp_path_factory.mktemp("animals")
    for split, each in (("train", 4), ("test", 3)):
        for place, label in enumerate(NAMES):
            folder = root / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"{index}.png").write_bytes(picture(100 * each + 10 * place + index))
    (root / "animals.toml").write_text(
        'title = "Animals"\nversion = 1\ntemplates = ["a {}."]\nmetric = "accuracy"\nlicence = "mine"\ncitation = "me"\n'
        '[classes]\ncat = "cat"\ndog = "dog"\ncow = "cow"\n[splits.train]\ncount = 12\n[splits.test]\ncount = 9\n'
        '[[sources]]\nkind = "folder"\npath = "pictures"\nlevels = ["split", "label"]\n'
    )
    return root / "animals.toml"


def adapted(model, task, method, names=NAMES, **changes) -> Predictor:
    """A predictor of a method after no training."""
    made = METHODS.load(method)
    data = TaskSplits(task).split("train")
    config = made.Config(**changes)
    if hasattr(config, "recipe"):
        recipe = dataclasses.replace(config.recipe, epochs=1, views=0, batch_size=4, lr=0.002)
        config = dataclasses.replace(config, recipe=recipe)
    targets = np.minimum(data.targets, len(names) - 1)
    train = Labelled(source=data.samples, targets=targets, domains=np.arange(len(data)) % 2, name="train")
    return made.fit(model, Examples(class_names=names, train=train, val=train), config, seed=1)


def run(predictor, task, tmp_path, protocols=("zeroshot",), settings=None):
    embedder = PredictorEmbedder(predictor, Store(tmp_path / "store"), name="mine")
    runner = Runner(find_protocols(protocols, settings or {}), results=Results(tmp_path / "results"))
    return list(runner.suite(embedder, find_targets([str(task)]), OpenedTasks()))


def answers(predictor, task) -> np.ndarray:
    """What the predictor says of the test pictures themselves."""
    test = TaskSplits(task).split("test")
    return predictor.predict([test.samples.read(index).image for index in range(len(test))]).numpy()


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_is_measured_by_what_it_answers(model, task, tmp_path, method):
    predictor = adapted(model, task, method, **({"views": 4, "keep": 0.5, "mix": "augmix"} if method == "tpt" else {}))
    (step,) = run(predictor, task, tmp_path)
    assert step.status == "done", step.reason
    truth = TaskSplits(task).split("test").targets
    if predictor.depends != "batch":  # which here is all nine pictures, and in `predict` as well
        assert step.record.metrics["accuracy"].value == pytest.approx((answers(predictor, task).argmax(1) == truth).mean())
    assert step.record.model == "mine" and "predictor" in step.record.hashes
    assert run(predictor, task, tmp_path)[0].status == "recorded"


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_classifies_files_as_it_does_pictures(model, task, tmp_path, method, capsys):
    save(model, tmp_path / "model")
    loaded = ostension.load(tmp_path / "model", dtype="float32")
    predictor = adapted(loaded, task, method, **({"views": 4, "keep": 0.5} if method == "tpt" else {}))
    predictor.save(tmp_path / "mine")
    files = sorted((task.parent / "pictures" / "test").rglob("*.png"))[:3]
    asked = ["--predictor", str(tmp_path / "mine"), "--format", "jsonl", "--dtype", "float32"]
    assert main(["classify", *map(str, files), *asked]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = predictor([str(file) for file in files])
    assert [row["label"] for row in said] == [one.label for one in expected]
    assert [row["probability"] for row in said] == pytest.approx([one.probability for one in expected], abs=1e-4)


@pytest.mark.parametrize("method", ["coop", "vpt"])
def test_it_is_bound_to_the_names_of_the_task(model, task, tmp_path, method):
    predictor = adapted(model, task, method, names=("red", "blue"))
    (step,) = run(predictor, task, tmp_path)
    truth = TaskSplits(task).split("test").targets
    expected = (answers(predictor.bind(NAMES), task).argmax(1) == truth).mean()
    assert step.record.metrics["accuracy"].value == pytest.approx(expected)


def test_hand_written_prompts_that_were_saved_keep_their_templates(model, task, tmp_path):
    predictor = model.classifier(["red", "blue"], ["a blurry {}!"])
    (step,) = run(predictor, task, tmp_path)
    truth = TaskSplits(task).split("test").targets
    expected = (answers(model.classifier(NAMES, ["a blurry {}!"]), task).argmax(1) == truth).mean()
    assert step.record.metrics["accuracy"].value == pytest.approx(expected)
    (step,) = run(predictor.freeze().__class__(class_names=("a", "b"), weights=predictor.weights, scale=1.0, encoder=model),
                  task, tmp_path)  # fmt: skip
    assert step.status == "failed" and "belongs to its 2 classes" in step.reason


def test_a_change_of_what_was_learned_is_measured_again(model, task, tmp_path):
    first, second = adapted(model, task, "coop"), adapted(model, task, "coop", length=4)
    assert run(first, task, tmp_path)[0].status == "done"
    (step,) = run(second, task, tmp_path)
    assert step.status == "done" and "predictor was" in step.reason


def test_protocols_that_look_at_more_than_answers_are_not_applicable(model, task, tmp_path):
    predictor = adapted(model, task, "vpt")
    found = {step.protocol: step for step in run(predictor, task, tmp_path, PROTOCOLS.names())}
    assert "no answers are given" in found.pop("human").reason  # by people, whom it compares with
    for name, step in found.items():
        assert step.status == "not applicable" or (step.status == "done" and load_protocol(name).OF_PREDICTORS), step.reason
    assert {name for name, step in found.items() if step.status == "done"} == {"zeroshot", "calibration"}
    assert "a saved predictor answers with classes" in found["probe"].reason


def test_other_prompts_than_its_own_are_refused(model, task, tmp_path):
    predictor = adapted(model, task, "coop")
    (step,) = run(predictor, task, tmp_path, settings={"zeroshot.templates": "photo"})
    assert step.status == "failed" and "has its own prompts" in step.reason
    (step,) = run(predictor, task, tmp_path, protocols=["calibration"])
    assert step.status == "done" and step.record.config["scale"] == pytest.approx(predictor.scale)


def test_rows_before_the_projection_are_refused_where_the_image_side_changes(model, task, tmp_path):
    embedder = PredictorEmbedder(adapted(model, task, "vpt"), Store(tmp_path))
    data = TaskSplits(task).split("test")
    with pytest.raises(ConfigError, match="before the projection.*probe=false"):
        embedder.rows(data, "pre")
    assert embedder.rows(data, "post") is embedder.rows(data, "post")  # pictures pass the tower once


def test_evaluate_takes_a_predictor(model, task):
    (record,) = ostension.evaluate(adapted(model, task, "coop"), [str(task)])
    assert record.protocol == "zeroshot" and record.model == "coop"


def test_the_command_measures_predictors_beside_models(model, task, tmp_path, capsys):
    save(model, tmp_path / "model")
    loaded = ostension.load(tmp_path / "model", dtype="float32")
    adapted(loaded, task, "coop").save(tmp_path / "my-coop")
    adapted(loaded, task, "vpt").save(tmp_path / "my-vpt")
    asked = ["eval", "run", str(task), "--store", str(tmp_path / "store"), "-o", str(tmp_path / "results"), "--json"]
    both = ["--predictor", str(tmp_path / "my-coop"), "--predictor", str(tmp_path / "my-vpt")]
    assert main([*asked, *both]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == ["my-coop", "my-vpt"] and all(row["status"] == "done" for row in rows)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert main([*asked, *both]) == 1 and "no longer at" in capsys.readouterr().err
    assert main([*asked, *both, "--model", str(tmp_path / "moved")]) == 0  # found among the models that are measured
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["model"]: row["status"] for row in rows} == {"moved": "done", "my-coop": "recorded", "my-vpt": "recorded"}
    assert main([*asked, *both, "--model", str(tmp_path / "moved"), "--protocol", "retrieval"]) == 0
    assert "retrieval is not applicable" in capsys.readouterr().err
    assert main(["eval", "run", "--features", "test.npz", *both[:2], "-o", str(tmp_path / "results")]) == 2


def test_a_predictor_of_another_model_or_damaged_is_one_line(model, task, tmp_path, capsys):
    save(CLIP(model.config, seed=9), tmp_path / "other")
    adapted(model, task, "coop").save(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="made with the encoder"):
        Predictor.load(tmp_path / "mine", tmp_path / "other")
    asked = ["eval", "run", str(task), "-o", str(tmp_path / "results"), "--store", str(tmp_path / "store"), "--predictor"]
    assert main([*asked, str(tmp_path / "mine")]) == 1
    assert "not saved at that time" in (said := capsys.readouterr().err) and said.count("\n") == 1
    data = (tmp_path / "mine" / "predictor.safetensors").read_bytes()
    (tmp_path / "mine" / "predictor.safetensors").write_bytes(data[:-1])
    assert main([*asked, str(tmp_path / "mine")]) == 1
    assert "SHA-256" in (said := capsys.readouterr().err) and said.count("\n") == 1
