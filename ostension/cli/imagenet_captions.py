"""Repeat the ImageNet-Captions study on emoji: labels or captions of the same pictures, one plot (some 20 minutes)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagenetCaptions:
    """Repeat the ImageNet-Captions study on emoji: what makes CLIP robust to another drawing style?

    The same pictures are learned by cross-entropy with labels, by CLIP with the labels as captions and by CLIP with captions,
    from a quarter, half and all of them; and from as many pictures of both distributions. Each model, with its own head and
    with a linear one, gets its place on the plane of effective robustness, whose line goes through the classifiers. Writes
    imagenet-captions.json (the record) and imagenet-captions.html (the plot). The same command again goes on where a stopped
    one left off.

    Args:
        out: Folder of the runs, the record and the page.
        steps: Steps of each run, 128 pictures each.
        seed: Of everything random.
        smoke: Shapes that are drawn on the spot instead of emoji, and few steps: half a minute.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    out: Path = Path("ostension-imagenet-captions")
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    seed: int = 0
    smoke: bool = False
    threads: int | None = None

    def run(self) -> int:

        from ostension import runtime
        from ostension.errors import UsageError
        from ostension.recipes import imagenet_captions
        from ostension.recipes._captions_page import write_page
        from ostension.recipes._captions_study import StudyConfig, run_study
        from ostension.train.progress import Progress

        if self.smoke and self.steps is not None:
            raise UsageError("--smoke has its own number of steps", fix="leave --steps or --smoke out")
        runtime.set_threads(self.threads)
        steps = imagenet_captions.STEPS if self.steps is None else self.steps
        record = run_study(StudyConfig(steps=steps, seed=self.seed, smoke=self.smoke), self.out, trackers=[Progress()])
        if record is not None:
            print(write_page(record, self.out))
        return 0


COMMAND = ImagenetCaptions
