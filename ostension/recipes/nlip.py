"""NLIP's stages on the pre-training loop: warm-up, noise, captions from concepts, targets that know noise, captions mixed in.

    ostension nlip -o WORK                                   # all stages on emoji with planted noise, the record and the page
    ostension train --recipe nlip-harmonised --run runs/h    # a warm-up, then noise fitted anew each epoch

A stage is a `Pretraining` like any other. The four that are compared start from the same warm model and see the same pictures
in the same order; they differ in the targets (plain, harmonised), in the captions (as they are, completed), or in both.

After NLIP (Huang et al. 2023), as far as we know it: `train.nlip` says what is our reading.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ostension.losses import LossConfig
from ostension.model.config import ModelConfig, TextConfig
from ostension.model.decoder import DecoderConfig
from ostension.model.towers.config import EfficientNetConfig, Stage
from ostension.recipes import lit
from ostension.recipes._nlip_batches import NlipBatchesConfig, Use
from ostension.recipes._nlip_questions import NlipQuestionsConfig
from ostension.text.config import TokenizerConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.freeze import lit_settings
from ostension.train.nlip import NlipConfig
from ostension.train.noise import NoiseConfig
from ostension.train.objective import ContrastiveConfig, ObjectiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.towers import TowersConfig
from ostension.train.train_config import TrainConfig

OFFERS = {
    "nlip-plain": "NLIP's study: the plain contrastive loss on pairs with planted noise",
    "nlip-harmonised": "NLIP's study: targets that know how likely each pair is noise, fitted anew each epoch",
    "nlip-captioner": "NLIP's study: the plain loss, and captions said from the picture",
}
ARMS = ("plain", "harmonised", "completed", "both")
NOISE = 0.35
STEPS, WARMUP_STEPS, CAPTIONER_STEPS = 100, 60, 160  # of 128 pictures (captioner: 32): an epoch of emoji is 12 steps
WARMUP_EPOCHS = 3  # of the harmonised recipe that starts from nothing
CONCEPTS = 4  # a picture
SIDE, CONTEXT, MERGES = 96, 32, 2000
BATCH, CAPTIONER_BATCH = 128, 32
FEATURES = Path("features.npz")
TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}", "a picture of {}", "an icon of {}")
SMOKE_STEPS, SMOKE_STAGES = 24, (Stage(blocks=1, kernel=3, stride=2, expansion=1, channels=8),)


def model(smoke: bool = False) -> ModelConfig:
    """EfficientNet-Lite0, locked but for a new projection, beside two causal text blocks from random weights."""
    vision = EfficientNetConfig(image_size=SIDE)
    if smoke:
        vision = EfficientNetConfig(image_size=32, stem=8, stages=SMOKE_STAGES, width=32)
    made = lit.model()
    return dataclasses.replace(
        made, name="nlip-smoke" if smoke else "nlip-study", embed_dim=32 if smoke else 128, vision=vision,
        text=TextConfig(
            context_length=CONTEXT, vocab_size=512 + MERGES + 2, width=32 if smoke else 128, layers=2, head_width=32,
            activation="gelu",
        ),
        preprocess=dataclasses.replace(made.preprocess, image_size=vision.image_size),
        tokenizer=TokenizerConfig(context_length=CONTEXT, num_merges=MERGES),
    )  # fmt: skip


def recipe(name: str) -> Pretraining:
    """A run that starts from nothing."""
    return stage(name.removeprefix("nlip-"), STEPS)


def smoke(name: str) -> Pretraining:
    """A few steps on shapes that are drawn on the spot, with random features."""
    return stage(name.removeprefix("nlip-"), SMOKE_STEPS, data="shapes", smoke=True)


def stage(
    kind: str, steps: int, *, seed: int = 0, data: str = "emoji", noise: float = NOISE, strength: float = 1.0,
    start: Path | None = None, facts: Path | None = None, features: Path = FEATURES, smoke: bool = False,
) -> Pretraining:  # fmt: skip
    """One run: "warmup", "captioner", or one of `ARMS`.

    Args:
        start: the warm model; None starts from nothing.
        facts: what is known of each picture, for a captioner that reads concepts and for completed captions.
        features: where the features of the pictures are kept.
    """
    loss = LossConfig(duplicates="ignore")
    objective: ObjectiveConfig = ContrastiveConfig(loss=loss)
    use: Use = "nothing"
    if kind == "captioner":
        decoder = DecoderConfig(layers=2, head_width=32, reads="pooled")
        use = "nothing" if facts is None else "concepts"
        objective = NlipConfig(loss=loss, noise=None, decoder=decoder, concepts=facts is not None, seed=seed)
    elif kind in ("harmonised", "both"):
        epochs = WARMUP_EPOCHS if start is None else 0
        objective = NlipConfig(loss=loss, noise=NoiseConfig(warmup_epochs=epochs, strength=strength))
    if kind in ("completed", "both"):
        use = "completion"
    batches = NlipBatchesConfig(
        data=data, noise=noise, planting=seed, facts=None if use == "nothing" else facts, use=use, seed=seed, features=features,
        templates=TEMPLATES, batch_size=CAPTIONER_BATCH if smoke or kind == "captioner" else BATCH,
    )  # fmt: skip
    train = TrainConfig(
        steps=steps,
        seed=seed,
        precision="fp32",
        optim=OptimConfig(lr=1e-3, beta2=0.98, eps=1e-8, weight_decay=0.1, decay_rule="ndim", clip_norm=1.0),
        # The warm-up goes on where the four begin, so its rate does not fall.
        schedule=ScheduleConfig(kind="constant" if kind == "warmup" else "cosine", warmup_steps=min(20, max(1, steps // 4))),
        checkpoint=CheckpointConfig(every=max(1, steps // 2), keep=1),
        log_every=max(1, min(20, steps // 4)),
        evaluate_at=(steps,) if kind == "captioner" else evaluation_steps(steps),
    )
    towers, freeze = lit_settings("Lu", image=lit.IMAGE, new_image_head=True)
    if smoke or start is not None:
        towers = TowersConfig()
    evaluation = NlipQuestionsConfig(data=data, noise=noise, planting=seed, features=features)
    return Pretraining(
        model=model(smoke), batches=batches, train=train, objective=objective, evaluation=evaluation, start=start,
        towers=towers, freeze=freeze,
    )  # fmt: skip


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """A fifth of the steps, two fifths, three, and all."""
    return tuple(sorted({max(1, round(steps * share)) for share in (0.2, 0.4, 0.6, 1.0)}))
