"""Repeat CLIP's Figure 2 on emoji: a language model, two bags of words and CLIP (some 20 minutes on one core)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure2:
    """Repeat CLIP's Figure 2 on the embedded emoji: four ways to learn from captions, on one image tower.

    A transformer language model, a bag of words that is predicted, a bag of words that is picked from the batch, and CLIP,
    each trained on the same pictures. Writes figure2.json (the record) and figure2.html (the plot of accuracy against images
    seen, and how many times fewer images each needs than the one before it). The same command again goes on where a
    stopped one left off.

    Args:
        out: Folder of the runs, the record and the page.
        steps: Steps of each run, 128 images each.
        seed: Of everything random.
        smoke: A few steps on an eighth of the names, which only shows that everything runs.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    out: Path = Path("ostension-figure2")
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    seed: int = 0
    smoke: bool = False
    threads: int | None = None

    def run(self) -> int:

        from ostension import runtime
        from ostension.errors import UsageError
        from ostension.recipes import figure2
        from ostension.recipes._figure2_study import StudyConfig, run_study
        from ostension.train.progress import Progress

        if self.smoke and self.steps is not None:
            raise UsageError("--smoke has its own number of steps", fix="leave --steps or --smoke out")
        runtime.set_threads(self.threads)
        steps = figure2.STEPS if self.steps is None else self.steps
        page = run_study(StudyConfig(steps=steps, seed=self.seed, smoke=self.smoke), self.out, trackers=[Progress()])
        if page is not None:
            print(page)
        return 0


COMMAND = Figure2
