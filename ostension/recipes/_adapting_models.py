"""The two models of the study of methods: a locked image tower with words of our own, and a vision transformer taught by it.

    lite0   EfficientNet-Lite0 at 128 pixels, locked; a causal text transformer from random weights. For methods that leave
            the image side alone, which then train on stored features.
    vit     a vision transformer of six blocks at 96 pixels from random weights, beside lite0's text tower, locked. It learns
            from captions and from what lite0 sees in the same batch (`train.distillation`). For methods that add image
            tokens, and for attacks.

Both learn from `_study_pairs`: no picture of what the study measures.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ostension.formats.load import load, save
from ostension.losses import LossConfig
from ostension.model.config import ModelConfig, TextConfig, VitConfig
from ostension.model.towers.config import EfficientNetConfig, Stage
from ostension.recipes import lit
from ostension.text.config import TokenizerConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.distillation import DistillationConfig
from ostension.train.freeze import FreezeConfig, TowerLock, lit_settings
from ostension.train.optim import OptimConfig
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.towers import TowersConfig
from ostension.train.train_config import TrainConfig

LITE0_STEPS, VIT_STEPS, SMOKE_STEPS = 1500, 900, 2
SIDE, BATCH, SMOKE_SIDE = 96, 64, 32
TEXT = TextConfig(context_length=32, width=256, layers=4, activation="gelu")
SMOKE_STAGES = (Stage(blocks=1, kernel=3, stride=2, expansion=1, channels=8),)
SMOKE_TEXT = TextConfig(context_length=32, width=64, layers=2, activation="gelu")


def lite0(pairs: Path, features: Path, *, smoke: bool = False) -> Pretraining:
    """The run of the model with the locked image tower; the small form has random weights."""
    tokenizer = TokenizerConfig(context_length=TEXT.context_length)
    config = dataclasses.replace(lit.model(), name="lite0-text", text=SMOKE_TEXT if smoke else TEXT, tokenizer=tokenizer)
    if smoke:
        config = resized_towers(config, EfficientNetConfig(image_size=SMOKE_SIDE, stem=8, stages=SMOKE_STAGES, width=32))
        towers, freeze = TowersConfig(), FreezeConfig(image=TowerLock(locked=True, unlocked_groups=1))
    else:
        towers, freeze = lit_settings("Lu", image=lit.IMAGE, new_image_head=True)
    steps, batch = (SMOKE_STEPS, 8) if smoke else (LITE0_STEPS, lit.BATCH)
    made = dataclasses.replace(lit.recipe(steps=steps, batch_size=batch), model=config, towers=towers, freeze=freeze)
    settings = {"batches.data": str(pairs), "batches.cache": str(features), "batches.last": None, "train.optim.lr": 5e-4}
    return made.changed({**settings, "train.log_every": max(1, steps // 30)})


def teacher(model: Path, folder: Path, *, smoke: bool = False) -> Path:
    """The same model for smaller pictures, which the vision transformer learns from."""
    save(load(model, device="cpu", dtype="float32", image_size=SMOKE_SIDE if smoke else SIDE), folder)
    return folder


def vit(pairs: Path, taught_by: Path, *, smoke: bool = False) -> Pretraining:
    """The run of the vision transformer."""
    config = load(taught_by, device="cpu").config
    side, width, layers = (SMOKE_SIDE, 64, 2) if smoke else (SIDE, 192, 6)
    vision = VitConfig(image_size=side, patch_size=16, width=width, layers=layers, activation="gelu")
    steps = SMOKE_STEPS if smoke else VIT_STEPS
    return Pretraining(
        model=dataclasses.replace(config, name="vit-96", vision=vision),
        batches=PairBatchesConfig(data=str(pairs), batch_size=8 if smoke else BATCH, groups="caption"),
        train=TrainConfig(
            steps=steps, log_every=max(1, steps // 40),
            optim=OptimConfig(lr=1e-3, weight_decay=0.05, decay_rule="ndim"),
            schedule=ScheduleConfig(warmup_steps=max(1, steps // 9)),
            checkpoint=CheckpointConfig(every=max(1, steps // 10), keep=1),
        ),
        objective=DistillationConfig(teacher=taught_by, loss=LossConfig(duplicates="share"), weight=3.0),
        towers=TowersConfig(text=str(taught_by)),
        freeze=FreezeConfig(text=TowerLock(locked=True)),
    )  # fmt: skip


def resized_towers(config: ModelConfig, vision: EfficientNetConfig) -> ModelConfig:
    """With another image tower and its size of pictures."""
    return dataclasses.replace(
        config, vision=vision, preprocess=dataclasses.replace(config.preprocess, image_size=vision.image_size)
    )
