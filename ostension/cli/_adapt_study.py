"""`ostension adapt study`: the study of methods on real pictures, from packs to the record."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.recipes._adapting_study import StudyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Run the study of methods: two small models, five sets, three seeds; what is done already is kept.

    Trains a model with a locked image tower and a small vision transformer, compares methods on them (accuracy against
    shots, base to new, domains and vendors left out, attacks), and writes adapting.json. Under two hours on two cores; the
    same command again goes on where a stopped one left off.

    Examples:
      ostension adapt study --data DATA -o study
      ostension adapt study --data DATA -o study --part shots --part halves

    Args:
        data: The folder of packs. Default: OSTENSION_DATA.
        output: Folder of sets, models, results and the record.
        part: Do this part only: shots, shots-many, conditional, alone, sources, halves, shift, shift-domains, image-shots,
            image-long, image-styles, views, views-shift, image-halves, attack, checks; repeat the flag.
        lite0: A model to use instead of the one with the locked image tower.
        vit: A model to use instead of the vision transformer.
        smoke: Tiny models, one task and one seed a part, which only shows that everything runs.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    data: Path | None = None
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("ostension-adapting")
    part: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    lite0: Path | None = None
    vit: Path | None = None
    smoke: bool = False
    threads: int | None = None

    def run(self) -> int:
        from ostension import runtime
        from ostension.recipes._adapting_study import StudyConfig

        data = self.data or (Path(os.environ["OSTENSION_DATA"]) if os.environ.get("OSTENSION_DATA") else None)
        if data is None:
            raise UsageError("the study has no data", fix="name the folder of packs with --data, or in OSTENSION_DATA")
        runtime.set_threads(self.threads)
        config = StudyConfig(data=data, lite0=self.lite0, vit=self.vit, parts=self.part, smoke=self.smoke)
        print(self.do(config))
        return 0

    def do(self, config: StudyConfig) -> Path:
        from ostension.recipes._adapting_study import run_study

        return run_study(config, self.output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningStudy(Study):
    """Run the study of tuned weights: two small models, three seeds, a shift beside every test; what is done already is kept.

    Compares fine-tuning and its rivals on PACS with a domain left out, on emoji with a vendor left out and on emoji whose
    background nearly tells the class, with soups and a patch, and writes tuning.json. Under two hours on two cores; the same
    command again goes on where a stopped one left off.

    Examples:
      ostension adapt tuning-study --data DATA -o study
      ostension adapt tuning-study --data DATA -o study --part features --part soups

    Args:
        data: The folder of packs. Default: OSTENSION_DATA.
        output: Folder of sets, models, results and the record.
        part: Do this part only: features, towers, vit-features, vit-towers, groups, patches, soups; repeat the flag.
        lite0: A model to use instead of the one with the locked image tower.
        vit: A model to use instead of the vision transformer.
        smoke: Tiny models, one task and one seed a part, which only shows that everything runs.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    def do(self, config: StudyConfig) -> Path:
        from ostension.recipes._tuning_study import run_study

        return run_study(config, self.output)
