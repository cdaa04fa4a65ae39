"""The demo from start to end: plan, train, evaluate, report. A rerun goes on where the last one stopped.

The number of steps is decided once, by the recipe or from this machine's speed and the minutes asked for, and written to
`demo.json`; from then on everything is a function of the step, as in any run, and resuming changes nothing.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension import files, runtime
from ostension.errors import ConfigError, DataError
from ostension.evals.records import save_records
from ostension.formats.load import load
from ostension.model.predictor import Predictor
from ostension.recipes import demo
from ostension.recipes._demo_report import RunFacts, build_report
from ostension.recipes._emoji_batches import emoji_set
from ostension.recipes._emoji_evaluation import EmojiEvaluation, pictures
from ostension.runlog import Tracker, read_records
from ostension.train.pretraining import Pretraining

PLAN, RECORDS, REPORT = "demo.json", "records.json", "report.html"
MODEL, CLASSIFIER, PICTURES = "model", "classifier", "pictures"
LANGUAGES = ("de", "es", "fr", "hi", "ja", "ru", "zh")
EVALUATION_S = 45.0  # kept free of the minutes: 35 to 50 s of one core here, of which the map takes a quarter
MIN_STEPS, TRIAL_STEPS = 20, 24
CLEARLY = 1.2  # how many times slower all cores have to be
NUM_PICTURES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo is asked for.

    Attributes:
        minutes: of the whole demo on this machine, training and evaluation; None is the recipe's own number of steps.
        languages: also train on and ask in seven other languages.
        seed: of everything random.
        smoke: twenty steps on an eighth of the names: shows that everything runs.
    """

    minutes: float | None = None
    languages: bool = False
    seed: int = 0
    smoke: bool = False

    def __post_init__(self):
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"--minutes is {self.minutes:g}", expected="more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """How a demo ended: with its report and commands to go on with, or stopped by a signal with everything saved."""

    report: Path | None = None
    commands: tuple[str, ...] = ()
    signal: int | None = None


class Stopped(Exception):
    """A signal asked for the end during the trial, when there is nothing to save yet."""

    def __init__(self, signal: int | None):
        super().__init__()
        self.signal = signal


def run_demo(config: DemoConfig, folder: Path, trackers: Sequence[Tracker] = ()) -> DemoResult:
    """Do what is left of the demo in `folder`.

    Raises:
        ConfigError: if `folder` holds a demo of another configuration.
        DataError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be used: {error.strerror}", source=folder, expected="a folder that can be written") from None
    _say(f"everything goes to {folder}")
    try:
        pretraining = plan(config, folder)
    except Stopped as stopped:
        _say("stopped before the first step")
        return DemoResult(signal=stopped.signal)
    if not (folder / MODEL).is_dir():
        result = pretraining.run(folder, trackers=trackers)
        if result.status == "stopped":
            _say(f"stopped after step {result.step}; the same command goes on from there")
            return DemoResult(signal=result.signal)
    started = time.perf_counter()
    _say("evaluating on the style and the names that training never saw")
    model = load(folder / MODEL, dtype="float32")
    emoji = emoji_set(pretraining.batches.every)  # type: ignore[attr-defined]
    evaluator = EmojiEvaluation(model, emoji, demo.TEMPLATES, seed=config.seed)
    found = evaluator.run(LANGUAGES if config.languages else ())
    save_records(folder / RECORDS, found.records)
    shown, labels = export_pictures(evaluator, folder / PICTURES)
    Predictor.zero_shot(model, emoji.names(), demo.TEMPLATES).save(folder / CLASSIFIER)
    path = {name: shlex.quote(str(folder / name)) for name in (PICTURES, CLASSIFIER, MODEL)}
    one = shlex.quote(str(folder / PICTURES / shown))
    commands = (
        f"ostension classify {path[PICTURES]} --predictor {path[CLASSIFIER]}",
        f"ostension classify {one} --labels {shlex.quote(labels)} --model {path[MODEL]}",
        f"ostension model inspect {path[MODEL]}",
    )
    log = read_records(folder, kinds=("step",))
    train_s, evaluate_s = training_seconds(log), time.perf_counter() - started
    facts = [
        ("seconds of training", f"{train_s:.0f}"),
        ("seconds of evaluation", f"{evaluate_s:.0f}"),
        *_facts(config, pretraining, evaluator.hashes),
    ]
    page = build_report(evaluator, found, RunFacts(
        log=log, facts=facts, minutes=(train_s + evaluate_s) / 60, commands=commands,
        parameters=sum(parameter.numel() for parameter in model.parameters()), pairs_seen=int(log[-1]["samples_seen"]),
    ))  # fmt: skip
    files.write_text(folder / REPORT, page)
    for view in ("seen-names", "new-names"):
        top1 = found.records[f"zero-shot/{view}"].metrics["top1"]
        title = found.records[f"zero-shot/{view}"].subject
        _say(f"{title}: {100 * top1.value:.1f} % right at the first guess (chance {100 * (top1.chance or 0):.2g} %)")
    if (steps := int(log[-1]["step"])) < demo.STEPS // 2 and not config.smoke:
        _say(f"{steps:,} of the recipe's {demo.STEPS:,} steps fitted into the minutes; with all of them it learns far more: "
             "ostension demo --out another-folder")  # fmt: skip
    return DemoResult(report=folder / REPORT, commands=commands)


def plan(config: DemoConfig, folder: Path) -> Pretraining:
    """The run: as written in the folder before, or made to fit the minutes and written there. Sets the threads.

    Raises:
        ConfigError: if the folder holds a demo that was asked for otherwise.
    """
    path, asked = folder / PLAN, dataclasses.asdict(config)
    if path.exists():
        written = files.read_json(path)
        if not isinstance(written, dict) or written.keys() != {"asked", "steps", "threads"} or written["asked"] != asked:
            raise ConfigError(
                f"holds a demo that was asked for otherwise: {written}", source=path, expected=f"{asked}",
                fix="use the same flags to go on, or another --out",
            )  # fmt: skip
        steps, threads = written["steps"], written["threads"]
    else:
        steps, threads = (demo.SMOKE_STEPS, runtime.set_threads()) if config.smoke else fitting(config)
        files.write_json(path, {"asked": asked, "steps": steps, "threads": threads})
    # A run goes on with the threads that it began with: sums in another order are other bits.
    runtime.set_threads(threads)
    return recipe_for(config, steps)


def recipe_for(config: DemoConfig, steps: int) -> Pretraining:
    """The recipe in so many steps, with the languages, the seed and the size that were asked for."""
    made = demo.recipe(steps, languages=LANGUAGES if config.languages else (), seed=config.seed)
    return made.changed(demo.SMOKE) if config.smoke else made


def fitting(config: DemoConfig) -> tuple[int, int]:
    """Steps and threads, from a few trial steps on this machine as it is now.

    All cores are the default. Beside other work one thread can be much faster, for threads wait for each other; it is taken
    when it is clearly so, so that a free machine always gives the same bits.
    """
    started = time.perf_counter()
    _say("a short trial of this machine's speed")
    cores = runtime.set_threads()
    seconds = {threads: seconds_per_step(config, threads) for threads in sorted({cores, 1}, reverse=True)}
    threads = 1 if CLEARLY * seconds[1] < seconds[cores] else cores
    steps = demo.STEPS
    if config.minutes is not None:
        budget = config.minutes * 60 - EVALUATION_S - (time.perf_counter() - started)
        steps = max(MIN_STEPS, int(budget / seconds[threads]))
    measured = ", ".join(f"{1000 * step:.0f} ms with {count}" for count, step in seconds.items())
    minutes = (steps * seconds[threads] + EVALUATION_S) / 60
    if threads < cores:
        _say("the machine has other work to do: one thread is faster than all")
    _say(f"a step takes {measured} threads; {steps:,} steps and the evaluation are about {minutes:.1f} minutes")
    return steps, threads


def seconds_per_step(config: DemoConfig, threads: int) -> float:
    """The best interval of a short trial run, without the first one, which pays for caches and first allocations."""
    runtime.set_threads(threads)
    trial = recipe_for(config, TRIAL_STEPS).changed({"train.log_every": TRIAL_STEPS // 3})
    with tempfile.TemporaryDirectory() as folder:
        result = trial.run(folder)
        if result.status == "stopped":
            raise Stopped(result.signal)
        return min(float(record["step_s"]) for record in read_records(folder, kinds=("step",))[1:])


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of all steps, from their mean in each interval of the log; sittings that were stopped count too."""
    total, before = 0.0, 0
    for record in log:
        total += (record["step"] - before) * float(record["step_s"])
        before = record["step"]
    return total


def export_pictures(evaluator: EmojiEvaluation, folder: Path) -> tuple[str, str]:
    """Write some pictures in the new style as PNG files, half of them of held-out names.

    Gives the first file's name, and labels to try on it: what it shows and what the next three show, between commas.
    """
    emoji, random, names = evaluator.emoji, runtime.numpy_generator(evaluator.seed, "pictures"), {}
    drawn = np.concatenate([random.permutation(view.rows)[: NUM_PICTURES // 2] for view in evaluator.views[:2]])
    for row in np.sort(drawn):
        name = emoji.concepts[emoji.concept[row]].name
        file = "".join(letter if letter.isalnum() else "-" for letter in name) + ".png"
        with files.atomic_path(folder / file) as path:
            pictures(emoji, np.array([row]))[0].resize((128, 128)).save(path, "PNG")
        names[file] = name.replace(",", "")
    return next(iter(names)), ",".join(list(names.values())[:4])


def _facts(config: DemoConfig, pretraining: Pretraining, hashes: dict[str, str]) -> list[tuple[str, str]]:
    """Rows of the table at the end of the report."""
    versions = runtime.versions()
    return [
        ("steps", str(pretraining.train.steps)),
        ("processor", f"{runtime.cpu_name()}, {runtime.available_cores()} cores"),
        ("weights in training", pretraining.train.precision),
        *((f"{name.replace('_', ' ')}, SHA-256", value) for name, value in hashes.items()),
        ("seed", str(config.seed)),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in ("ostension", "python", "torch", "numpy"))),
    ]


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)
