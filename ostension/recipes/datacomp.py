"""DataComp's four scales: a fixed model, batch and number of samples seen, for any filtered pool.

Gadre et al. 2023; the numbers are those of its repository (mlfoundations/datacomp). Samples seen decide the steps, whatever
the size of the data: a smaller pool is seen more often.

Assumed, because our notes do not have it: the warm-up of `large` (500, as for the smaller ones). Departures: DataComp trains
with a random resized crop of 0.9 to 1 of the area, where ours is a random square, and its version of open_clip spared the
class embedding from weight decay, which the rule "paper" does not.
"""

from __future__ import annotations

from ostension.recipes._tiny import tiny
from ostension.recipes.clip import ROOMY, papers_run
from ostension.train.pretraining import Pretraining

OFFERS = {
    "datacomp-small": "DataComp small: ViT-B/32, 12.8M samples seen.",
    "datacomp-medium": "DataComp medium: ViT-B/32, 128M samples seen.",
    "datacomp-large": "DataComp large: ViT-B/16, 1.28B samples seen.",
    "datacomp-xlarge": "DataComp xlarge: ViT-L/14, 12.8B samples seen.",
}
# Model, samples seen, batch, learning rate, warm-up, beta2.
TABLE = {
    "datacomp-small": ("ViT-B-32", 12_800_000, 4096, 5e-4, 500, 0.98),
    "datacomp-medium": ("ViT-B-32", 128_000_000, 4096, 5e-4, 500, 0.98),
    "datacomp-large": ("ViT-B-16", 1_280_000_000, 8192, 5e-4, 500, 0.98),
    "datacomp-xlarge": ("ViT-L-14", 12_800_000_000, 90_112, 1e-3, 10_000, 0.95),
}


def recipe(name: str) -> Pretraining:
    """The run called `name`; its data is given by the user."""
    model, seen, batch_size, lr, warmup, beta2 = TABLE[name]
    return papers_run(model, lr).changed({
        **ROOMY,
        "model.vision.activation": "gelu",
        "model.text.activation": "gelu",
        "model.preprocess.mode": "convert-first",
        "batches.batch_size": batch_size,
        "train.epochs": None,
        "train.steps": seen // batch_size,
        "train.schedule.warmup_steps": warmup,
        "train.optim.beta2": beta2,
    })  # fmt: skip


def smoke(name: str) -> Pretraining:
    """The same settings on tiny towers and eight emoji at a time."""
    return tiny(recipe(name))


def pairs(name: str) -> int:
    """Pairs of the whole pool, before any filter."""
    return TABLE[name][1]
