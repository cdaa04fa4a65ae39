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
    from ostension.runlog import Tracker
    from ostension.train.pretraining import Pretraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Pre-train a model from image-text pairs, or go on with a run.

    ostension train --model small-64 --data 'pairs/{00000..00009}.tar' --epochs 10 --run runs/first

    The same command again resumes a run that was stopped or killed, with the bits that it would have had. The trained model
    is the folder RUN/model. Exit status 3: the run diverged, see RUN/diverged_step_N.

    Args:
        folder: Folder of the run: settings, log, checkpoints, the trained model.
        model: Architecture by name (`ostension model list`).
        data: Pairs: tar shards ('a/{000..099}.tar'), a folder, .csv, .tsv, several with '::', or 'emoji'.
        recipe: A complete run by name instead of --model and --data.
        smoke: The recipe's small form, which only shows that it runs.
        list_recipes: Print the recipes and stop.
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
        set: Any other setting as KEY=VALUE, such as train.optim.beta2=0.999 (see --dry-run for all).
        resume: 'auto' (the newest checkpoint of RUN, if any), 'never', or the path of a checkpoint or run folder.
        allow_change: Settings that may differ from the checkpoint's.
        device: 'auto', 'cpu', 'cuda', 'cuda:N'.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
        tensorboard: Also write TensorBoard files.
        dry_run: Print all settings as JSON and stop.
    """

    folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    model: str | None = None
    data: str | None = None
    recipe: str | None = None
    smoke: bool = False
    list_recipes: bool = False
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
    set: tuple[str, ...] = ()
    resume: str = "auto"
    allow_change: tuple[str, ...] = ()
    device: str | None = None
    threads: int | None = None
    tensorboard: bool = False
    dry_run: bool = False

    def run(self) -> int:
        from ostension import runtime
        from ostension.recipes import RECIPES

        if self.list_recipes:
            for name in RECIPES.names():
                print(f"{name}\t{RECIPES.summary(name)}")
            return 0
        pretraining = self._resolved()
        if self.dry_run:
            print(json.dumps(pretraining.tree(), indent=2))
            return 0
        if self.folder is None:
            raise UsageError("--run is missing", expected="the folder of the run")
        if self.threads is not None or "OMP_NUM_THREADS" not in os.environ:
            runtime.set_threads(self.threads)
        return self._train(pretraining, self.folder)

    def _resolved(self) -> Pretraining:
        """The recipe, or the paper's settings for the named model, with the flags' values in their places."""
        from ostension.train.pretraining import parse_settings

        base = self._from_recipe() if self.recipe is not None else self._from_model()
        return base.changed(self._flags()).changed(parse_settings(self.set), "--set")

    def _from_recipe(self) -> Pretraining:
        from ostension.recipes import RECIPES

        if self.model is not None or self.data is not None:
            raise UsageError("a recipe names its model and its data", fix="leave --model and --data out, or use --set")
        module = RECIPES.load(str(self.recipe))
        return module.smoke() if self.smoke else module.recipe()

    def _from_model(self) -> Pretraining:
        from ostension.model.presets import preset
        from ostension.train.loop import TrainConfig
        from ostension.train.optim import OptimConfig
        from ostension.train.pairs import PairBatchesConfig
        from ostension.train.pretraining import Pretraining

        if self.model is None or self.data is None:
            raise UsageError("--model and --data are missing", expected="both, or a --recipe")
        if (self.steps is None) == (self.epochs is None):
            raise UsageError("the length of the run is not given", expected="one of --steps and --epochs")
        if self.smoke:
            raise UsageError("--smoke is a form of a recipe", fix="add --recipe, or leave it out")
        model = preset(self.model)
        # Appendix F of the paper: residual networks take Adam's own settings.
        optim = OptimConfig(beta2=0.999, eps=1e-8) if model.vision.kind == "resnet" else OptimConfig()
        train = TrainConfig(steps=self.steps, epochs=self.epochs, optim=optim)
        return Pretraining(model=model, batches=PairBatchesConfig(data=self.data), train=train)

    def _flags(self) -> dict[str, Any]:
        """The flags that were given, by the settings that they stand for."""
        places = {
            "batch_size": ("batches.batch_size",),
            "lr": ("train.optim.lr",),
            "warmup_steps": ("train.schedule.warmup_steps",),
            "precision": ("train.precision",),
            "seed": ("train.seed", "batches.seed"),
            "workers": ("train.workers",),
            "checkpoint_every": ("train.checkpoint.every",),
            "log_every": ("train.log_every",),
            "device": ("train.device",),
        }
        found = {
            place: getattr(self, name) for name, keys in places.items() if getattr(self, name) is not None for place in keys
        }
        if self.steps is not None or self.epochs is not None:
            found |= {"train.steps": self.steps, "train.epochs": self.epochs}
        return found

    def _train(self, pretraining: Pretraining, folder: Path) -> int:
        from ostension.runlog import TensorBoard
        from ostension.train.progress import Progress

        print(f"run folder: {folder}", file=sys.stderr)
        trackers: list[Tracker] = [Progress(), *([TensorBoard()] if self.tensorboard else [])]
        resume = self.resume if self.resume in ("auto", "never") else Path(self.resume)
        result = pretraining.run(folder, resume=resume, allow_change=self.allow_change, trackers=trackers)
        print(
            json.dumps(
                {
                    "status": result.status,
                    "step": result.step,
                    "run": str(result.folder),
                    "model": None if result.model_folder is None else str(result.model_folder),
                    **{name: result.last[name] for name in ("loss", "image_accuracy", "text_accuracy") if name in result.last},
                }
            )
        )
        # A scheduler that asked for a stop got it; a person who pressed Ctrl-C is told by the usual status.
        return 130 if result.signal == signal.SIGINT else 0


COMMAND = Train
