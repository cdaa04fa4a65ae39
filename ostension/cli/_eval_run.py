"""Sub-commands of `ostension eval` that compute: run protocols, fill the store."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ostension.errors import OstensionError, UsageError

if TYPE_CHECKING:
    from ostension.evals.results import Results
    from ostension.evals.store_inputs import Embedder
    from ostension.evals.suite_run import Runner, Step
    from ostension.store.fill import Progress

MODEL_VARIABLE = "OSTENSION_MODEL"
MODEL_FOLDER = "model"  # of a run, see `train.loop`, which is not imported for its name
STORE = Path("embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Measure models on tasks by protocols; what is recorded already is not computed again.

    Pictures are embedded into the store on the first use. Each result is one JSON file below --output, written when it is
    done, so that a run that was killed goes on where it was. A task whose data is missing and a protocol that fails are
    listed at the end, the rest goes on, and the exit status is 1.

    With --predictor a folder that `ostension adapt` wrote is measured like a model, by protocols that look at answers alone
    (zeroshot, calibration, groups, ...), with the class names of each task.

    With --features there is no model: rows are read from npz files (rows, labels, perhaps names), whose names begin with
    their split (train.npz, test.npz), and the rows of the classes' texts from --texts.

    Examples:
      ostension eval run local --protocol zeroshot,probe --model FOLDER --data DATA -o results
      ostension eval run cifar10 emoji@new-style-seen-names --model A --model B -o results --samples
      ostension eval run imagenet --protocol zeroshot --set zeroshot.templates=openai_imagenet --limit 1000 -o tried
      ostension eval run cifar10 --protocol zeroshot,calibration --predictor my-coop --data DATA -o results
      ostension eval run --features train.npz test.npz --texts rows.npz --protocol zeroshot -o results

    Args:
        tasks: Names of suites and tasks, or TOML files of either; TASK@SPLIT is one split.
        protocol: Protocols, separated by commas. Default: zeroshot and retrieval, each where it can be.
        model: A model's folder, file or hub name; repeat the flag for several. Default without --predictor: OSTENSION_MODEL.
        predictor: A saved predictor's folder; repeat the flag for several. Its model is found where it was, or among --model.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of results.
        set: A setting of a protocol, such as zeroshot.templates=photo (`ostension eval ls` lists them); repeat the flag.
        limit: Try it on so many samples of each split, drawn at random with every class's share. The result says so.
        samples: Also write what was said of each sample, as CSV beside each result.
        again: Compute everything again.
        dry_run: Say what would be computed, and compute nothing.
        seed: Of everything that is drawn.
        features: npz files of ready features, instead of a model.
        texts: An npz file with a row for each class name or prompt (rows, names).
        workers: Processes that decode.
        processes: Processes that decode and compute, instead of --workers.
        batch_size: Pictures that pass the tower together.
        download: Let data be fetched from the addresses in the records.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object a result instead of a table.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    protocol: str | None = None
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    predictor: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    limit: int | None = None
    samples: bool = False
    again: bool = False
    dry_run: bool = False
    seed: int = 0
    features: tuple[Path, ...] = ()
    texts: Path | None = None
    workers: int = 0
    processes: int = 1
    batch_size: int = 64
    download: bool = False
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def __post_init__(self):
        for name in ("limit", "batch_size", "processes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}", expected="1 or more")
        if self.texts is not None and not self.features:
            raise UsageError("--texts has no effect without --features", fix="give the rows that they belong to")
        if self.features and (self.model or self.predictor or self.limit or len(self.tasks) > 1):
            raise UsageError(
                "--features is one task without a model", fix="leave --model, --predictor, --limit and other tasks out"
            )
        if not self.tasks and not self.features:
            raise UsageError("no task is given", expected="a suite, a task, a TOML file, or --features")

    def run(self) -> int:
        from ostension.evals.results import Results
        from ostension.evals.suite_run import Runner
        from ostension.evals.targets import default_protocols, find_protocols
        from ostension.train.pretraining import parse_settings

        named = tuple(name.strip() for name in self.protocol.split(",") if name.strip()) if self.protocol else ()
        asked = find_protocols(named or default_protocols(), parse_settings(self.set))
        results = Results(self.output)
        output = _Output(as_json=self.json, mention=bool(named))
        runner = Runner(
            asked, results=results, seed=self.seed, limit=self.limit, samples=self.samples, again=self.again, dry=self.dry_run,
            told=_say,
        )  # fmt: skip
        for step in self._of_features(runner) if self.features else self._of_models(runner, output):
            output.take(step)
        if not self.dry_run:
            _summarise(results, output, limit=self.limit)
        return output.end()

    def _of_models(self, runner: Runner, output: _Output) -> Iterator[Step]:
        from ostension.evals.targets import OpenedTasks, find_targets, of_one_task

        targets = find_targets(self.tasks)
        opened = OpenedTasks(
            data=self.data, limit=self.limit, seed=self.seed, download=self.download, itself=of_one_task(targets)
        )
        subjects = [*_models_beside(self.model, self.predictor), *dict.fromkeys(self.predictor)]
        output.expect(len(targets) * len(runner.asked) * len(subjects))
        for embedder in embedders_of(self, self.predictor):
            yield from runner.suite(embedder, targets, opened)

    def _of_features(self, runner: Runner) -> Iterator[Step]:
        from ostension.evals.feature_files import open_features

        yield from runner.inputs(open_features(self.features, texts=self.texts, task=self.tasks[0] if self.tasks else None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Fill the store with the pictures of tasks, for later runs; nothing is measured.

    Example:
      ostension eval embed local --model FOLDER --data DATA --store embeddings --processes 4

    Args:
        tasks: Names of suites and tasks, or TOML files of either; TASK@SPLIT is one split.
        split: Splits, separated by commas; test is what is measured. Default: all that the record and the data have.
        model: A model's folder, file or hub name; repeat the flag for several. Default: OSTENSION_MODEL.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        workers: Processes that decode.
        processes: Processes that decode and compute, instead of --workers.
        batch_size: Pictures that pass the tower together.
        download: Let data be fetched from the addresses in the records.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object a split instead of lines.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional]
    split: str | None = None
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    data: Path | None = None
    store: Path = STORE
    workers: int = 0
    processes: int = 1
    batch_size: int = 64
    download: bool = False
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.evals.targets import OpenedTasks, find_targets, of_one_task
        from ostension.evals.task_splits import measured_splits

        targets = find_targets(self.tasks)
        opened = OpenedTasks(data=self.data, download=self.download, itself=of_one_task(targets))
        wanted = None if self.split is None else [name.strip() for name in self.split.split(",") if name.strip()]
        named = {word.partition("@")[0]: word.partition("@")[2] for word in self.tasks if "@" in word}
        failed = 0
        for embedder in embedders_of(self):
            for name in dict.fromkeys(target.task for target in targets):
                try:
                    splits = opened.splits(name)
                    known = [named[name]] if name in named else list(splits.task.splits)
                    if wanted:
                        known = [
                            one for split in wanted for one in (measured_splits(splits.task) if split == "test" else [split])
                        ]
                    for split in known:
                        whole = splits.of(split)
                        if (missing := whole.missing("test")) is not None:
                            if wanted or name in named:
                                raise UsageError(missing)
                            _say(f"{name}: {missing}")
                            continue
                        rows = embedder.rows(whole.split("test"), "post")
                        row = {"model": embedder.name, "task": splits.task.name, "split": split, "rows": len(rows)}
                        print(json.dumps(row) if self.json else f"{row['task']}/{split}: {len(rows):,} rows")
                except OstensionError as error:
                    failed += 1
                    _say(f"{name}: {error}")
        return 1 if failed else 0


COMMANDS = {"run": Run, "embed": Embed}


def models_of(given: Sequence[str]) -> list[str]:
    """The models that are asked for.

    Raises:
        UsageError: if there is none.
    """
    found = list(dict.fromkeys(given)) or [name for name in [os.environ.get(MODEL_VARIABLE, "")] if name]
    if not found:
        raise UsageError("no model is given", fix=f"give it with --model, or set {MODEL_VARIABLE}")
    return found


def model_names(paths: Sequence[str]) -> list[str]:
    """Short names that tell models apart: the last part of each path, or more of it where that is not enough.

    A run keeps its model in a folder "model", which names nothing: the folder above does.
    """
    parts = [[part for part in Path(path).parts if part not in ("/", ".", "..")] or [path] for path in paths]
    parts = [part[:-1] if len(part) > 1 and part[-1] == MODEL_FOLDER else part for part in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def embedders_of(command: Run | Embed, predictors: Sequence[str] = ()) -> Iterator[Embedder]:
    """The models with their store, and then predictors, one loaded after the other.

    A predictor's model that is among the given ones is taken from there, else from where it was when the predictor was saved.
    """
    from ostension import runtime
    from ostension.evals.predictor_inputs import PredictorEmbedder
    from ostension.evals.store_inputs import Embedder
    from ostension.formats.load import load
    from ostension.model.fingerprint import fingerprint
    from ostension.model.predictor import Predictor, encoder_fingerprint
    from ostension.store import Store

    runtime.set_threads()
    paths, predictors = _models_beside(command.model, predictors), list(dict.fromkeys(predictors))
    names, store = model_names([*paths, *predictors]), Store(command.store)
    options: dict[str, Any] = {
        "batch_size": command.batch_size, "workers": command.workers, "processes": command.processes, "progress": _Shower(),
    }  # fmt: skip
    known: dict[str, str] = {}
    for path, name in zip(paths, names, strict=False):
        model = load(path, device=command.device, dtype=command.dtype)
        if predictors:
            known[fingerprint(model)] = path
        yield Embedder(model, store, name=name, **options)
    for path, name in zip(predictors, names[len(paths) :], strict=True):
        place = known.get(encoder_fingerprint(path))
        predictor = Predictor.load(path, place, device=command.device, dtype=command.dtype)
        yield PredictorEmbedder(predictor, store, name=name, **options)


def _models_beside(given: Sequence[str], predictors: Sequence[str]) -> list[str]:
    """The models that are asked for; none need be where predictors are."""
    return models_of(given) if given or not predictors else []


class _Shower:
    """Progress of embedding on stderr: a line that is written over on a terminal, else one every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._every_s = 0.2 if self._terminal else 10.0

    def __call__(self, what: str, progress: Progress) -> None:
        now, over = time.monotonic(), progress.done == progress.total
        if not over and now - self._last < self._every_s:
            return
        self._last = now
        line = f"embedding {what}: {progress}"
        if self._terminal:
            print(f"\r{line:<79}", end="\n" if over else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


class _Output:
    """What a run says: a line a step on stderr, results on stdout, what failed at the end."""

    def __init__(self, *, as_json: bool, mention: bool):
        self.as_json, self.mention = as_json, mention
        self.steps: list[Step] = []
        self.problems: list[str] = []
        self.oracles: list[str] = []
        self._expected, self._began = 0, time.monotonic()

    def expect(self, count: int) -> None:
        self._expected, self._began = count, time.monotonic()

    def take(self, step: Step) -> None:
        self.steps.append(step)
        where = f"{step.model}: {step.target} {step.protocol}"
        if step.status == "done":
            assert step.record is not None
            name, metric = next(iter(step.record.metrics.items()))
            _say(f"{where}: {name} {metric.value:.4f} ({step.seconds:.1f} s{self._left()})")
        elif step.status == "failed":
            _say(f"{where}: failed: {step.reason}")
        if self.as_json and (self.mention or step.status != "not applicable"):
            print(json.dumps(tree_of(step), ensure_ascii=False), flush=True)

    def _left(self) -> str:
        """The time that the rest would take at the pace of what was computed."""
        computed = [step.seconds for step in self.steps if step.status == "done"]
        rest = self._expected - len(self.steps)
        return f", {rest} to go, about {rest * sum(computed) / len(computed):,.0f} s" if rest > 0 and computed else ""

    def end(self) -> int:
        if not self.as_json:
            print(table_of(self.steps), end="\n" if self.steps else "")
        for line in self.oracles:
            _say(f"published: {line}")
        if self.mention:
            idle = [step for step in self.steps if step.status == "not applicable"]
            for protocol, reason in dict.fromkeys((step.protocol, step.reason) for step in idle):
                tasks = dict.fromkeys(step.target for step in idle if (step.protocol, step.reason) == (protocol, reason))
                _say(f"{protocol} is not applicable: {reason}: {', '.join(tasks)}")
        failed = [step for step in self.steps if step.status == "failed"]
        for where, reason in dict.fromkeys((f"{step.model}: {step.target}", step.reason) for step in failed):
            protocols = [step.protocol for step in failed if (f"{step.model}: {step.target}", step.reason) == (where, reason)]
            _say(f"failed: {where} {', '.join(protocols)}: {reason}")
        for problem in self.problems:
            _say(f"failed: {problem}")
        return 1 if failed or self.problems else 0


def _summarise(results: Results, output: _Output, *, limit: int | None) -> None:
    """Note what failed, make summaries of the results of the same samples, and compare them with published values."""
    from ostension.evals.evaluate import summaries_of
    from ostension.evals.failures import note_failures
    from ostension.evals.oracles import check_oracles
    from ostension.evals.results import SUMMARIES
    from ostension.files import folder_lock

    try:
        note_failures(results.folder, output.steps)
    except OstensionError as error:
        output.problems.append(str(error))
    known, damaged = results.readable()
    for line in damaged:
        _say(line)
    records = [result.record for result in known if result.limit == limit]
    if not records:
        return
    made, problems = summaries_of(records)
    output.problems += problems
    try:
        with folder_lock(results.folder / SUMMARIES):
            for name, found in made.items():
                results.write_summaries(name, found)
    except OstensionError as error:
        output.problems.append(f"summaries: {error}")
    for step in output.steps:
        if step.record is not None and step.task_record is not None:
            output.oracles += [f"{step.target}: {one.line}" for one in check_oracles(step.record, step.task_record)]


def tree_of(step: Step) -> dict[str, Any]:
    """A step as a JSON object."""
    from ostension.config import to_tree

    result = step.result
    return {
        "model": step.model, "task": step.task, "split": step.split, "protocol": step.protocol, "status": step.status,
        "reason": step.reason, "seconds": round(step.seconds, 3),
        "path": None if result is None or result.path is None else str(result.path),
        "limit": None if result is None else result.limit,
        "notes": [] if result is None else list(result.notes),
        "metrics": {} if result is None else to_tree(result.record.metrics),
    }  # fmt: skip


def table_of(steps: Sequence[Step]) -> str:
    """Steps with a result, or planned ones, as a table."""
    from ostension.cli._eval_results import result_table
    from ostension.cli._tables import text_table

    planned = [step for step in steps if step.status == "planned"]
    known = [step.result for step in steps if step.result is not None]
    parts = [result_table(known)] if known else []
    if planned:
        head = ["to be computed", "task", "protocol", "why"]
        parts.append(
            text_table(head, [[step.model, step.target, step.protocol, step.reason or "new"] for step in planned], left=4)
        )
    return "\n\n".join(parts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
