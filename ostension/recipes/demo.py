"""A small CLIP from scratch on emoji: four drawing styles and 85 % of the names, the rest to be named unseen.

    ostension demo                      # measures this machine, trains, evaluates, writes report.html
    ostension train --recipe demo --run runs/demo

What was tried, and what it gave, is in docs/tutorials/demo.md.
"""

from __future__ import annotations

import math

from ostension.image.augment import AugmentConfig
from ostension.image.transforms import PreprocessConfig
from ostension.losses import LossConfig
from ostension.model.config import ModelConfig, ResNetConfig, TextConfig
from ostension.recipes._emoji_batches import EmojiBatchesConfig
from ostension.text.tokenizer import TokenizerConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.objective import ContrastiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

STEPS = 2300  # 8 to 10 minutes on two cores with bfloat16 vector units, 650 to 800 s of processor time on one
CONTEXT, MERGES = 32, 6000
# Emoji are small and mostly on white; this puts their pixels around zero.
MEAN, STD = (0.7, 0.7, 0.7), (0.4, 0.4, 0.4)
TEMPLATES = ("{}", "an emoji of {}", "a drawing of {}", "a picture of {}", "an icon of {}", "{} emoji")
TRAINING_TEMPLATES = (*TEMPLATES, "a sticker of {}")
# Styles agree in what lies where in the picture, so views move only a little; they differ in colour, so colours change much.
AUGMENT = AugmentConfig(rotation=8.0, zoom=0.1, shift=0.06, shear=0.05, jitter=0.25, grey=0.15, background=0.5)
BLEND = 0.5
SIDE = 32
RAMP, WARMUP = 0.25, 0.05
SMOKE_STEPS, SMOKE = 20, {"batches.concepts": 32, "batches.every": 8}


def model(context_length: int = CONTEXT) -> ModelConfig:
    """Both towers: a small ResNet that keeps its 4 x 4 map, and two text blocks."""
    return ModelConfig(
        name="emoji-demo",
        embed_dim=256,
        vision=ResNetConfig(image_size=SIDE, layers=(1, 1, 1), width=32, pool="flatten", stem_pool=False),
        text=TextConfig(context_length=context_length, vocab_size=512 + MERGES + 2, width=256, layers=2, activation="gelu"),
        preprocess=PreprocessConfig(image_size=SIDE, mean=MEAN, std=STD),
        tokenizer=TokenizerConfig(context_length=context_length, num_merges=MERGES),
        # From the paper's 1 / 0.07 and 0.02 both towers fall to one point within ten steps and stay there.
        init_logit_scale=math.log(5),
        init_token_std=0.3,
    )


def recipe(steps: int = STEPS, *, languages: tuple[str, ...] = (), seed: int = 0) -> Pretraining:
    """The run in `steps` steps; everything that moves during it is a share of them."""
    batches = EmojiBatchesConfig(
        concepts=64, drawings=2, seed=seed, ramp_steps=round(RAMP * steps), augment=AUGMENT, blend=BLEND,
        templates=TRAINING_TEMPLATES, languages=languages,
    )  # fmt: skip
    train = TrainConfig(
        steps=steps,
        seed=seed,
        optim=OptimConfig(lr=1.5e-3, beta2=0.98, eps=1e-8, weight_decay=0.1, decay_rule="ndim", clip_norm=None),
        schedule=ScheduleConfig(warmup_steps=round(WARMUP * steps), final_fraction=1e-3),
        checkpoint=CheckpointConfig(every=max(1, min(200, steps // 4)), keep=1),
        log_every=max(1, min(20, steps // 10)),
    )
    # A Hindi or Japanese letter is two or three tokens.
    tower = model(2 * CONTEXT if languages else CONTEXT)
    objective = ContrastiveConfig(loss=LossConfig(duplicates="share"))
    return Pretraining(model=tower, batches=batches, train=train, objective=objective)


def smoke() -> Pretraining:
    """Twenty steps on every eighth concept: shows that everything runs, and learns nothing."""
    return recipe(SMOKE_STEPS).changed(SMOKE)
