"""`ostension curate study`: a small crawl, raw and curated, and models that learn from either."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from ostension.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Run the study of curation: models that see as many pairs of the raw set as of what each stage leaves.

    Makes a small crawl of real pictures with what stands beside them, runs the chain over it, trains a model on every variant
    with three seeds, and writes curation.json. Under an hour on two cores; the same command again goes on where a stopped one
    left off.

    Examples:
      ostension curate study --data DATA -o study

    Args:
        data: The folder of packs. Default: OSTENSION_DATA.
        output: Folder of the crawl, the work folder, shards, runs and the record.
        smoke: A fortieth of the crawl and a model of random weights, which only shows that everything runs.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
    """

    data: Path | None = None
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("ostension-curation")
    smoke: bool = False
    threads: int | None = None

    def run(self) -> int:
        from ostension import runtime
        from ostension.recipes._curation_study import StudyConfig, run_study

        data = self.data or (Path(os.environ["OSTENSION_DATA"]) if os.environ.get("OSTENSION_DATA") else None)
        if data is None:
            raise UsageError("the study has no data", fix="name the folder of packs with --data, or in OSTENSION_DATA")
        runtime.set_threads(self.threads)
        print(run_study(StudyConfig(data=data, smoke=self.smoke), self.output))
        return 0
