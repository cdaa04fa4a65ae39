"""Sub-commands of `ostension eval elevater`: make, merge and check submissions to the leaderboard."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from ostension.cli._group import Group
from ostension.errors import DataError, OstensionError, UsageError

if TYPE_CHECKING:
    from ostension.evals.elevater.checking import Report

OUTPUT = Path("all_predictions.zip")
SUITE = "elevater20"
TRACKS = {"zero": 0, "few": 5, "full": -1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submit:
    """Predict the leaderboard's image sets with a model and write the submission.

    Prediction files of single sets are kept in a folder beside the submission, so that a run that was stopped goes on. Sets
    whose data is missing are listed, the rest is written, and the exit status is 1, as a submission needs all twenty.

    Examples:
      ostension eval elevater submit --model FOLDER --data DATA --index hub -o zero.zip
      ostension eval elevater submit --track few --set head.init=merged --model FOLDER --data DATA --index hub -o few.zip

    Args:
        tasks: Names of suites and tasks.
        track: zero (no training), few (5 images a class, three draws), full (every image).
        set: A setting of the elevater protocol, such as head.init=merged; repeat the flag.
        index: Folder of the hub's index files, SET.txt; they give the order of the images.
        name: The model's name in the submission. Default: the model's own.
        output: The submission.
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        workers: Processes that decode.
        processes: Processes that decode and compute, instead of --workers.
        batch_size: Pictures that pass the tower together.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object instead of lines.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional] = (SUITE,)
    track: Literal["zero", "few", "full"] = "zero"
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    index: Path | None = None
    name: str | None = None
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = OUTPUT
    model: str | None = None
    data: Path | None = None
    store: Path = Path("embeddings")
    workers: int = 0
    processes: int = 1
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def __post_init__(self):
        if self.output.suffix != ".zip":
            raise UsageError(f"--output is {self.output}", expected="a .zip")

    def run(self) -> int:
        from ostension.cli._eval_run import embedders_of
        from ostension.evals.elevater.checking import check_archive, check_file
        from ostension.evals.elevater.merging import merge
        from ostension.evals.elevater.sets import set_of_task
        from ostension.evals.elevater.submitting import write_predictions
        from ostension.evals.store_inputs import StoreInputs
        from ostension.evals.targets import OpenedTasks, find_protocols, find_targets
        from ostension.train.pretraining import parse_settings

        settings = {f"elevater.{key}": value for key, value in parse_settings(self.set).items()}
        for fixed in ("shots", "seeds"):
            if f"elevater.{fixed}" in settings:
                raise UsageError(f"--set {fixed} has no effect", fix="--track decides it")
        config = find_protocols(["elevater"], settings)[0].config
        opened = OpenedTasks(data=self.data)
        embedder = next(iter(embedders_of(cast("Any", _One.of(self)))))
        parts, failed = [], 0
        for target in find_targets(self.tasks):
            try:
                splits = opened.splits(target.task, target.split)
                index = None if self.index is None else self.index / f"{set_of_task(splits.task).name}.txt"
                inputs = StoreInputs(embedder, splits)
                made = write_predictions(
                    inputs, config, shots=TRACKS[self.track], model_name=self.name or embedder.name,
                    folder=self.output.with_suffix(".parts"), index=index,
                )  # fmt: skip
                problems = [problem for path in made for problem in check_file(path).all_problems]
                if problems:
                    raise DataError(problems[0], expected="the leaderboard's test images")
                parts += made
                print(f"{target.task}: predicted", file=sys.stderr, flush=True)
            except OstensionError as error:
                failed += 1
                print(f"failed: {target.task}: {error}", file=sys.stderr, flush=True)
        if not parts:
            return 1
        merge(parts, self.output)
        if self.index is None:
            line = "warning: images are in the order of each task's data; the leaderboard wants the hub's, see --index"
            print(line, file=sys.stderr)
        report = check_archive(self.output)
        _show(self.output, report, as_json=self.json)
        return 1 if failed or not report.valid else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge prediction files of single data sets and seeds into a submission, and check it.

    Examples:
      ostension eval elevater merge predictions/*.json -o all_predictions.zip

    Args:
        files: Prediction files (.json), or folders of them.
        output: The submission.
        json: Print one JSON object instead of lines.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = OUTPUT
    json: bool = False

    def run(self) -> int:
        from ostension.evals.elevater.checking import check_archive
        from ostension.evals.elevater.merging import merge

        found = [path for given in self.files for path in (sorted(given.glob("*.json")) if given.is_dir() else [given])]
        merge(found, self.output)
        report = check_archive(self.output)
        _show(self.output, report, as_json=self.json)
        return 0 if report.valid else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Check a submission: keys, data sets, numbers of images and classes, probabilities, boxes. Exit status 1 if not valid.

    Examples:
      ostension eval elevater check all_predictions.zip
      ostension eval elevater check cifar-10.json --single
      ostension eval elevater check boxes.zip --annotations BCCD=test.json

    Args:
        file: The submission (.zip, or the .json in it).
        single: The file is the prediction file of one data set.
        annotations: A detection set's annotations in COCO's form, SET=FILE, for its numbers of images and classes; repeat.
        max_bytes: Bytes of JSON that are read at most.
        json: Print one JSON object instead of lines.
    """

    file: Annotated[Path, tyro.conf.Positional]
    single: bool = False
    annotations: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    max_bytes: int = 8 << 30
    json: bool = False

    def run(self) -> int:
        from ostension.evals.elevater.checking import check_archive, check_file
        from ostension.evals.elevater.detection import read_annotations

        known = {}
        for given in self.annotations:
            name, equals, path = given.partition("=")
            if not equals:
                raise UsageError(f"--annotations is {given!r}", expected="SET=FILE")
            known[name] = read_annotations(Path(path))
        report = (check_file if self.single else check_archive)(self.file, known, max_bytes=self.max_bytes)
        _show(self.file, report, as_json=self.json)
        return 0 if report.valid else 1


COMMANDS = {
    "elevater": Group(
        "ELEVATER: predictions for its leaderboard, written, merged and checked.",
        {"submit": Submit, "merge": Merge, "check": Check},
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _One:
    """What embedding asks of a command, which may have several models."""

    model: tuple[str, ...]
    store: Path
    workers: int
    processes: int
    batch_size: int
    device: str
    dtype: str

    @staticmethod
    def of(command: Submit) -> _One:
        names = [field.name for field in dataclasses.fields(_One) if field.name != "model"]
        given = () if command.model is None else (command.model,)
        return _One(model=given, **{name: getattr(command, name) for name in names})


def _show(path: Path, report: Report, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"dataset_name": one.header.dataset_name, "n_shot": one.header.n_shot, "rnd_seeds": list(one.header.rnd_seeds),
             "images": one.images, "problems": list(one.problems)}
            for one in report.entries
        ]  # fmt: skip
        print(json.dumps({"file": str(path), "valid": report.valid, "entries": rows, "problems": list(report.problems)}))
        return
    for one in report.entries:
        seeds = ", ".join(map(str, one.header.rnd_seeds))
        state = "valid" if not one.problems else "; ".join(one.problems)
        print(f"{one.header.dataset_name:<32}{one.images:>8,} images  seeds {seeds:<8}  {state}")
    for problem in report.problems:
        print(f"problem: {problem}")
    print(f"{path}: {'valid' if report.valid else 'not valid'}")
