"""Adapt: methods that learn from few labelled pictures, or at test time; compared side by side."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from ostension.cli._adapt_auto import Auto
from ostension.cli._adapt_curve import Curve
from ostension.cli._adapt_domains import Domains
from ostension.cli._adapt_shared import (
    METHODS,
    ZERO_SHOT,
    alphas_of,
    embedder_of,
    numbers_of,
    others_of,
    own_settings,
    percent,
    plan_from,
    say_short,
    splits_of,
    task_names,
    words_of,
)
from ostension.cli._adapt_study import Study, TuningStudy
from ostension.cli._adapt_tables import line_of, side_by_side
from ostension.cli._eval_run import STORE, models_of
from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.model.predictor import Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapt a model to a task with one method; gives a predictor and its result.

    Args:
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        task: A shipped task's name, or a TOML file; TASK@SPLIT measures that split.
        shots: Labelled pictures a class, drawn as the published results drew them; 0 takes all.
        seed: Of the draw and of the training.
        base_to_new: Train on the first half of the classes and measure both halves.
        val: The split of the pictures that settings are chosen by, such as id_val of a WILDS task, whose val is shifted.
        test: Further tasks to measure, as TASK or TASK@SPLIT.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of the predictor, with its result beside it.
        model_out: Also write the whole model with what was tuned in it, for methods that tune a tower.
        start: A predictor's folder that the method begins with, such as coop's or cocoop's contexts for tpt.
        sources: Other tasks that the method learns from besides (mvlpt, paint), separated by commas.
        keep: Tasks whose accuracy is to stay (paint), separated by commas; their validation pictures are looked at.
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
    val: str = "val"
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("adapted")
    model_out: Path | None = None
    start: Path | None = None
    sources: str | None = None
    keep: str | None = None
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.adaptation import run_plan, tunes
        from ostension.files import write_json, writing
        from ostension.model.predictor import Predictor

        sources, keep = (others_of(flag, getattr(self, flag), self.data, [self.method]) for flag in ("sources", "keep"))
        if self.model_out is not None and self.model_out.exists():
            raise UsageError(f"--model-out is {self.model_out}, which is already there", expected="a new folder")
        if self.model_out is not None and not tunes(self.method):
            raise UsageError(f"--model-out has no effect: {self.method} tunes no tower", expected="finetune, paint, ...")
        plan = plan_from(
            self.method, self.set, shots=self.shots, seed=self.seed, base_to_new=self.base_to_new, sources=task_names(sources),
            keep=task_names(keep), val=self.val,
        )
        embedder = embedder_of(self, models_of([self.model] if self.model else [])[0])
        splits, *targets = splits_of([self.task, *self.test], self.data)
        with writing(self.output):  # before the work, not after it
            self.output.mkdir(parents=True, exist_ok=True)

        def told(now: dict[str, float]) -> None:
            more = "".join(f", {name} {value:.4f}" for name, value in now.items() if name not in ("epoch", "loss", "lr"))
            print(f"epoch {now['epoch'] + 1:.0f}: loss {now['loss']:.4f}{more}", file=sys.stderr)

        start = None if self.start is None else Predictor.load(self.start, embedder.model)
        record, predictor = run_plan(
            plan, splits, embedder, targets=targets, folder=self.output / "fit", progress=told, start=start, sources=sources,
            keep=keep,
        )
        predictor.save(self.output)
        with writing(self.output):
            write_json(self.output / "result.json", to_tree(record))
        shutil.rmtree(self.output / "fit", ignore_errors=True)  # what a fit that is stopped goes on from
        say_short(record, self.shots, set())
        for name, metric in record.metrics.items():
            print(f"{name}: {percent(metric.value)}" + (f" (chance {percent(metric.chance)})" if metric.chance else ""))
        print(f"wrote {self.output}; use it with: ostension classify PICTURE --predictor {self.output}", file=sys.stderr)
        if self.model_out is not None:
            _write_model(predictor, self.model_out)
        return 0


def _write_model(predictor: Predictor, folder: Path) -> None:
    """The tuned model as a folder."""
    from ostension.formats.load import save

    module = getattr(predictor, "module", None)
    if module is None or not hasattr(module, "tuned_model"):
        raise UsageError(f"--model-out has no effect: {predictor.kind} tunes no tower", expected="finetune, paint, ...")
    save(module.tuned_model(), folder)
    print(f"wrote {folder}, a model like any other", file=sys.stderr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods on tasks, shots and seeds: in distribution and out of it side by side; what is recorded is kept.

    The columns are the task's own score, the worst group where its record lists groups, the score on each `--test` and their
    mean, "out of distribution". A cell is the mean over seeds, the spread over seeds, and a 95 % interval that holds what seeds
    and what test pictures leave open. With `--line` there is effective robustness: what a method has out of distribution above
    the line through models of the named methods with the same score in distribution.

    Examples:
      ostension adapt compare --methods zero-shot,coop,cocoop --tasks local_cifar10 --shots 1,4,16 --model FOLDER -o adapted
      ostension adapt compare --methods zero-shot,coop,kgcoop --tasks emoji --base-to-new --model FOLDER -o halves
      ostension adapt compare --methods coop,mvlpt --tasks local_cifar10 --sources local_caltech101 --model FOLDER -o several
      ostension adapt compare --methods coop,dpl --tasks my.toml@photo --test my.toml@sketch --model FOLDER -o shifted
      ostension adapt compare --methods zero-shot,probe,finetune --shots 4,16,0 --tasks my.toml --test other.toml --line probe

    Args:
        methods: Names of methods, separated by commas; zero-shot is the hand-written prompts.
        tasks: Tasks, separated by commas; TASK@SPLIT measures that split.
        shots: Numbers of labelled pictures a class, separated by commas; 0 takes all.
        seeds: Seeds of draw and training, separated by commas; the published results have 1, 2 and 3.
        base_to_new: Train on the first half of the classes and measure both halves.
        val: The split of the pictures that settings are chosen by, such as id_val of a WILDS task, whose val is shifted.
        test: Further tasks to measure each predictor on, as TASK or TASK@SPLIT; repeat the flag.
        sources: Other tasks, separated by commas, that those methods learn from besides that can (mvlpt, paint).
        keep: Tasks whose accuracy is to stay, separated by commas, for those methods that look at them (paint).
        alphas: Points between zero-shot weights (0) and tuned ones (1) to measure besides, separated by commas, of methods that
            tune a tower; nothing is chosen among them.
        line: Methods whose models, of all shots and seeds, make the line of effective robustness; separated by commas.
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of results.
        set: A setting of a method, such as coop.length=4 or coop.recipe.epochs=50; repeat the flag.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print one JSON object a metric instead of a table.
    """

    methods: str
    tasks: str
    shots: str = "16"
    seeds: str = "1,2,3"
    base_to_new: bool = False
    val: str = "val"
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    sources: str | None = None
    keep: str | None = None
    alphas: str = ""
    line: str = ""
    model: str | None = None
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results")
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.evals.adaptation import takes
        from ostension.evals.adaptation_runs import run_all
        from ostension.evals.adaptation_table import rows_of
        from ostension.evals.results import Results

        methods = words_of(self.methods, "--methods")
        shots, seeds = numbers_of(self.shots, "--shots"), numbers_of(self.seeds, "--seeds")
        line, alphas = words_of(self.line, "--line") if self.line else [], alphas_of(self.alphas)
        if line and not self.test:
            raise UsageError("--line needs something out of distribution", fix="give one --test or more")
        if unknown := [name for name in line if name not in methods]:
            raise UsageError(f"--line names {unknown[0]!r}", expected=f"one of {', '.join(methods)}")
        sources, keep = (others_of(flag, getattr(self, flag), self.data, methods) for flag in ("sources", "keep"))
        plans = [
            plan_from(
                method,
                own_settings(self.set, method, methods),
                shots=number,
                seed=seed,
                base_to_new=self.base_to_new,
                val=self.val,
                alphas=alphas,
                sources=task_names(sources) if takes(method, "sources") else (),
                keep=task_names(keep) if takes(method, "keep") else (),
            )
            for method in methods
            for number in (shots if method != ZERO_SHOT else shots[:1])
            for seed in (seeds if method != ZERO_SHOT else seeds[:1])
        ]
        embedder = embedder_of(self, models_of([self.model] if self.model else [])[0])
        results, failed, kept = Results(self.output), 0, []
        targets, said = splits_of(self.test, self.data), set[str]()
        for splits in splits_of(words_of(self.tasks, "--tasks"), self.data):
            for step in run_all(plans, splits, embedder, results, targets=targets, sources=sources, keep=keep):
                if isinstance(step, str):
                    failed += 1
                    print(step, file=sys.stderr)
                    continue
                kept.append(step)
                say_short(step.record, step.record.config["shots"], said)
                print(line_of(step), file=sys.stderr)
        rows = rows_of(kept, line=line) if kept else []
        if self.json:
            for row in rows:
                print(json.dumps(row.tree()))
        for task in dict.fromkeys(row.task for row in rows if not self.json):
            print(f"{task}:\n{side_by_side([row for row in rows if row.task == task])}")
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

        for flag in ("limit", "steps"):
            if (value := getattr(self, flag)) is not None and value < 1:
                raise UsageError(f"--{flag} is {value}", expected="1 or more")
        splits = splits_of([self.task], self.data)[0]
        encoder = None
        if self.model is not None or self.predictor is None:
            encoder = ostension.load(models_of([self.model] if self.model else [])[0], device=self.device, dtype="float32")
        found = None if self.predictor is None else Predictor.load(self.predictor, encoder)
        predictor = bind_to(found, encoder, splits.task)
        budget = Budget(epsilon=self.epsilon / 255, step=self.step / 255, steps=self.steps)

        def told(done: int, total: int) -> None:
            print(f"{done:,} of {total:,}", file=sys.stderr)

        record = robust_accuracy(
            predictor, splits.split("test"), budget=budget, attacks=words_of(self.attacks, "--attacks"), limit=self.limit,
            seed=self.seed, told=told,
        )  # fmt: skip
        if self.json:
            print(json.dumps(to_tree(record)))
            return 0
        for name, metric in record.metrics.items():
            print(f"{name}: {percent(metric.value)}")
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


OWN = {
    "auto": Auto,
    "compare": Compare,
    "curve": Curve,
    "domains": Domains,
    "attack": Attack,
    "study": Study,
    "tuning-study": TuningStudy,
    "ls": List,
}
COMMAND = {**OWN, **{name: _command(name) for name in METHODS.names()}}
