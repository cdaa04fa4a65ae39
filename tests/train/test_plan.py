"""Plans: numbers that can be counted by hand, what the command prints, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ostension.cli.main import main
from ostension.errors import UsageError
from ostension.model.presets import preset
from ostension.recipes import RECIPES, clip, datacomp, smaller_sets
from ostension.train.memory import Activations
from ostension.train.pairs import PairBatchesConfig
from ostension.train.plan import DEVICES, PlanConfig, make_plan
from ostension.train.pretraining import Pretraining
from ostension.train.train_config import TrainConfig

TINY = Pretraining(
    model=preset("tiny-vit"),
    batches=PairBatchesConfig(data="", batch_size=64),
    train=TrainConfig(epochs=3, precision="fp32"),
)
# Products of tiny-vit for a picture: 16 patches of 192 numbers, 17 tokens of width 48 in three blocks, 32 numbers out;
# for a text: 24 tokens of width 32 in three blocks, 32 numbers out.
IMAGE = 16 * 192 * 48 + 3 * (17 * 12 * 48**2 + 2 * 17**2 * 48) + 48 * 32
TEXT = 3 * (24 * 12 * 32**2 + 2 * 24**2 * 32) + 32 * 32
# Training as run: the last block computes one token, and nobody needs the gradient of the pixels.
LAST = [tokens * 12 * width**2 + 2 * tokens**2 * width for tokens, width in ((17, 48), (24, 32))]
SINGLE = [2 * tokens * width**2 + 10 * width**2 + 2 * tokens * width for tokens, width in ((17, 48), (24, 32))]
RUN = 3 * (IMAGE + TEXT - sum(LAST) + sum(SINGLE)) - 16 * 192 * 48


@pytest.fixture
def towers_at_rest(monkeypatch):
    """What embedding takes is left at a megabyte a pair: it has tests of its own, and running large towers takes seconds."""

    def given(config, *, pairs, **settings):
        return Activations(kept=pairs * 900_000, peak=pairs * 1_000_000)

    monkeypatch.setattr("ostension.train.plan.activations", given)


def plan_of(asked: PlanConfig, **settings):
    return make_plan(TINY.changed({key.replace("__", "."): value for key, value in settings.items()}), asked)


def test_operations_and_time_counted_by_hand():
    found = plan_of(PlanConfig(pairs=1000, flops_per_s=1e9))
    assert (found.length.steps, found.length.pairs_seen) == (3 * 15, 3 * 15 * 64)  # fifteen whole batches in 1,000 pairs
    operations = found.operations
    assert operations is not None
    assert (operations.image, operations.text) == (IMAGE, TEXT)
    assert operations.run_training == RUN
    assert operations.loss == 3 * 64 * 32
    assert operations.model_training_flop == 6 * (IMAGE + TEXT)
    assert found.seconds == pytest.approx(2 * (RUN + 3 * 64 * 32) * 45 * 64 / 1e9)
    assert found.tree()["flop"]["model_training_total"] == 6 * (IMAGE + TEXT) * 45 * 64


def test_micro_batches_compute_the_towers_once_more_and_hold_fewer_pairs():
    whole = plan_of(PlanConfig(pairs=1000))
    pieces = plan_of(PlanConfig(pairs=1000), train__micro_batch=16)
    assert pieces.operations.run_training == whole.operations.run_training + whole.operations.run_forward
    assert pieces.process["cached embeddings"] == 2 * 2 * 64 * 32 * 4  # both sides, with their gradients
    rows = {row.pairs: row for row in pieces.activations if (row.precision, row.checkpointing) == ("fp32", "none")}
    assert rows[16].chosen and not rows[64].chosen
    assert pieces.process["activations"] == rows[16].peak == pytest.approx(rows[64].peak / 4, rel=0.05)


def test_checkpointing_computes_blocks_once_more_and_keeps_less():
    before, after = (plan_of(PlanConfig(pairs=1000), train__checkpointing=towers) for towers in ("none", "both"))
    assert after.operations.run_training > before.operations.run_training
    assert after.process["activations"] < 0.5 * before.process["activations"]
    assert [row.checkpointing for row in after.activations if row.chosen] == ["both"]


def test_processes_share_pairs_and_with_fsdp_the_weights():
    alone, ddp = plan_of(PlanConfig(pairs=1000)), plan_of(PlanConfig(pairs=1000, world_size=4))
    fsdp = plan_of(PlanConfig(pairs=1000, world_size=4), train__parallel="fsdp")
    assert alone.process["batch"] == 4 * ddp.process["batch"] == 64 * 3 * 32 * 32 * 4
    assert ddp.process["weights"] == alone.process["weights"]
    assert fsdp.process["weights"] == pytest.approx(ddp.process["weights"] / 4, rel=0.02)
    assert {row.parallel for row in ddp.states} == {"ddp", "fsdp"}
    assert ddp.checkpoint == fsdp.checkpoint == alone.checkpoint
    # The same operations but for the similarities, a fourth of the time.
    assert ddp.seconds == pytest.approx(alone.seconds / 4, rel=0.01)


def test_a_frozen_tower_is_planned_as_one(towers_at_rest):
    free, locked = plan_of(PlanConfig(pairs=1000)), plan_of(PlanConfig(pairs=1000), freeze__image__locked=True)
    image = IMAGE - LAST[0] + SINGLE[0]
    assert free.operations.run_training - locked.operations.run_training == 2 * image - 16 * 192 * 48
    assert locked.process["moments"] < 0.6 * free.process["moments"]


def test_a_device_brings_its_memory_and_an_assumed_rate(towers_at_rest):
    found = plan_of(PlanConfig(pairs=1000, device="a100"), train__precision="bf16")
    assert found.fused_attention and found.device_memory == 80e9
    assert found.flops_per_s == pytest.approx(0.4 * 312e12) and "assumed" in found.rate_from
    rest = sum(size for name, size in found.process.items() if name != "activations")
    per_pair = found.process["activations"] / 64
    assert rest + found.largest_micro_batch * per_pair == pytest.approx(0.9 * 80e9, rel=1e-3)
    assert plan_of(PlanConfig(pairs=1000, device="cpu"), train__precision="bf16").largest_micro_batch is None
    assert all(device.half > device.single for device in DEVICES.values())


def test_precisions_stand_beside_each_other_where_the_settings_allow_it(towers_at_rest):
    found = plan_of(PlanConfig(pairs=1000))
    assert {row.precision for row in found.states} == {"fp32", "bf16"}
    assert [row.precision for row in found.states if row.chosen] == ["fp32"]
    rounded = plan_of(PlanConfig(pairs=1000), train__precision="bf16", train__stochastic_rounding="text")
    assert [row.precision for row in rounded.states] == ["bf16", "fp32"]
    plain = plan_of(PlanConfig(pairs=1000), train__precision="bf16")
    assert rounded.process["masters"] < plain.process["masters"]
    assert rounded.states[1].state == plain.states[1].state  # float32 weights are rounded to nothing


def test_the_length_in_epochs_needs_the_number_of_pairs_or_the_data(towers_at_rest):
    made = TINY.changed({"batches.data": "emoji:train"})
    assert make_plan(made, PlanConfig()).length.steps == 3 * (5528 // 64)
    with pytest.raises(UsageError, match="does not divide the batch of 64; expected such as 4"):
        plan_of(PlanConfig(pairs=1000, world_size=7))


def told(capsys, *flags) -> str:
    assert main(["train", *flags, "--plan"]) == 0
    return capsys.readouterr().out


def test_a_recipe_is_planned_without_data(capsys, towers_at_rest):
    lines = told(capsys, "--recipe", "clip-vit-b-32", "--world-size", "256", "--flops-per-s", "1e14").splitlines()
    assert lines[0] == "model       ViT-B-32: 151,277,313 parameters, image 87,849,216, text 63,428,096"
    assert lines[1] == "run         390,624 steps of 32,768 pairs: 12,799,967,232 pairs seen"
    assert lines[3].startswith("forward     8.818 GFLOP an image, 5.96 GFLOP a text (7.389 GMAC a pair; 1 MAC is 2 FLOP")
    assert lines[4].startswith("training    44.33 GFLOP a pair (three forward passes), 1.45 PFLOP a step, 567 EFLOP in all")
    assert any(line.startswith("* bf16, ddp") for line in lines)
    assert any(line.startswith("checkpoint") for line in lines)


def test_a_plan_follows_settings_and_is_json(capsys, towers_at_rest):
    settings = ["model.vision.layers=2", "model.text.layers=1", "train.micro_batch=8"]
    flags = ["--recipe", "datacomp-small", "--set", *settings, "--pairs", "9"]
    tree = json.loads(told(capsys, *flags, "--world-size", "64", "--caption-tokens", "20", "--json"))
    assert tree["length"]["steps"] == 3125  # samples seen decide, not the data
    # Blocks of width 768 and 512 are gone.
    assert tree["parameters"]["total"] == 151_277_313 - 10 * 7_087_872 - 11 * 3_152_384
    assert tree["operations"]["caption_tokens"] == 20
    assert {row["pairs"] for row in tree["activations"]} == {8, 64}
    assert tree["process"]["total"] == sum(size for name, size in tree["process"].items() if name != "total")


def test_a_named_model_is_planned_with_its_data(capsys, towers_at_rest):
    assert "42 steps of 256 pairs" in told(capsys, "--model", "tiny-resnet", "--data", "emoji:train", "--epochs", "2")


def test_the_demo_is_planned_by_its_batches(capsys, towers_at_rest):
    assert "2,300 steps of 128 pairs" in told(capsys, "--recipe", "demo")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan", "--world-size", "592"], "592, which does not divide the batch of 32768; expected such as 512"),
        (["--plan", "--device-name", "gpu"], "--device-name is 'gpu'; expected one of cpu, v100, a100, h100, h200"),
        (["--plan", "--flops-per-s", "0"], "--flops-per-s is 0; expected more than 0"),
        (["--world-size", "8", "--dry-run"], "--world-size says something about a plan; add --plan"),
        (["--json", "--dry-run"], "--json says something about a plan"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_one_clear_line(capsys, flags, message):
    assert main(["train", "--recipe", "clip-rn50", *flags]) == 2
    found = capsys.readouterr().err
    assert message in found and len(found.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_largest_recipe_is_planned_in_little_memory():
    # Not ru_maxrss, which begins with the peak of the process that starts another.
    code = (
        "import sys; from ostension.cli.main import main; status = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read(), file=sys.stderr); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "train", "--recipe", "clip-rn50x64", "--plan", "--world-size", "512", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["parameters"]["total"] == 623_258_305
    peak = next(line for line in found.stderr.splitlines() if line.startswith("VmHWM:"))
    assert int(peak.split()[1]) < 1_000_000  # kB


@pytest.mark.parametrize("name", [*clip.OFFERS, *smaller_sets.OFFERS, *datacomp.OFFERS])
def test_every_recipe_is_planned_on_a_large_machine(name, towers_at_rest):
    found = RECIPES.load(name)
    plan = make_plan(found.recipe(), PlanConfig(world_size=64, pairs=found.pairs, device="h100"))
    assert plan.length.local_batch * 64 == plan.length.batch_size and plan.precision == "bf16"
    assert plan.seconds and plan.largest_micro_batch and not plan.notes
