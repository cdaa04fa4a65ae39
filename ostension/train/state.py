"""All that a run carries from one step to the next, and with it all that a checkpoint holds."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostension.data.rejects import Rejects
from ostension.errors import CheckpointError
from ostension.runlog import RunLog
from ostension.train.batches import Batch
from ostension.train.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore
from ostension.train.health import Health, Measured
from ostension.train.objective import Objective
from ostension.train.optim import MasterAdamW, OptimConfig
from ostension.train.parallel import Parallel, masters_for
from ostension.train.parts import SlicedRows
from ostension.train.precision import Average
from ostension.world import ALONE, World

REJECTS_NAME = "rejects.jsonl"


class TrainState:
    """Weights, moments, average, health and history of a run.

    There is no position in the data and no state of a random generator: both are functions of the step.

    Attributes:
        step: optimiser steps done.
        changes: the settings that were changed between sittings, each with the step, the key, the old and the new value.
        best_step, best_name, best_value: the best evaluation so far: its step, what was measured, and its value.
    """

    def __init__(
        self, objective: Objective, folder: Path, *, optim: OptimConfig, dtype: torch.dtype, average: float | None,
        non_finite: str, world: World = ALONE, parallel: Parallel = "ddp", unmastered: Sequence[nn.Module] = (), seed: int = 0,
    ):
        self.objective, self.optim, self.world = objective, optim, world
        self.masters = masters_for(objective.module, dtype, world, parallel, unmastered)
        self.optimizer = MasterAdamW(self.masters, optim, seed)
        self.average = None if average is None else Average(self.masters, average)
        self.health = Health(folder, non_finite, self.optimizer, world)
        self.rejects = Rejects(folder / REJECTS_NAME if world.first else None)
        self.step = 0
        self.changes: list[dict[str, Any]] = []
        self.best_step: int | None = None
        self.best_name: str | None = None
        self.best_value = math.nan

    def update(self, measured: Measured) -> None:
        """Move the weights by the collected gradients, at the measured learning rate."""
        self.optimizer.step(measured.lr / self.optim.lr, measured.grad_norm, measured.step)
        self.objective.after_update()
        if self.average is not None:
            self.average.update(self.step)

    def note_rejects(self, batch: Batch) -> None:
        """Count and write down the pairs that the batch of all processes had to replace.

        Raises:
            DataError: if they are too many of late.
        """
        try:
            self.rejects.add(self.step, len(batch) * self.world.size, batch.rejects)
        except OSError as problem:
            print(f"ostension: warning: {REJECTS_NAME} cannot be written ({problem.strerror})", file=sys.stderr)

    def run_weights(self) -> contextlib.AbstractContextManager[None]:
        """For as long as it is entered, the model has the weights that the run is for: the average, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.masters.lent(self.average.tensors)

    def final_weights(self) -> None:
        """Give the model the weights that the run is for, in full precision: the average, or else the last."""
        self.masters.restore_float32(None if self.average is None else self.average.tensors)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds as tensors, by file."""
        found = {"weights": self.masters.state(), "optimizer": self.optimizer.state()}
        if known := self.objective.state():
            found["objective"] = known
        return found if self.average is None else {**found, "average": self.average.tensors}

    def rows(self) -> SlicedRows:
        """Of the tensors that are slices: which rows of the whole ones this process holds, by file and name."""
        slices = self.masters.rows()
        moments = {f"{part}.{name}": rows for part in ("first", "second") for name, rows in slices.items()}
        return {"weights": slices, "optimizer": moments, "average": slices}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds as JSON."""
        best = None if self.best_step is None else {"step": self.best_step, "name": self.best_name, "value": self.best_value}
        return {"changes": self.changes, "health": self.health.state(), "rejects": self.rejects.state(), "best": best}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`.

        Raises:
            CheckpointError: if its tensors are not those of this model.
        """
        files = {name: checkpoint.path / f"{name}.safetensors" for name in ("weights", "optimizer", "average")}
        self.masters.load(checkpoint.tensors["weights"], files["weights"])
        self.optimizer.load(checkpoint.tensors["optimizer"], files["optimizer"])
        if self.average is not None:
            if "average" in checkpoint.tensors:
                self.average.load(checkpoint.tensors["average"], files["average"])
            else:  # a run that was allowed to begin averaging now
                self.average = Average(self.masters, self.average.decay)
        self.objective.load_state(checkpoint.tensors.get("objective", {}), checkpoint.path / "objective.safetensors")
        self.health.load(checkpoint.state["health"])
        self.rejects.load(checkpoint.state["rejects"])
        self.step, self.changes = checkpoint.step, list(checkpoint.state["changes"])
        if checkpoint.state["best"] is not None:
            best = checkpoint.state["best"]
            self.best_step, self.best_name, self.best_value = best["step"], best["name"], best["value"]


class Saver:
    """Saves a run's state when it is due; a save that fails is tried again, and the run goes on meanwhile.

    Attributes:
        saved_step: the newest step that is safe in this run folder.
    """

    def __init__(
        self, store: CheckpointStore, state: TrainState, config: CheckpointConfig, tree: Mapping[str, Any], log: RunLog,
        saved_step: int | None,
    ):
        self.store, self.state, self.config, self.tree, self.log = store, state, config, tree, log
        self.saved_step = saved_step
        self._retry_at: int | None = None

    def due(self) -> bool:
        """Whether the step that was just done is to be saved."""
        return self.state.step % self.config.every == 0 or self.state.step == self._retry_at

    def save(self) -> None:
        """Save, or say on stderr and in the log why that failed and put it off for a tenth of the interval."""
        step = self.state.step
        try:
            self.store.save(step, self.state.tensors(), {"config": self.tree, **self.state.facts()}, self.state.rows())
        except CheckpointError as problem:
            if self.state.world.first:
                print(f"ostension: WARNING: {problem}; the run goes on and will try again", file=sys.stderr, flush=True)
            self.log.write("warning", step, message=str(problem))
            self._retry_at = step + max(1, self.config.every // 10)
            return
        self.saved_step, self._retry_at = step, None
        kept_for_good = () if self.state.best_step is None else (self.state.best_step,)
        if self.state.world.first:
            gone = self.store.prune(self.config.keep, kept_for_good)
            self.log.write("checkpoint", step, path=self.store.path(step).name, deleted=gone)

    def save_last(self) -> None:
        """Save unless the present step is saved already.

        Raises:
            CheckpointError: if that fails: the work since the last checkpoint would be lost without a word otherwise.
        """
        if self.saved_step != self.state.step:
            self.save()
        if self.saved_step != self.state.step:
            safe = "nothing" if self.saved_step is None else f"step {self.saved_step}"
            raise CheckpointError(
                f"step {self.state.step} could not be saved; {safe} is", source=self.store.folder, fix="make room and resume"
            )
