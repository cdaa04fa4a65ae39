"""Sub-command of `ostension eval` for RareAct, whose clips are scored by averages of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ostension.errors import DataError

if TYPE_CHECKING:
    from ostension.evals.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class RareAct:
    """Score clips of rare actions: mWAP and mSAP, as RareAct defines them.

    The table is RareAct's rareact.csv (video_id, class_id, verb, noun, annotation); the scores are an npy file with a row for
    each of its lines and a column for each class_id, higher for what is more likely.

    Examples:
      ostension eval rareact scores.npy rareact.csv
      ostension eval rareact scores.npy rareact.csv -o rareact.json --json

    Args:
        scores: The npy file.
        clips: The table.
        output: Also write a file of records.
        model: What made the scores.
        draws: Of one clip a video, for mSAP.
        seed: Of the draws.
        json: Print one JSON object instead of lines.
    """

    scores: Annotated[Path, tyro.conf.Positional]
    clips: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    model: str = ""
    draws: int = 100
    seed: int = 0
    json: bool = False

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.action import PUBLISHED
        from ostension.evals.records import save_records

        record = self._record()
        if self.output is not None:
            save_records(self.output, {"rareact": record})
        if self.json:
            print(json.dumps(to_tree(record)))
            return 0
        for name, metric in record.metrics.items():
            known = ", ".join(f"{100 * values[name]:.1f} % for {model}" for model, values in PUBLISHED.items())
            print(f"{name}  {100 * metric.value:.1f} % (mean of {metric.count} classes; published: {known}, known second-hand)")
        return 0

    def _record(self) -> Record:
        import numpy as np

        from ostension.evals.action import read_clips, sampled_ap_by_class, weighted_ap_by_class
        from ostension.evals.records import Metric, Record
        from ostension.files import sha256_file

        if self.draws < 1:
            raise DataError(f"--draws is {self.draws}", expected="1 or more")
        clips = read_clips(self.clips)
        try:
            scores = np.load(self.scores, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"not an npy file: {str(error).splitlines()[0]}", source=self.scores) from None
        if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu":
            raise DataError("holds no array of numbers", source=self.scores, expected="an npy file of scores")
        scores = scores.astype(np.float64)
        weighted = weighted_ap_by_class(scores, clips)
        sampled = sampled_ap_by_class(scores, clips, seed=self.seed, draws=self.draws)
        metrics = {
            name: Metric(value=float(np.mean(list(by_class.values()))), count=len(by_class))
            for name, by_class in (("mWAP", weighted), ("mSAP", sampled))
        }
        return Record(
            protocol="rareact", subject=f"{self.model or self.scores.name} on RareAct", metrics=metrics, model=self.model,
            config={"draws": self.draws}, hashes={"scores": sha256_file(self.scores), "clips": sha256_file(self.clips)},
            counts={"clips": len(clips), "classes": len(clips.names), "classes_with_positives": len(weighted)},
            seeds=(self.seed,), details={"weighted": weighted, "sampled": sampled},
        )  # fmt: skip


COMMANDS = {"rareact": RareAct}
