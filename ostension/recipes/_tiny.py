"""The small form of a pre-training recipe: the same settings on towers of a few thousand weights, and on emoji."""

from __future__ import annotations

import dataclasses

from ostension.model.config import ModelConfig, ResNetConfig, TextConfig, VitConfig
from ostension.text.config import TokenizerConfig
from ostension.train.pretraining import Pretraining

STEPS, BATCH_SIZE, MERGES, CONTEXT = 4, 8, 510, 24


def tiny(pretraining: Pretraining) -> Pretraining:
    """The run in four steps of eight pairs from random weights: shows that everything runs, and learns nothing."""
    model = tiny_model(pretraining.model)
    return dataclasses.replace(pretraining, model=model, start=None).changed({
        "batches.data": "emoji:train",
        "batches.batch_size": BATCH_SIZE,
        "train.steps": STEPS,
        "train.epochs": None,
        "train.schedule.warmup_steps": 1,
        "train.log_every": 1,
        "train.workers": 0,
    })  # fmt: skip


def tiny_model(model: ModelConfig) -> ModelConfig:
    """A model of the same family, activation and preprocessing, of 32 (or 64) pixels and two layers."""
    vision: VitConfig | ResNetConfig
    if isinstance(model.vision, VitConfig):
        vision = dataclasses.replace(
            model.vision, image_size=32, patch_size=8, width=48, layers=2, head_width=16, mlp_ratio=4.0
        )  # fmt: skip
    else:
        vision = dataclasses.replace(model.vision, image_size=64, layers=(1, 1, 1, 1), width=8)
    text: TextConfig = dataclasses.replace(
        model.text, context_length=CONTEXT, vocab_size=512 + MERGES + 2, width=32, layers=2, head_width=16
    )
    return dataclasses.replace(
        model,
        name=f"{model.name}-smoke",
        embed_dim=32,
        vision=vision,
        text=text,
        preprocess=dataclasses.replace(model.preprocess, image_size=vision.image_size),
        tokenizer=TokenizerConfig(context_length=CONTEXT, num_merges=MERGES),
    )
