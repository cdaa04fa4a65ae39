"""Pre-train a model from image-text pairs, or go on with a run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.evals.during_training import EvaluationConfig
    from ostension.model.config import ModelConfig
    from ostension.runlog import Tracker
    from ostension.train.pretraining import Pretraining

# Flags that say what a plan is for, and what `PlanConfig` calls them.
PLAN_FLAGS = {
    "world_size": "world_size", "pairs": "pairs", "flops_per_s": "flops_per_s", "device_name": "device",
    "caption_tokens": "caption_tokens",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Pre-train a model from image-text pairs, or go on with a run.

    ostension train --model small-64 --data 'pairs/{00000..00009}.tar' --epochs 10 --run runs/first

    The same command again resumes a run that was stopped or killed, with the bits that it would have had. The trained model
    is the folder RUN/model. Exit status 3: the run diverged, see RUN/diverged_step_N.

    Args:
        folder: Folder of the run: settings, log, checkpoints, the trained model.
        model: Architecture by name (`ostension model list`).
        data: Pairs: tar shards ('a/{000..099}.tar'), Parquet, a folder, .csv, .tsv, URLs, 'emoji'; several as one source.
        weights: How much of each batch comes from each --data; each then has epochs of its own.
        recipe: A complete run by name instead of --model; --data where it brings none.
        smoke: The recipe's small form, which only shows that it runs.
        list_recipes: Print the recipes and stop.
        start: A model's folder or file whose weights the run begins with, in place of random ones; names the --model too.
        image_size: Pixels a side, where they are not the architecture's; positions of --from are interpolated.
        fixres: After training: one epoch at this many pixels from the weights of --from, at a learning rate of 2e-5.
        steps: Optimiser steps.
        epochs: Passes over the data, instead of --steps.
        batch_size: Pairs in a batch.
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        precision: Of the weights; masters are float32 in any case.
        seed: Of the weights, the order, the crops and the captions.
        workers: Processes that decode ahead.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between records.
        eval_every: Steps between evaluations.
        eval_task: Labelled pictures to be named: 'TASK=DATA', 'TASK@SPLIT=DATA', a folder of classes, or 'emoji:SPLIT'.
        eval_pairs: Held-out pairs: retrieval both ways, and the loss over all of them.
        set: Any other setting as KEY=VALUE, such as train.optim.beta2=0.999 (see --dry-run for all).
        resume: 'auto' (the newest checkpoint of RUN, if any), 'never', or the path of a checkpoint or run folder.
        allow_change: Settings that may differ from the checkpoint's.
        device: 'auto', 'cpu', 'cuda', 'cuda:N'.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores, shared by the processes here.
        track: Also send the numbers to these: tensorboard, wandb, trackio.
        dry_run: Print all settings as JSON and stop.
        plan: Print parameters, operations, memory of a process and time, and stop; nothing large is allocated.
        world_size: With --plan: processes that share the batch.
        pairs: With --plan: pairs in the data, where the run is so many epochs and the data is not at hand.
        flops_per_s: With --plan: operations a second that one process sustains.
        device_name: With --plan: cpu, v100, a100, h100 or h200.
        caption_tokens: With --plan: tokens of a caption with its start and end; by default the context length.
        json: With --plan: print one JSON object.
    """

    folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    model: str | None = None
    data: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    recipe: str | None = None
    smoke: bool = False
    list_recipes: bool = False
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    image_size: int | None = None
    fixres: int | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    warmup_steps: int | None = None
    precision: Literal["auto", "bf16", "fp32", "fp64"] | None = None
    seed: int | None = None
    workers: int | None = None
    checkpoint_every: int | None = None
    log_every: int | None = None
    eval_every: int | None = None
    eval_task: tuple[str, ...] = ()
    eval_pairs: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    resume: str = "auto"
    allow_change: tuple[str, ...] = ()
    device: str | None = None
    threads: int | None = None
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    dry_run: bool = False
    plan: bool = False
    world_size: int | None = None
    pairs: int | None = None
    flops_per_s: float | None = None
    device_name: str | None = None
    caption_tokens: int | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.recipes import RECIPES

        if self.list_recipes:
            for name in RECIPES.names():
                print(f"{name}\t{RECIPES.summary(name)}")
            return 0
        pretraining = self._resolved()
        if self._plans():
            return self._print_plan(pretraining)
        if self.dry_run:
            print(json.dumps(pretraining.tree(), indent=2))
            return 0
        if self.folder is None:
            raise UsageError("--run is missing", expected="the folder of the run")
        if getattr(pretraining.batches, "data", None) == "":
            raise UsageError(f"the recipe {self.recipe} has no data of its own", expected="image-text pairs as --data")
        self._set_threads()
        return self._train(pretraining, self.folder)

    def _set_threads(self) -> None:
        """Threads of this process: as asked for, else an equal share of the cores that the processes here have."""
        from ostension import runtime, world

        shared = world.processes_here()
        if self.threads is None and shared > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
            # torchrun itself says 1 where nothing was said, whatever the machine has.
            runtime.set_threads(max(1, runtime.available_cores() // shared))
        else:
            runtime.set_threads(self.threads)

    def _resolved(self) -> Pretraining:
        """The recipe, or the paper's settings for the named model, with the flags' values in their places."""
        from ostension.train.pretraining import parse_settings

        base = self._from_recipe() if self.recipe is not None else self._from_model()
        if self.eval_task or self.eval_pairs:
            base = dataclasses.replace(base, evaluation=self._evaluation())
        if self.start is not None:
            base = dataclasses.replace(base, start=Path(self.start))
        if self.fixres is not None:
            base = self._fixres(base)
        return base.changed(self._flags()).changed(parse_settings(self.set), "--set")

    def _from_recipe(self) -> Pretraining:
        from ostension.recipes import RECIPES

        if self.model is not None:
            raise UsageError("a recipe names its model", fix="leave --model out, or use --set")
        found = RECIPES.load(str(self.recipe))
        made = found.smoke() if self.smoke else found.recipe()
        if not self.data:
            return made
        if found.pairs is None:
            raise UsageError(f"the recipe {self.recipe} brings its own data", fix="leave --data out")
        return made.changed({"batches.data": self._sources()})

    def _from_model(self) -> Pretraining:
        from ostension.train.optim import OptimConfig
        from ostension.train.pairs import PairBatchesConfig
        from ostension.train.pretraining import Pretraining
        from ostension.train.train_config import TrainConfig

        if (self.model is None and self.start is None) or not self.data:
            raise UsageError("--model and --data are missing", expected="both, or a --recipe")
        if (self.steps is None) == (self.epochs is None) and not (self.fixres is not None and self.steps is None):
            raise UsageError("the length of the run is not given", expected="one of --steps and --epochs")
        if self.smoke:
            raise UsageError("--smoke is a form of a recipe", fix="add --recipe, or leave it out")
        model = self._architecture()
        # Appendix F of the paper: residual networks take Adam's own settings.
        optim = OptimConfig(beta2=0.999, eps=1e-8) if model.vision.kind == "resnet" else OptimConfig()
        length = {"epochs": 1.0} if self.steps is None and self.epochs is None else {"steps": self.steps, "epochs": self.epochs}
        batches = PairBatchesConfig(data=self._sources())
        return Pretraining(model=model, batches=batches, train=TrainConfig(**length, optim=optim))

    def _sources(self) -> str | tuple[str, ...]:
        return self.data[0] if len(self.data) == 1 else self.data

    def _architecture(self) -> ModelConfig:
        """What --model names, or what the weights of --from are for."""
        from ostension.formats.reader import open_weights
        from ostension.model.presets import preset

        return preset(self.model) if self.model is not None else open_weights(str(self.start), verify=False).config

    def _evaluation(self) -> EvaluationConfig:
        from ostension.evals.during_training import EvaluationConfig, parse_task

        if not self.eval_every:
            raise UsageError("there is something to evaluate, but not when", expected="--eval-every STEPS")
        return EvaluationConfig(zero_shot=tuple(map(parse_task, self.eval_task)), pairs=self.eval_pairs)

    def _fixres(self, base: Pretraining) -> Pretraining:
        from ostension.recipes._fixres import fixres

        assert self.fixres is not None
        if self.image_size is not None:
            raise UsageError("--fixres and --image-size both say how many pixels", fix="leave one out")
        if base.start is None and not self.smoke:
            raise UsageError("--fixres goes on from a trained model", expected="its folder as --from")
        return fixres(base, self.fixres, base.start)

    def _plans(self) -> bool:
        """Whether a plan is asked for."""
        given = [name for name in (*PLAN_FLAGS, "json") if getattr(self, name) not in (None, False)]
        if given and not self.plan:
            raise UsageError(f"--{given[0].replace('_', '-')} says something about a plan", fix="add --plan, or leave it out")
        return self.plan

    def _print_plan(self, pretraining: Pretraining) -> int:
        from ostension.cli._plan import as_lines
        from ostension.recipes import RECIPES
        from ostension.train.plan import PlanConfig, make_plan

        config = PlanConfig(**{key: getattr(self, name) for name, key in PLAN_FLAGS.items() if getattr(self, name) is not None})
        if config.pairs is None and self.recipe is not None and getattr(pretraining.batches, "data", None) == "":
            config = dataclasses.replace(config, pairs=RECIPES.load(self.recipe).pairs)
        plan = make_plan(pretraining, config)
        print(json.dumps(plan.tree(), indent=2) if self.json else as_lines(plan))
        return 0

    def _flags(self) -> dict[str, Any]:
        """The flags that were given, by the settings that they stand for."""
        places = {
            "batch_size": ("batches.batch_size",),
            "weights": ("batches.weights",),
            "lr": ("train.optim.lr",),
            "warmup_steps": ("train.schedule.warmup_steps",),
            "precision": ("train.precision",),
            "seed": ("train.seed", "batches.seed"),
            "workers": ("train.workers",),
            "checkpoint_every": ("train.checkpoint.every",),
            "log_every": ("train.log_every",),
            "eval_every": ("train.evaluate_every",),
            "device": ("train.device",),
            "image_size": ("model.vision.image_size", "model.preprocess.image_size"),
        }
        found = {
            place: getattr(self, name) for name, keys in places.items() if getattr(self, name) is not None for place in keys
        }
        if self.steps is not None or self.epochs is not None:
            found |= {"train.steps": self.steps, "train.epochs": self.epochs}
        return found

    def _train(self, pretraining: Pretraining, folder: Path) -> int:
        from ostension import world
        from ostension.train.progress import Progress
        from ostension.train.trackers import named_trackers

        speaks = world.is_first()
        trackers: list[Tracker] = [Progress(), *named_trackers(self.track)] if speaks else []
        if speaks:
            print(f"run folder: {folder}", file=sys.stderr)
        resume = self.resume if self.resume in ("auto", "never") else Path(self.resume)
        result = pretraining.run(folder, resume=resume, allow_change=self.allow_change, trackers=trackers)
        shown = {name: result.last[name] for name in ("loss", "image_accuracy", "text_accuracy") if name in result.last}
        made = None if result.model_folder is None else str(result.model_folder)
        if speaks and result.status == "stopped":
            print(f"stopped after step {result.step}; the same command goes on from there", file=sys.stderr)
        if speaks:
            print(json.dumps({"status": result.status, "step": result.step, "run": str(result.folder), "model": made, **shown}))
        # A scheduler that asked for a stop got it; a person who pressed Ctrl-C is told by the usual status.
        return 130 if result.signal == signal.SIGINT else 0


COMMAND = Train
