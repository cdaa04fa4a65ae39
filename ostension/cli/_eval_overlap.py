"""Sub-commands of `ostension eval overlap`: from pictures to the table of what was seen in training, and what that adds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ostension.cli._eval_overlap_check import Check
from ostension.cli._group import Group
from ostension.cli._overlap_parts import bar, evaluation_source, lines_of, moved, training_source
from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    from ostension.data.pairs import PairSource
    from ostension.evals.overlap import SetOverlap
    from ostension.evals.overlap_neighbours import Neighbours, Pictures
    from ostension.evals.overlap_review import Decision

PAGE = "review.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindNeighbours:
    """Find the nearest training picture of every evaluation picture.

    With a detector (`ostension train --recipe duplicate-detector-small`, or any folder that it made) both sets are embedded
    into the store, once, and searched exactly. Without one, files are compared by content and by perceptual hash only. The
    same command again goes on where it was stopped.

    Examples:
      ostension eval overlap neighbours --evaluation test --training train --detector runs/detector/model -o overlap/mine
      ostension eval overlap neighbours --task cifar10 --data DATA --training "cc/{00000..00099}.tar" --detector D -o over/c10

    Args:
        evaluation: Pictures of the evaluation set: a folder, tar shards, Parquet, a table, an npz.
        task: A task by name, or its TOML file, instead of --evaluation; ids are then those of `ostension eval run`.
        data: With --task: the data, or the folder of all data. Default: OSTENSION_DATA.
        split: With --task: the split.
        training: Pictures that the model was trained on; several are one set.
        detector: Folder of a trained detector.
        output: Folder of the result, one for each evaluation set.
        name: What to call the set. Default: the task, or the name of the output folder.
        store: The folder of embeddings, which several evaluation sets may share.
        nearest: Training pictures to keep for each evaluation picture.
        batch_size: Pictures that pass the detector together.
        workers: Processes that decode.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        json: Print one JSON object instead of lines.
    """

    evaluation: str | None = None
    task: str | None = None
    data: Path | None = None
    split: str = "test"
    training: tuple[str, ...]
    detector: Path | None = None
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    name: str | None = None
    store: Path = Path("embeddings")
    nearest: int = 3
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"
    json: bool = False

    def __post_init__(self):
        if (self.evaluation is None) == (self.task is None):
            raise UsageError("the evaluation set is not clear", expected="one of --evaluation and --task")
        if self.data is not None and self.task is None:
            raise UsageError("--data says where a task's pictures are", fix="add --task, or leave it out")
        if not self.training:
            raise UsageError("--training is missing", expected="the pictures that the model was trained on")
        for name in ("nearest", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}", expected="1 or more")

    def run(self) -> int:
        from ostension.evals.overlap_neighbours import find_neighbours

        where = {
            "evaluation": self.evaluation, "task": self.task, "data": None if self.data is None else str(self.data),
            "split": self.split if self.task else "", "training": list(self.training),
        }  # fmt: skip
        sources = {"evaluation": evaluation_source(where), "training": training_source(where)}
        sides = self._embedded(sources) if self.detector is not None else self._hashed(sources)
        facts = {
            "name": self.name or (Path(self.task).stem if self.task else self.output.name), "sources": where,
            "fingerprints": {name: source.fingerprint() for name, source in sources.items()},
            "detector": sides["training"].key.get("weights"),
        }  # fmt: skip
        with bar("neighbours", len(sides["evaluation"])) as shown:
            found = find_neighbours(
                sides["evaluation"], sides["training"], self.output, k=self.nearest, facts=facts,
                progress=lambda done, _: shown(done),
            )  # fmt: skip
        self._say(found)
        return 0

    def _embedded(self, sources: dict[str, PairSource]) -> dict[str, Pictures]:
        from ostension.evals.overlap_neighbours import Pictures
        from ostension.formats.duplicate_detector import load_detector
        from ostension.store import Store, embed

        assert self.detector is not None
        detector, store, sides = load_detector(self.detector, device=self.device), Store(self.store), {}
        for name, source in sources.items():
            with bar(f"{name} pictures", len(source)) as shown:
                sets = embed(
                    store, detector, source, split=self.split if name == "evaluation" and self.task else "",  # type: ignore[arg-type]
                    batch_size=self.batch_size, workers=self.workers, bad="list",
                    progress=lambda progress, shown=shown: shown(progress.done),  # type: ignore[misc]
                )  # fmt: skip
            opened = sets["post", 0]
            left_out = opened.rejects()
            if left_out and name == "evaluation":
                key, why = left_out[0]
                what = f"{len(left_out):,} evaluation pictures cannot be used, the first {key} ({why})"
                raise DataError(what, expected="an evaluation set that is whole", fix="mend them, or leave them out of the set")
            if left_out:
                said = f"{len(left_out):,} training pictures cannot be used and are left out, such as {left_out[0][0]}"
                print(f"ostension: warning: {said} ({left_out[0][1]})", file=sys.stderr)
            sides[name] = Pictures.of_set(opened)
        return sides

    def _hashed(self, sources: dict[str, PairSource]) -> dict[str, Pictures]:
        """Contents and hashes, computed anew: a millisecond or two a picture."""
        import numpy as np

        from ostension.data.pairs import image_digest
        from ostension.evals.overlap_neighbours import Pictures
        from ostension.image.decode import read_picture
        from ostension.store import perceptual_hash

        sides = {}
        for name, source in sources.items():
            ids, digests, hashes = [], [], []
            with bar(f"{name} pictures", len(source)) as shown:
                for index in range(len(source)):
                    pair = source.read(index)
                    ids.append(pair.key)
                    digests.append(image_digest(pair.image))
                    hashes.append(perceptual_hash(read_picture(pair.image, name=pair.key).image))
                    shown(index + 1)
            sides[name] = Pictures(
                rows=None, ids=ids, digests=np.array(digests, dtype=np.uint64), hashes=np.array(hashes, dtype=np.uint64),
                key={"data": source.fingerprint()},
            )  # fmt: skip
        return sides

    def _say(self, found: Neighbours) -> None:
        best = sorted(found.best.tolist(), reverse=True)
        row = {
            "folder": str(self.output), "name": found.facts["name"], "evaluation": len(found),
            "training": found.facts["counts"]["training"], "same_file": int((found.same_file >= 0).sum()),
            "hash_at_most_4_bits": int(((found.bits >= 0) & (found.bits <= 4)).sum()),
            "similarity": None if self.detector is None else {"highest": best[0], "median": best[len(best) // 2]},
        }  # fmt: skip
        if self.json:
            print(json.dumps(row))
            return
        print(f"{row['name']}: {row['evaluation']:,} evaluation pictures, {row['training']:,} training pictures")
        print(f"same file        {row['same_file']:,}")
        print(f"hash, 0-4 bits   {row['hash_at_most_4_bits']:,}")
        if self.detector is not None:
            print(f"similarity       {best[0]:.4f} at most, median {best[len(best) // 2]:.4f}")
        print(f"next: ostension eval overlap review {self.output}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """Write the page on which a person sees the pairs and sets the threshold.

    Examples:
      ostension eval overlap review overlap/mine
      ostension eval overlap review overlap/mine --levels 0.99 0.97 0.95 0.93 --pairs 24 -o page.html

    Args:
        folder: Of the neighbours.
        output: The page. Default: review.html in the folder.
        levels: Similarities between bands of pairs. Default: those that 5, 10, 20, 50, ... pictures reach.
        pairs: Most pairs of a band.
        evaluation: Where the evaluation pictures are now, if they were moved.
        training: Where the training pictures are now, if they were moved.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    levels: tuple[float, ...] = ()
    pairs: int = 12
    evaluation: str | None = None
    training: tuple[str, ...] = ()

    def run(self) -> int:
        from ostension.evals.overlap_neighbours import Neighbours
        from ostension.evals.overlap_page import review_page
        from ostension.files import write_text

        found = Neighbours.load(self.folder)
        where = moved(found, self.evaluation, self.training)
        page = review_page(
            found, evaluation_source(where), training_source(where), task=found.facts["name"], folder=str(self.folder),
            levels=self.levels, pairs=self.pairs,
        )  # fmt: skip
        path = self.output or self.folder / PAGE
        write_text(path, page)
        print(f"wrote {path}")
        print(f"next: look at it, then: ostension eval overlap decide {self.folder} --threshold NUMBER")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decide:
    """Keep what a person decided: the threshold of a set, and pairs that are no duplicates all the same.

    Examples:
      ostension eval overlap decide overlap/mine --threshold 0.953
      ostension eval overlap decide overlap/mine --threshold 0.953 --not a/17.jpg --not b/4.jpg --drop-flagged --by ada
      ostension eval overlap decide overlap/mine --bits 4

    Args:
        folder: Of the neighbours.
        threshold: Least similarity of a duplicate.
        bits: Most differing bits of the perceptual hash of a duplicate; of searches without a detector, or besides.
        excluded: Id of an evaluation picture that passes and is no duplicate; repeat the flag for several.
        drop_flagged: Also take out what is nearly black, of one colour or tiny.
        by: Who decided.
        evaluation: Where the evaluation pictures are now, if they were moved.
        json: Print one JSON object instead of lines.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    threshold: float | None = None
    bits: int | None = None
    excluded: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="not")] = ()
    drop_flagged: bool = False
    by: str = ""
    evaluation: str | None = None
    json: bool = False

    def __post_init__(self):
        if self.threshold is None and self.bits is None:
            raise UsageError("nothing is decided", expected="--threshold, --bits, or both")

    def run(self) -> int:
        from ostension.evals.overlap_neighbours import Neighbours
        from ostension.evals.overlap_review import decide, named_counts

        found = Neighbours.load(self.folder)
        made = decide(
            found, evaluation_source(moved(found, self.evaluation, ())), threshold=self.threshold, bits=self.bits,
            excluded=self.excluded, drop_flagged=self.drop_flagged, by=self.by,
        )  # fmt: skip
        made.save(self.folder)
        counts = dict(named_counts(found, made))
        if self.json:
            print(json.dumps({"folder": str(self.folder), "name": found.facts["name"], **counts, "flagged": made.flagged}))
            return 0
        share = 100 * counts["overlap"] / counts["all"]
        print(f"{found.facts['name']}: {counts['overlap']:,} of {counts['all']:,} pictures overlap ({share:.2f} %)")
        flagged = f"nearly black, of one colour or tiny: {made.flagged:,}"
        print(f"the same file: {counts['same_file']:,}; {flagged}; taken out: {counts['excluded']:,}")
        print(f"next: ostension eval overlap measure {self.folder}=SAMPLES.csv")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Say what the overlap of each set adds to a model's accuracy, and whether that could be luck.

    Each set is FOLDER=SAMPLES: the folder of its neighbours, with a decision in it, and a CSV (or Parquet) with the columns id
    and correct, such as the one that `ostension eval run --samples` writes.

    Examples:
      ostension eval overlap measure overlap/a=results/M/a/zeroshot.samples.csv overlap/b=b.csv --model M -o overlap.json
      ostension eval overlap measure overlap/a=a.csv --tests 35 -o results/summaries/overlap.json

    Args:
        sets: FOLDER=SAMPLES of each set.
        model: Whose accuracies they are.
        tests: Sets that p-values are corrected for. Default: as many as are given.
        output: File for the record; in RESULTS/summaries it becomes a part of the report.
        json: Print the record as JSON instead of a table.
    """

    sets: Annotated[tuple[str, ...], tyro.conf.Positional]
    model: str = ""
    tests: int | None = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    json: bool = False

    def __post_init__(self):
        if not self.sets:
            raise UsageError("no set is given", expected="FOLDER=SAMPLES for each")

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.overlap import record
        from ostension.evals.records import save_records

        hashes: dict[str, str] = {}
        made = record([self._set(text, hashes) for text in self.sets], model=self.model, tests=self.tests, hashes=hashes)
        if self.output is not None:
            save_records(self.output, {"overlap": made})
        print(json.dumps(to_tree(made), indent=2) if self.json else lines_of(made.details["sets"], made.config["tests"]))
        return 0

    def _set(self, text: str, hashes: dict[str, str]) -> SetOverlap:
        from ostension.evals.overlap import in_order, read_correct, split
        from ostension.evals.overlap_neighbours import Neighbours
        from ostension.evals.overlap_review import Decision, duplicates, notes_of
        from ostension.files import sha256_file

        folder, equals, samples = text.partition("=")
        if not equals or not folder or not samples:
            raise UsageError(f"the set {text!r}", expected="FOLDER=SAMPLES")
        found = Neighbours.load(folder)
        decision: Decision = Decision.load(folder, found)
        correct = in_order(read_correct(samples), found.ids, samples)
        name = found.facts["name"]
        hashes |= {f"{name}/samples": sha256_file(samples), f"{name}/search": decision.search}
        return split(
            correct, duplicates(found, decision), task=name, threshold=decision.threshold, notes=notes_of(decision)
        )  # fmt: skip


COMMANDS = {
    "overlap": Group(
        "Data overlap: which evaluation pictures were in training, and what that adds to the accuracy.",
        {"neighbours": FindNeighbours, "review": Review, "decide": Decide, "measure": Measure, "check": Check},
    )
}
