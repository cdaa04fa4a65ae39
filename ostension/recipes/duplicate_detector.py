"""The detector of near-duplicates: pictures and their altered copies, no captions.

    ostension train --recipe duplicate-detector-small --run runs/detector                        # on emoji, minutes
    ostension train --recipe duplicate-detector-small --data my-pictures --run runs/detector
    torchrun --nproc-per-node 8 -m ostension train --recipe duplicate-detector --data "wit/{00000..39999}.tar" --run runs/rn50

The large one follows CLIP's Appendix C as far as it says: ResNet-50 with GELU, weight norm and anti-aliased pooling, batches
of 1,712, about 30 million pictures, temperature 0.07. From no source, and ours: 224 pixels, 128 numbers an embedding, AdamW at
5e-4 with a cosine, how far the copies' changes go (`image.copies`), one pass over 30 million.

The small one sees 48 pixels and has 1.1 million weights; 240 steps of 128 pictures take three to six minutes of one core.
docs/howto/data-overlap.md says what it finds and what it does not.
"""

from __future__ import annotations

from ostension.image.transforms import PreprocessConfig
from ostension.model.duplicate_detector import DetectorConfig
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.optim import OptimConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig
from ostension.train.two_views import TwoViewBatchesConfig, TwoViewsConfig

OFFERS = {
    "duplicate-detector": "CLIP's near-duplicate detector: a ResNet-50, 30M pictures, batch 1,712.",
    "duplicate-detector-small": "A near-duplicate detector of 48 pixels, trained in minutes; on emoji, or on your pictures.",
}
PAIRS = 30_000_000
EMBED_DIM = 128


def model(name: str) -> DetectorConfig:
    """The detector; both see the whole picture, squashed to the square."""
    small = name == "duplicate-detector-small"
    return DetectorConfig(
        name=name,
        embed_dim=EMBED_DIM,
        layers=(1, 1, 1) if small else (3, 4, 6, 3),
        width=32 if small else 64,
        pool="flatten" if small else "mean",
        preprocess=PreprocessConfig(image_size=48 if small else 224, resize="squash"),
    )


def recipe(name: str) -> Pretraining:
    """The run; the large one's data is for the user to name."""
    small = name == "duplicate-detector-small"
    optim = OptimConfig(lr=2e-3 if small else 5e-4, beta2=0.98, eps=1e-8, weight_decay=0.05, decay_rule="ndim")
    if small:
        train = TrainConfig(
            steps=240, optim=optim, schedule=ScheduleConfig(warmup_steps=20), checkpoint=CheckpointConfig(every=80, keep=1)
        )
        batches = TwoViewBatchesConfig(data="emoji:train", batch_size=128)
    else:
        train = TrainConfig(epochs=1, optim=optim, schedule=ScheduleConfig(warmup_steps=1000))
        batches = TwoViewBatchesConfig(data="", batch_size=1712)
    return Pretraining(model=model(name), batches=batches, train=train, objective=TwoViewsConfig())


def smoke(name: str) -> Pretraining:
    """Four steps of eight pictures, of a network of a few thousand weights: shows that everything runs, and learns nothing."""
    return recipe(name).changed({
        "model.layers": [1, 1],
        "model.width": 4,
        "model.embed_dim": 8,
        "model.preprocess.image_size": 16,
        "batches.data": "emoji:train",
        "batches.batch_size": 8,
        "train.steps": 4,
        "train.epochs": None,
        "train.schedule.warmup_steps": 1,
        "train.log_every": 1,
    })  # fmt: skip


def pairs(name: str) -> int:
    """Pictures that the run is meant for; the small one takes any."""
    return PAIRS
