"""The grid: its points, its budget, what is kept and resumed, and the law of what came."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ostension.cli.main import main
from ostension.config import config_hash, from_tree, to_tree
from ostension.errors import ConfigError, DataError, DivergenceError
from ostension.evals.during_training import EvaluationConfig, ZeroShotConfig
from ostension.files import read_json, write_json
from ostension.model.presets import preset
from ostension.recipes import _scaling_run as scaling_run
from ostension.recipes import demo
from ostension.recipes._emoji_batches import emoji_set
from ostension.recipes._emoji_grid import EmojiQuestions, default_grid, shared, smoke_grid, widths
from ostension.recipes._scaling_grid import GridConfig, narrower, points_of, short, widths_grid, with_steps
from ostension.recipes._scaling_run import RunConfig, run_grid
from ostension.runlog import RunLog, read_records
from ostension.train.loop import TrainResult
from ostension.train.pretraining import Pretraining

TINY = {
    "recipe": "demo",
    "settings": {"batches.every": 32, "batches.concepts": 4},
    "sizes": {"small": widths(8, 64), "large": widths(16, 64)},
    "data": {"half": {"batches.share": 0.5}, "all": {}},
    "samples": [800, 1600, 3200],
    "targets": ["new-style/top1", "new-style/text_to_image_r5"],
}


def grid(**changes):
    return from_tree(GridConfig, {**TINY, **changes})


class Fakes:
    """Stands for training: every step takes a tenth of a second, errors lie on 3 C^-0.2 and more with less data."""

    def __init__(self):
        self.trained, self.diverge, self.stop_at = [], (), None

    def run(self, pretraining, folder, *, trackers=(), **_):
        steps, batch = pretraining.train.steps, pretraining.batches.concepts * pretraining.batches.drawings
        folder.mkdir(parents=True, exist_ok=True)
        done = read_records(folder)[-1]["step"] if (folder / "log.jsonl").exists() else 0
        self.trained.append((folder.name, done))
        write_json(folder / "config.json", {"data": {"fingerprint": "f"}, "train": {"steps": steps}})
        write_json(folder / "run.json", {"config_hash": config_hash(pretraining.model)})
        with RunLog(folder) as log:
            log.write("resume" if done else "start", done)
            if folder.name in self.diverge:
                raise DivergenceError("the loss is nan")
            last = steps // 2 if self.stop_at == folder.name else steps
            log.write("step", last, step_s=0.1, samples_seen=last * batch, loss=1.0)
            if last < steps:
                self.stop_at = None
                return TrainResult(status="stopped", step=last, folder=folder, signal=int(signal.SIGTERM))
            compute = sum(parameter for parameter in (pretraining.model.vision.width,)) * steps * batch
            worse = 1.0 if pretraining.batches.share == 1 else 1.2
            right = 1 - worse * 3.0 * compute**-0.2
            log.write("evaluation", steps, **{
                "new-style/top1": right, "new-style/text_to_image_r5": right, "new-style/samples": 400, "new-style/texts": 400,
                "new-style/median_rank": 3.0,
            })  # fmt: skip
            log.write("end", steps, status="finished")
        (folder / "model").mkdir()
        (folder / "checkpoints").mkdir()
        save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, folder / "model" / "model.safetensors")
        return TrainResult(status="finished", step=steps, folder=folder, model_folder=folder / "model")


@pytest.fixture
def fakes(monkeypatch):
    """No training: see `Fakes`; compute follows the width of the image tower, and a trial says a tenth of a second a step."""
    fakes = Fakes()
    monkeypatch.setattr(Pretraining, "run", lambda self, folder, **options: fakes.run(self, folder, **options))
    monkeypatch.setattr(scaling_run, "_seconds_per_step", lambda point: 0.1)
    monkeypatch.setattr("ostension.recipes._scaling_grid.gmac_per_pair", lambda model: float(model.vision.width))
    return fakes


def test_the_cheapest_point_comes_first_and_each_has_its_whole_schedule():
    points = points_of(grid(), (800, 1600, 3200))
    assert [point.name for point in points][:2] == ["small-800-half", "small-800-all"]
    assert points[-1].name == "large-3.2k-all"
    computes = [point.compute for point in points]
    assert computes == sorted(computes)
    own = demo.recipe()
    for point in points:
        train = point.pretraining.train
        assert train.steps == point.samples_seen / 8
        assert train.schedule.warmup_steps == pytest.approx(own.train.schedule.warmup_steps * train.steps / 2300, abs=0.5)
        assert point.pretraining.batches.ramp_steps == pytest.approx(train.steps / 4, abs=0.5)
        assert train.evaluate_every == train.steps
        assert point.pretraining.train.optim == own.train.optim
    assert {point.pretraining.batches.share for point in points if point.data == "half"} == {0.5}
    wide = {point.size: point.gmac_per_pair for point in points}
    assert wide["large"] > 1.5 * wide["small"]


def test_compute_is_counted_in_products():
    point = points_of(grid(sizes={"demo": {}}), (800,))[0]
    image = 16 * 16 * 9 * (3 * 16 + 16 * 16 + 16 * 32)  # the stem alone, at half of 32 pixels
    assert point.gmac_per_pair > image / 1e9
    assert point.compute == point.gmac_per_pair * 800


def test_a_recipes_own_steps_give_the_recipe_back():
    own = demo.recipe()
    assert with_steps(own, own.train.steps) == own
    assert with_steps(own, 230).train.schedule.warmup_steps == 12
    assert with_steps(own, 23).train.checkpoint.every == 10


def test_a_share_of_the_names_is_part_of_a_larger_one_and_leaves_the_held_out_pictures():
    emoji = emoji_set(32)

    def seen(share):
        part = shared(emoji, share, 0)
        assert np.array_equal(part.pixels[part.rows("new-style-seen-names")], emoji.pixels[emoji.rows("new-style-seen-names")])
        return set(part.concept[part.rows("train")].tolist())

    quarter, half, all_of_it = seen(0.25), seen(0.5), seen(1.0)
    assert quarter < half < all_of_it
    assert len(half) == round(len(all_of_it) / 2)
    assert shared(emoji, 0.5, 0).fingerprint != shared(emoji, 0.25, 0).fingerprint != emoji.fingerprint


def test_every_grid_that_comes_with_it_can_be_made():
    for made, count in ((default_grid(), 18), (smoke_grid(), 8)):
        points = points_of(made, [int(64 * 2560 * amount) for amount in (1, 2, 4)] if made.samples is None else made.samples)
        assert len(points) == count
        assert from_tree(GridConfig, json.loads(json.dumps(to_tree(made)))) == made
    assert isinstance(points[0].pretraining.evaluation, EmojiQuestions)
    assert points[0].pretraining.evaluation.every == 16


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "tiny-resnet"])
def test_towers_are_made_narrower_to_whole_heads(name):
    model = preset(name)
    base = dataclasses.replace(demo.recipe(), model=model)
    half = base.changed(narrower(model, 0.5)).model
    assert half.vision.width == pytest.approx(model.vision.width / 2, rel=0.34)
    assert half.text.width <= max(64, model.text.width / 2)
    assert base.changed(narrower(model, 1.0)).model == model


def test_any_recipe_can_be_a_grid():
    made = widths_grid("demo", {}, EvaluationConfig(zero_shot=(ZeroShotConfig(data="emoji:new-style-new-names"),)))
    assert made.targets == ("emoji:new-style-new-names/top1",)
    assert list(made.sizes) == ["w50", "w75", "w100"]
    points = points_of(made, (2560, 5120))
    assert points[-1].pretraining.model == demo.model()
    with pytest.raises(ConfigError, match="unknown recipe 'dem'"):
        widths_grid("dem", {}, None)
    with pytest.raises(ConfigError, match="measures nothing"):
        widths_grid("demo", {}, None)


def test_a_recipe_in_epochs_can_be_a_grid():
    evaluation = EvaluationConfig(zero_shot=(ZeroShotConfig(data="emoji:new-style-new-names"),))
    made = widths_grid("clip-vit-b-32", {"batches.data": "x/{000..999}.tar"}, evaluation)
    assert made.sizes["w50"] == {"model.vision.width": 384, "model.text.width": 256}
    point = points_of(made, (10**8, 10**9))[-1]
    assert point.name == "w100-1G-all"
    assert point.gmac_per_pair == pytest.approx(7.40, rel=0.002)  # as in the OpenCLIP study
    assert point.pretraining.train.steps == round(1e9 / 32768)
    assert point.pretraining.train.schedule.resolved(point.steps).warmup_steps == 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": None}, "expected one of the two"),
        ({"samples": [2, 1]}, "rising order"),
        ({"sizes": {}}, "one or more"),
        ({"sizes": {"a/b": {}}}, "names of letters"),
        ({"targets": []}, "one or more"),
        ({"widths": 3}, "unknown setting 'widths'"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        grid(**changes)


def test_settings_of_a_grid_are_checked_before_anything_is_trained(tmp_path, fakes):
    with pytest.raises(ConfigError, match=r"grid.sizes.x: unknown setting 'vision.breadth'"):
        run_grid(grid(sizes={"x": {"model.vision.breadth": 3}}), RunConfig(minutes=1), tmp_path)
    with pytest.raises(ConfigError, match="two points of the grid are small-800-half"):
        run_grid(grid(samples=[800, 801]), RunConfig(minutes=1), tmp_path / "other")
    assert not list(tmp_path.rglob("plan.json"))
    assert fakes.trained == []


def test_a_grid_is_trained_and_its_law_found(tmp_path, fakes):
    result = run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert result.left == ()
    assert [name for name, _ in fakes.trained][:3] == ["small-800-half", "small-800-all", "small-1.6k-half"]
    record = read_json(tmp_path / "scaling.json")
    assert record["points"] == result.record["points"]
    point = record["points"][-1]
    assert point["name"] == "large-3.2k-all"
    assert point["compute"] == 16 * 3200
    assert point["parameters"] == 17
    assert point["errors"]["new-style/top1"] == pytest.approx(3.0 * 51200**-0.2)
    low, high = point["intervals"]["new-style/top1"]
    assert low < point["errors"]["new-style/top1"] < high
    assert "new-style/median_rank" not in point["errors"]
    assert point["config_hash"]
    fit = record["fits"]["new-style/top1"]
    assert fit["rules"]["frontier"]["slope"] == pytest.approx(-0.2, abs=0.02)
    assert fit["check"]["name"] == "large-3.2k-all"
    assert fit["check"]["num_points"] == 10  # the other run of the same compute is left out too
    assert fit["check"]["rules"]["frontier"]["error"] == pytest.approx(3.0 * 51200**-0.2, rel=0.03)
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "points" / point["name"] / "checkpoints").exists()
    assert main(["scaling", "fit", str(tmp_path), "--resamples", "20"]) == 0


def test_finished_points_are_kept_and_a_stopped_one_resumes(tmp_path, fakes):
    fakes.stop_at = "small-1.6k-half"
    result = run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert result.signal == signal.SIGTERM
    assert len(result.left) == 10
    assert len(result.record["points"]) == 2
    fakes.trained.clear()
    again = run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert fakes.trained[0] == ("small-1.6k-half", 100)
    assert len(fakes.trained) == 10
    assert again.left == ()
    fakes.trained.clear()
    assert run_grid(grid(), RunConfig(minutes=30), tmp_path).record["points"] == again.record["points"]
    assert fakes.trained == []


def test_what_does_not_fit_into_the_budget_is_left_and_done_with_a_larger_one(tmp_path, fakes, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(scaling_run.time, "perf_counter", lambda: clock[0])
    real = fakes.run

    def run(self, folder, **options):
        clock[0] += 0.1 * self.train.steps
        return real(self, folder, **options)

    monkeypatch.setattr(Pretraining, "run", run)
    result = run_grid(grid(), RunConfig(minutes=1.2), tmp_path)
    # 10 s for 800 samples: four of them and two of 1,600 would be 80 s.
    assert 0 < len(result.left) < 12
    assert result.left[-1] == "large-3.2k-all"
    assert result.record["minutes"]["spent"] <= 1.2
    assert result.record["left"] == list(result.left)
    more = run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert more.left == ()
    assert len(fakes.trained) == 12


def test_samples_follow_from_the_budget_once_and_for_all(tmp_path, fakes):
    ratios = grid(samples=None, ratios=[1, 2, 4])
    first = run_grid(ratios, RunConfig(minutes=10), tmp_path).record["plan"]
    assert first["samples"][1] == 2 * first["samples"][0]
    # 85 % of ten minutes, less four seconds to measure each of 12, at a tenth of a second for 8 samples.
    spent = sum(first["samples"]) * 4 * 0.1 / 8
    assert 0.8 * 600 < spent + 4 * 12 < 0.86 * 600
    assert run_grid(ratios, RunConfig(minutes=20), tmp_path).record["plan"] == first
    with pytest.raises(ConfigError, match="too short for 12 points"):
        run_grid(ratios, RunConfig(minutes=0.5), tmp_path / "short")


def test_a_point_that_diverges_is_told_and_left_out(tmp_path, fakes, capsys):
    fakes.diverge = ("large-800-all",)
    result = run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert result.record["diverged"] == ["large-800-all"]
    assert len(result.record["points"]) == 11
    assert "large-800-all diverged and is left out: the loss is nan" in capsys.readouterr().err
    fakes.trained.clear()
    run_grid(grid(), RunConfig(minutes=30), tmp_path)
    assert fakes.trained == []


def test_another_grid_in_the_same_folder_is_refused(tmp_path, fakes):
    run_grid(grid(), RunConfig(minutes=30, threads=1), tmp_path)
    with pytest.raises(ConfigError, match="holds another grid"):
        run_grid(grid(samples=[800]), RunConfig(minutes=30), tmp_path)
    with pytest.raises(ConfigError, match="holds another grid"):
        run_grid(grid(), RunConfig(minutes=30, seed=1), tmp_path)
    with pytest.raises(ConfigError, match="--threads is 2"):
        run_grid(grid(), RunConfig(minutes=30, threads=2), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        run_grid(grid(), RunConfig(minutes=30), tmp_path / "file")


def test_the_command_reads_grids_and_refuses_what_cannot_be_meant(tmp_path, fakes, capsys):
    path = tmp_path / "grid.json"
    write_json(path, TINY)
    root = ["scaling", "run", str(tmp_path / "out"), "--threads", "1"]
    assert main([*root, "--grid", str(path), "--dry-run"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (len(rows), rows[0]["name"], rows[0]["seconds"]) == (12, "small-800-half", 14.0)
    assert fakes.trained == []
    assert main([*root, "--grid", str(path), "--minutes", "0.5"]) == 0
    told = capsys.readouterr()
    assert "== new-style/top1" in told.out
    assert "points are left" in told.err
    for words, message in (
        (["--grid", str(path), "--recipe", "demo"], "--grid and --recipe are both given"),
        (["--zero-shot", "x"], "belong to --recipe"),
        (["--minutes", "0"], "--minutes is 0; expected more than 0"),
        (["--grid", str(tmp_path / "gone.json")], "no such file"),
    ):
        assert main([*root, *words]) in (1, 2)
        assert message in capsys.readouterr().err


def test_the_grid_of_the_page_can_be_made():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "scaling.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    shown = from_tree(GridConfig, json.loads(text))
    assert len(points_of(shown, shown.samples)) == 12


def test_names_of_amounts_are_short():
    assert [short(value) for value in (950, 12_345, 4_000_000, 3.4e10)] == ["950", "12.35k", "4M", "34G"]


class StopAt:
    """Asks for a stop, once, when a run has done so many steps."""

    def __init__(self, step):
        self.step = step

    def open(self, folder, facts):
        pass

    def write(self, record):
        if record["kind"] == "step" and record["step"] >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


@pytest.mark.slow
def test_a_real_grid_stopped_in_the_middle_ends_like_one_that_was_not(tmp_path):
    settings = {**TINY["settings"], "train.log_every": 23}
    tiny = grid(samples=[80, 160], sizes={"small": widths(8, 64)}, data={"half": {"batches.share": 0.5}}, settings=settings)
    config = RunConfig(minutes=10, threads=1)
    stopped = run_grid(tiny, config, tmp_path / "stopped", [StopAt(11)])
    assert stopped.signal == signal.SIGTERM
    assert stopped.left == ("small-160-half",)
    ended, whole = run_grid(tiny, config, tmp_path / "stopped"), run_grid(tiny, config, tmp_path / "whole")
    assert ended.left == whole.left == ()
    for one, other in zip(ended.record["points"], whole.record["points"], strict=True):
        for key in ("name", "compute", "parameters", "config_hash", "data_fingerprint", "measured", "errors"):
            assert one[key] == other[key], key
        weights = [tmp_path / name / "points" / one["name"] / "model" / "model.safetensors" for name in ("stopped", "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert set(ended.record["fits"]) == {"new-style/top1", "new-style/text_to_image_r5"}
