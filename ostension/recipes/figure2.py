"""CLIP's Figure 2 on emoji: a language model, two bags of words and CLIP, on one image tower and the same pictures.

    ostension figure2 --out figure2                          # all four, the record and the page; some 20 minutes on one core
    ostension train --recipe figure2-bag-contrastive --run runs/bag

What differs is what is asked of the words. Image tower, batches, views, optimiser and images seen are the same in all four.
The learning rate is constant after its warm-up, and a running average of the weights is evaluated, so that each point of a
curve is what a run that ended there would give, as nearly as one run can say.
"""

from __future__ import annotations

import dataclasses

from ostension.losses import LossConfig
from ostension.model.decoder import DecoderConfig
from ostension.model.towers.config import BagConfig
from ostension.model.word_models import LanguageModelConfig
from ostension.recipes import demo
from ostension.recipes._emoji_batches import EmojiBatchesConfig
from ostension.recipes._figure2_evaluation import NamesEvaluationConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.objective import ContrastiveConfig, ObjectiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.prediction import BagPredictionConfig, NextTokenConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

OFFERS = {
    "figure2-language-model": "Figure 2, first curve: a transformer says the caption token by token, reading the picture",
    "figure2-bag-prediction": "Figure 2, second curve: the words of the caption predicted all at once",
    "figure2-bag-contrastive": "Figure 2, third curve: the bag of words picked from the batch",
    "figure2-clip": "Figure 2, and CLIP itself: the text transformer picked from the batch",
}
STEPS = 640  # 82,000 images a run
WARMUP = 40
HALVINGS = 5  # evaluations lie at STEPS, STEPS / 2, ... so many times
SMOKE_STEPS, SMOKE = 4, {
    "batches.concepts": 16, "batches.every": 8, "evaluation.every": 8, "evaluation.pictures": 12, "evaluation.candidates": 6,
    "model.vision.width": 16, "model.text.width": 64, "train.checkpoint.every": 4,
}  # fmt: skip


def recipe(name: str, steps: int = STEPS, *, seed: int = 0) -> Pretraining:
    """One curve's run."""
    model = demo.model()
    objective: ObjectiveConfig
    if name == "figure2-language-model":
        head = LanguageModelConfig(width=256, decoder=DecoderConfig(layers=2))
        objective = NextTokenConfig(head=head, seed=seed)
    elif name == "figure2-bag-prediction":
        objective = BagPredictionConfig(seed=seed)
    else:
        objective = ContrastiveConfig(loss=LossConfig(duplicates="share"))
    if name == "figure2-bag-contrastive":
        text = BagConfig(context_length=demo.CONTEXT, vocab_size=model.text.vocab_size, width=model.text.width)
        model = dataclasses.replace(model, name="emoji-bag", text=text)
    batches = EmojiBatchesConfig(
        concepts=64, drawings=2, seed=seed, ramp_steps=round(demo.RAMP * steps), augment=demo.AUGMENT, blend=demo.BLEND,
        templates=demo.TRAINING_TEMPLATES,
    )  # fmt: skip
    train = TrainConfig(
        steps=steps,
        seed=seed,
        optim=OptimConfig(lr=1.5e-3, beta2=0.98, eps=1e-8, weight_decay=0.1, decay_rule="ndim", clip_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warmup_steps=min(WARMUP, steps // 2)),
        average=0.98,
        checkpoint=CheckpointConfig(every=max(1, steps // 4), keep=1),
        log_every=max(1, min(20, steps // 4)),
        evaluate_at=evaluation_steps(steps),
    )
    evaluation = NamesEvaluationConfig(seed=seed)
    return Pretraining(model=model, batches=batches, train=train, objective=objective, evaluation=evaluation)


def smoke(name: str) -> Pretraining:
    """A few steps on every eighth concept."""
    return recipe(name, SMOKE_STEPS).changed(SMOKE)


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """The last step, half of it, a quarter, ..."""
    return tuple(sorted({max(1, steps >> halving) for halving in range(HALVINGS + 1)}))
