"""The paper's recipes and those on open data: what they say, what they count, and that their small forms run."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ostension.cli.main import main
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.recipes import RECIPES, clip, datacomp, smaller_sets

# The reference classes on the meta device; the table of nine.
PARAMETERS = {
    "clip-rn50": 102_007_137, "clip-rn101": 119_688_033, "clip-rn50x4": 178_300_601, "clip-rn50x16": 290_979_217,
    "clip-rn50x64": 623_258_305, "clip-vit-b-32": 151_277_313, "clip-vit-b-16": 149_620_737, "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193,
}  # fmt: skip
OFFERED = [*clip.OFFERS, *smaller_sets.OFFERS, *datacomp.OFFERS]


def count(name: str) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in CLIP(RECIPES.load(name).recipe().model).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_has_the_papers_number_of_parameters(name):
    assert count(name) == PARAMETERS[name]


def test_every_recipe_of_a_table_is_listed_with_a_line_of_its_own():
    assert set(OFFERED) <= set(RECIPES.names())
    assert len({RECIPES.summary(name) for name in OFFERED}) == len(OFFERED)
    assert not {"clip", "datacomp", "smaller-sets"} & set(RECIPES.names())
    with pytest.raises(ConfigError, match="'clip-vit-b-32'"):
        RECIPES.load("clip-vit-b-31")


@pytest.mark.parametrize("name", clip.OFFERS)
def test_the_nine_have_the_papers_settings(name):
    made = RECIPES.load(name).recipe()
    optim, schedule, residual = made.train.optim, made.train.schedule, "rn" in name
    assert made.batches.batch_size == 32_768
    assert made.batches.crop == "random"
    assert (optim.beta1, optim.beta2, optim.eps) == ((0.9, 0.999, 1e-8) if residual else (0.9, 0.98, 1e-6))
    assert (optim.weight_decay, optim.decay_rule, optim.clip_norm) == (0.2, "paper", None)
    assert (optim.moments, made.train.checkpointing, made.train.stochastic_rounding) == ("fp16", "both", "text")
    assert schedule.kind == "cosine" and schedule.final_fraction == 0
    assert math.isclose(math.exp(made.model.init_logit_scale), 1 / 0.07) and made.model.logit_scale_cap == 100
    assert (made.train.epochs, schedule.warmup_steps) == ((1, None) if name.endswith("336") else (32, 2000))


def test_the_learning_rates_are_the_tables():
    rates = [RECIPES.load(name).recipe().train.optim.lr for name in clip.OFFERS]
    assert rates == [5e-4, 5e-4, 5e-4, 4e-4, 3.6e-4, 5e-4, 5e-4, 4e-4, 2e-5]


def test_l14_at_336_is_the_l14_with_more_positions():
    large, small = RECIPES.load("clip-vit-l-14-336").recipe(), RECIPES.load("clip-vit-l-14").recipe()
    assert large.start is not None and small.start is None
    assert large.model.vision.image_size == 336
    back = large.changed({"model.vision.image_size": 224, "model.preprocess.image_size": 224, "model.name": "ViT-L-14"})
    assert back.model == small.model


@pytest.mark.parametrize(
    ("name", "batch_size", "samples", "warmup"),
    [
        ("datacomp-small", 4096, 12_800_000, 500),
        ("datacomp-medium", 4096, 128_000_000, 500),
        ("datacomp-large", 8192, 1_280_000_000, 500),
        ("datacomp-xlarge", 90_112, 12_800_000_000, 10_000),
    ],
)
def test_datacomp_sees_its_number_of_samples(name, batch_size, samples, warmup):
    made = RECIPES.load(name).recipe()
    assert made.batches.batch_size == batch_size and made.train.schedule.warmup_steps == warmup
    assert made.train.steps is not None and 0 <= samples - made.train.steps * batch_size < batch_size
    assert made.model.vision.activation == made.model.text.activation == "gelu"


def test_the_runs_on_open_data_have_their_sources_settings():
    yfcc, cc3m = (RECIPES.load(name).recipe() for name in ("yfcc15m-rn50", "cc3m-rn50"))
    assert (yfcc.train.optim.weight_decay, yfcc.batches.batch_size, yfcc.train.epochs) == (0.1, 2048, 32)
    assert (cc3m.train.optim.lr, cc3m.train.optim.weight_decay) == (1e-3, 0.1)
    assert (cc3m.batches.batch_size, cc3m.train.epochs) == (1024, 30)
    assert (yfcc.train.optim.moments, cc3m.train.optim.moments) == ("fp16", "fp32")


@pytest.mark.parametrize("name", OFFERED)
def test_a_recipe_dry_runs_without_data(name, capsys):
    assert main(["train", "--recipe", name, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["batches"]["data"] == ""


@pytest.mark.parametrize("name", OFFERED)
def test_the_smoke_form_of_a_recipe_keeps_its_settings(name):
    whole, small = (part() for part in (RECIPES.load(name).recipe, RECIPES.load(name).smoke))
    assert small.train.optim == whole.train.optim and small.objective == whole.objective
    assert small.train.precision == whole.train.precision
    assert type(small.model.vision) is type(whole.model.vision)
    assert small.model.text.activation == whole.model.text.activation


@pytest.mark.parametrize("name", ["clip-rn50x64", "clip-vit-l-14-336", "cc3m-rn50", "datacomp-xlarge"])
def test_the_smoke_form_of_a_recipe_runs(name, tmp_path):
    result = RECIPES.load(name).smoke().run(tmp_path / "run")
    assert (result.status, result.step) == ("finished", 4)
    assert math.isfinite(result.last["loss"])


def test_a_recipe_trains_on_the_users_data_from_the_users_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["train", "--recipe", "clip-vit-b-32", "--smoke", "--run", str(tmp_path / "first"), "--steps", "1"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    flags = ["--recipe", "clip-vit-b-32", "--smoke", "--data", "emoji:new-style-new-names", "--from", model, "--fixres", "48"]
    assert main(["train", *flags, "--steps", "1", "--run", str(tmp_path / "second")]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
