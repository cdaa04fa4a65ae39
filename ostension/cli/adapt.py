"""Adapt: methods that learn from few labelled pictures, or at test time; compared side by side."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from ostension.cli._adapt_study import Study
from ostension.cli._eval_run import STORE, model_names, models_of
from ostension.errors import UsageError
from ostension.registry import ModuleRegistry

if TYPE_CHECKING:
    from ostension.evals.adaptation import Plan
    from ostension.evals.results import Result
    from ostension.evals.store_inputs import Embedder
    from ostension.evals.task_splits import TaskSplits

METHODS = ModuleRegistry("ostension.adapt", "method", without=("base",))
ZERO_SHOT = "zero-shot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapt a model to a task with one method; gives a predictor and its result.

    Args:
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        task: A shipped task's name, or a TOML file; TASK@SPLIT measures that split.
        shots: Labelled pictures a class, drawn as the published results drew them; 0 takes all.
        seed: Of the draw and of the training.
        base_to_new: Train on the first half of the classes and measure both halves.
        test: Further tasks to measure, as TASK or TASK@SPLIT.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of the predictor, with its result beside it.
        start: A predictor's folder whose contexts tpt begins with, such as coop's or cocoop's.
        set: A setting of the method, such as length=4 or recipe.epochs=50; repeat the flag.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
    """

    method: ClassVar[str] = ""

    task: str
    model: str | None = None
    shots: int = 16
    seed: int = 1
    base_to_new: bool = False
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("adapted")
    start: Path | None = None
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.adaptation import run_plan
        from ostension.files import write_json
        from ostension.model.predictor import Predictor

        plan = _plan(self.method, self.set, shots=self.shots, seed=self.seed, base_to_new=self.base_to_new)
        embedder = _embedder(self, models_of([self.model] if self.model else [])[0])
        splits, *targets = _splits([self.task, *self.test], self.data)

        def told(now: dict[str, float]) -> None:
            print(f"epoch {now['epoch'] + 1:.0f}: loss {now['loss']:.4f}", file=sys.stderr)

        start = None if self.start is None else Predictor.load(self.start, embedder.model)
        record, predictor = run_plan(
            plan, splits, embedder, targets=targets, folder=self.output / "fit", progress=told, start=start
        )
        predictor.save(self.output)
        write_json(self.output / "result.json", to_tree(record))
        for name, metric in record.metrics.items():
            print(f"{name}: {_percent(metric.value)}" + (f" (chance {_percent(metric.chance)})" if metric.chance else ""))
        print(f"wrote {self.output}; use it with: ostension classify PICTURE --predictor {self.output}", file=sys.stderr)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods on tasks, shots and seeds: mean and spread over seeds; what is recorded already is kept.

    Examples:
      ostension adapt compare --methods zero-shot,coop,cocoop --tasks local_cifar10 --shots 1,4,16 --model FOLDER -o adapted
      ostension adapt compare --methods zero-shot,coop,kgcoop --tasks emoji --base-to-new --model FOLDER -o halves
      ostension adapt compare --methods coop,dpl --tasks my.toml@photo --test my.toml@sketch --model FOLDER -o shifted

    Args:
        methods: Names of methods, separated by commas; zero-shot is the hand-written prompts.
        tasks: Tasks, separated by commas; TASK@SPLIT measures that split.
        shots: Numbers of labelled pictures a class, separated by commas; 0 takes all.
        seeds: Seeds of draw and training, separated by commas; the published results have 1, 2 and 3.
        base_to_new: Train on the first half of the classes and measure both halves.
        test: Further tasks to measure each predictor on, as TASK or TASK@SPLIT; repeat the flag.
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of results.
        set: A setting of a method, such as coop.length=4 or coop.recipe.epochs=50; repeat the flag.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object a row instead of a table.
    """

    methods: str
    tasks: str
    shots: str = "16"
    seeds: str = "1,2,3"
    base_to_new: bool = False
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    model: str | None = None
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results")
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.evals.adaptation_runs import rows_of, run_all
        from ostension.evals.results import Results

        methods = _words(self.methods, "--methods")
        shots, seeds = _numbers(self.shots, "--shots"), _numbers(self.seeds, "--seeds")
        plans = [
            _plan(method, _own(self.set, method, methods), shots=number, seed=seed, base_to_new=self.base_to_new)
            for method in methods
            for number in (shots if method != ZERO_SHOT else shots[:1])
            for seed in (seeds if method != ZERO_SHOT else seeds[:1])
        ]
        embedder = _embedder(self, models_of([self.model] if self.model else [])[0])
        results, failed, kept = Results(self.output), 0, []
        targets = _splits(self.test, self.data)
        for splits in _splits(_words(self.tasks, "--tasks"), self.data):
            for step in run_all(plans, splits, embedder, results, targets=targets):
                if isinstance(step, str):
                    failed += 1
                    print(step, file=sys.stderr)
                    continue
                kept.append(step)
                print(_line(step), file=sys.stderr)
        rows = rows_of(kept)
        if self.json:
            for row in rows:
                print(json.dumps(row))
        elif rows:
            from ostension.cli._tables import text_table

            head = ("task", "method", "shots", "metric", "mean", "spread", "seeds")
            cells = [(row["task"], row["method"], str(row["shots"] or "all"), row["metric"], _percent(row["mean"]),
                      _percent(row["spread"]) if row["seeds"] > 1 else "", str(row["seeds"])) for row in rows]  # fmt: skip
            print(text_table(head, cells, left=4))
        return 1 if failed else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the methods: what each trains, needs and depends on.

    Args:
        json: Print one JSON object a line instead of a table.
    """

    json: bool = False

    def run(self) -> int:
        from ostension.cli._tables import text_table
        from ostension.config import to_tree
        from ostension.evals.adaptation import spec_of

        rows = []
        for name in METHODS.names():
            spec, module = spec_of(name), METHODS.load(name)
            row = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name != "silence"}
            rows.append({"name": name, **row, "settings": to_tree(module.Config())})
        if self.json:
            for row in rows:
                print(json.dumps(row, default=list))
            return 0
        head = ("name", "needs", "W depends on", "trains")
        print(text_table(head, [(row["name"], _needs(row), row["depends"], row["trains"]) for row in rows], left=4))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Attack the pictures of a task: a predictor's clean and robust accuracy.

    Examples:
      ostension adapt attack --predictor tecoa --task local_cifar10 --limit 500
      ostension adapt attack --model FOLDER --task local_cifar10 --epsilon 1 --steps 100 --attacks pgd

    Args:
        task: A shipped task's name, or a TOML file; TASK@SPLIT attacks that split.
        predictor: A predictor's folder; without it the hand-written prompts of the model.
        model: A model's folder, file or hub name, if there is no predictor or its encoder has moved.
        epsilon: Largest change of a pixel, of 255.
        steps: Steps of each attack.
        step: Change of a pixel in one step of pgd and cw, of 255.
        attacks: Attacks, separated by commas: pgd, cw, apgd-ce, apgd-dlr.
        limit: Attack so many samples, of every class its share.
        seed: Of the starts and of the choice.
        data: The folder of all data. Default: OSTENSION_DATA.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        json: Print the record instead of lines.
    """

    task: str
    predictor: Path | None = None
    model: str | None = None
    epsilon: float = 1.0
    steps: int = 20
    step: float = 0.25
    attacks: str = "pgd,cw,apgd-ce,apgd-dlr"
    limit: int | None = None
    seed: int = 0
    data: Path | None = None
    device: str = "auto"
    json: bool = False

    def run(self) -> int:
        import ostension
        from ostension.config import to_tree
        from ostension.evals.adaptation import bind_to
        from ostension.evals.adversarial import robust_accuracy
        from ostension.model.predictor import Predictor
        from ostension.train.attacks import Budget

        splits = _splits([self.task], self.data)[0]
        encoder = None
        if self.model is not None or self.predictor is None:
            encoder = ostension.load(models_of([self.model] if self.model else [])[0], device=self.device, dtype="float32")
        found = None if self.predictor is None else Predictor.load(self.predictor, encoder)
        predictor = bind_to(found, encoder, splits.task)
        budget = Budget(epsilon=self.epsilon / 255, step=self.step / 255, steps=self.steps)

        def told(done: int, total: int) -> None:
            print(f"{done:,} of {total:,}", file=sys.stderr)

        record = robust_accuracy(
            predictor, splits.split("test"), budget=budget, attacks=_words(self.attacks, "--attacks"), limit=self.limit,
            seed=self.seed, told=told,
        )  # fmt: skip
        if self.json:
            print(json.dumps(to_tree(record)))
            return 0
        for name, metric in record.metrics.items():
            print(f"{name}: {_percent(metric.value)}")
        return 0


def _needs(row: dict[str, Any]) -> str:
    parts = [("labels", row["labels"]), ("domains", row["domains"]), ("videos", row["takes"] == "videos"),
             ("gradients at test time", row["test_gradients"])]  # fmt: skip
    return ", ".join(word for word, wanted in parts if wanted) or "nothing"


def _command(name: str) -> type:
    """The sub-command of one method."""
    summary = METHODS.summary(name)
    doc = f"{summary}\n\n    Example:\n      ostension adapt {name} --model FOLDER --task local_cifar10 --shots 16 -o {name}\n"
    args = (Adapt.__doc__ or "").partition("\n    Args:")[2]
    return type(name, (Adapt,), {"method": name, "__doc__": f"{doc}\n    Args:{args}"})


COMMAND = {"compare": Compare, "attack": Attack, "study": Study, "ls": List, **{name: _command(name) for name in METHODS.names()}}


def _plan(method: str, settings: Sequence[str], **fields: Any) -> Plan:
    from ostension.config import from_tree, to_tree
    from ostension.evals.adaptation import Plan
    from ostension.train.pretraining import parse_settings

    if method == ZERO_SHOT:
        return Plan(method=method, **fields)
    config_type = METHODS.load(method).Config
    tree = to_tree(config_type())
    for key, value in parse_settings(settings).items():
        place = tree
        *path, last = key.split(".")
        for part in path:
            if not isinstance(place.get(part), dict):
                raise UsageError(
                    f"{method} has no setting {key!r}", fix=f"see: ostension adapt ls --json, or the page of {method}"
                )
            place = place[part]
        place[last] = value
    return Plan(method=method, config=from_tree(config_type, tree, source=f"--set of {method}"), **fields)


def _own(settings: Sequence[str], method: str, methods: Sequence[str]) -> list[str]:
    """The settings of one method, from METHOD.KEY=VALUE."""
    for text in settings:
        if text.partition(".")[0] not in methods:
            raise UsageError(f"--set {text} is for none of {', '.join(methods)}", expected="METHOD.SETTING=VALUE")
    return [text.partition(".")[2] for text in settings if text.partition(".")[0] == method]


def _embedder(command: Adapt | Compare, path: str) -> Embedder:
    import ostension
    from ostension.evals.store_inputs import Embedder
    from ostension.store import Store

    model = ostension.load(path, device=command.device, dtype=command.dtype)

    def told(name: str, now: Any) -> None:
        print(f"embedding {name}: {now}", file=sys.stderr)

    return Embedder(model, Store(command.store), name=model_names([path])[0], progress=told)


def _splits(words: Sequence[str], data: Path | None) -> list[TaskSplits]:
    from ostension.evals.targets import find_targets
    from ostension.evals.task_splits import TaskSplits

    return [TaskSplits(target.task, data, measured=target.split) for word in words for target in find_targets([word])]


def _words(text: str, flag: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UsageError(f"{flag} is empty", expected="names, separated by commas")
    return list(dict.fromkeys(found))


def _numbers(text: str, flag: str) -> list[int]:
    try:
        found = [int(word) for word in _words(text, flag)]
    except ValueError:
        raise UsageError(f"{flag} is {text!r}", expected="whole numbers, separated by commas") from None
    if min(found) < 0:
        raise UsageError(f"{flag} is {text!r}", expected="numbers from 0")
    return found


def _line(result: Result) -> str:
    record = result.record
    values = ", ".join(f"{name} {_percent(metric.value)}" for name, metric in record.metrics.items())
    return f"{record.model}: {record.task} {record.protocol}: {values} ({result.seconds:.1f} s)"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
