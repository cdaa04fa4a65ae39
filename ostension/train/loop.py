"""The training loop, in the open: from an objective, batches by number and a configuration to a trained model folder.

One step: draw the batch, embed both sides, the loss in float32, gradients (`train.step`), check that all is finite, clip,
AdamW on the float32 masters, round the weights from them, clamp the temperature. The random state of a step is set from
(seed, step) and the batch is a function of the step, so that a checkpoint needs no position and no generator's state, and
a run that was killed and resumed ends with the same bits as one that was not.

Several processes, as `torchrun` starts them, run this loop together, each on its part of every batch (`world`, `parallel`).
They take the same decisions from the same numbers: what one cannot know of the others (a signal, a batch that could not be
read, a loss that is not finite) they tell each other before anyone acts on it. The first of them writes the run folder.

The run folder holds `config.json` and `run.json` (written before step 0), `log.jsonl`, `checkpoints/` and at the end
`model/`; after a divergence also `diverged_step_N/report.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ostension import runtime
from ostension import world as worlds
from ostension.config import changed_keys, to_tree
from ostension.errors import CheckpointError, ConfigError, DataError, DivergenceError, OstensionError
from ostension.files import folder_lock, read_json
from ostension.model.clip import CLIP
from ostension.runlog import NoLog, RunLog, Tracker
from ostension.train.allocator import keep_large_blocks
from ostension.train.batches import BatchSource
from ostension.train.checkpoint import (
    STATE,
    Checkpoint,
    CheckpointStore,
    read_checkpoint,
    resolve_path,
    verify,
)
from ostension.train.freeze import frozen_names
from ostension.train.health import Measured
from ostension.train.meter import Meter
from ostension.train.objective import Objective, StepLoss
from ostension.train.patch_dropout import PatchDropoutConfig
from ostension.train.prefetch import batches_ahead, draw
from ostension.train.run_folder import check_unchanged, write_run
from ostension.train.schedule import rate_factor
from ostension.train.signals import StopSignals
from ostension.train.state import Saver, TrainState
from ostension.train.step import backward
from ostension.train.train_config import FREE, Towers, TrainConfig
from ostension.world import World

Evaluate = Callable[[CLIP, int], Mapping[str, float]]
MODEL_FOLDER = "model"
SAME_SIGNAL_S = 1.0
LOWER_IS_BETTER = ("loss", "median_rank")  # by the ends of measurements' names
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: "finished", or "stopped" by a signal (`signal` is its number) with everything saved.
        step: steps done.
        model_folder: the trained model, once finished.
        last: the last record of measurements; empty if this sitting made none.
    """

    status: Literal["finished", "stopped"]
    step: int
    folder: Path
    signal: int | None = None
    model_folder: Path | None = None
    last: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def train(
    objective: Objective,
    batches: BatchSource,
    config: TrainConfig,
    folder: Path | str,
    *,
    resume: str | Path = "auto",
    allow_change: Sequence[str] = (),
    trackers: Sequence[Tracker] = (),
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train the objective's model in place and leave it, in full precision, in `folder/model`.

    Args:
        objective: what to minimise, with the model in it: `Contrastive(model)` is the paper's.
        folder: of the run; held by this process alone until it returns. All processes of a run must see it.
        resume: "auto" goes on from the newest checkpoint in `folder` that passes verification, or starts; "never" demands a
            folder without checkpoints; a path names the one checkpoint (or run folder) to start from, and no other is taken.
        allow_change: dotted settings that may differ from those of the checkpoint, such as `train.optim.lr`; recorded.
        evaluate: called with the model in eval mode and the steps done, every `config.evaluate_every` steps and at the end.
            With `config.average` it is given the averaged weights, which are what the run will give. Every process calls it,
            as if it were alone; what the first of them measured counts.

    Raises:
        ConfigError: for settings that cannot be meant, or that differ from the checkpoint's and were not allowed to.
        CheckpointError: for a checkpoint that cannot be trusted, or a last one that cannot be written.
        DataError: for data that cannot be read, or a folder that is in use or cannot be written.
        DivergenceError: for a loss, gradient or weights past saving; nothing was written but a report.
        ProcessError: when another process of the run has ended, stopped, or not answered for `config.timeout_s`.
    """
    folder = Path(folder).absolute()
    named = None if resume in ("auto", "never") else resolve_path(resume)  # before anything is created
    config = config.resolved(batches.num_samples / batches.batch_size)
    steps, model = _steps_of(config), objective.model
    _check(objective, batches, config, evaluate)
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(worlds.joined(torch.device(config.device).type, config.timeout_s))
        stack.enter_context(world.watched())
        device = torch.device(config.device if world.size == 1 else world.device)
        stop = stack.enter_context(StopSignals(SAME_SIGNAL_S if world.size > 1 else 0.0))
        world.together(lambda: _enter_folder(stack, folder) if world.first else None)
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if device.type == "cpu":
            keep_large_blocks()
        objective.module.to(device).train()
        state = TrainState(
            objective, folder, optim=config.optim, dtype=PRECISIONS[config.precision], average=config.average,
            non_finite=config.non_finite, world=world, parallel=config.parallel,
            unmastered=_towers(model, config.stochastic_rounding), seed=config.seed,
        )
        stack.callback(state.masters.release)
        stack.enter_context(_checkpointing(model, config.checkpointing))
        stack.callback(PatchDropoutConfig().set, model, 0, 1)
        store = CheckpointStore(folder, world)
        tree = identity(objective, batches, config)
        _check_agreement(world, tree)
        start = _starting_point(store, named, resume, state)
        changed = world.together(lambda: _continue(state, start, tree, allow_change))

        facts = world.by_first(lambda: write_run(folder, tree, state.changes))
        size = {
            "steps": steps, "step": state.step, "num_samples": batches.num_samples, "batch_size": batches.batch_size,
            "processes": world.size,
        }  # fmt: skip
        log = stack.enter_context(RunLog(folder, trackers, {**facts, **size}) if world.first else NoLog())
        log.write("start" if start is None else "resume", state.step, config_hash=facts["config_hash"])
        for change in changed:
            log.write("change", **change)

        safe = state.step if start is not None and start.path.parent == store.folder else None
        saver = Saver(store, state, config.checkpoint, tree, log, safe)
        try:
            with world.watched():
                last = _run_steps(objective, batches, config, state, stop, log, saver, evaluate)
                saver.save_last()
        except OstensionError as problem:
            status = "diverged" if isinstance(problem, DivergenceError) else "failed"
            log.write("end", state.step, status=status, message=str(problem))
            raise
        if state.step < steps:
            log.write("end", state.step, status="stopped", signal=stop.received)
            return TrainResult(status="stopped", step=state.step, folder=folder, signal=stop.received, last=last)
        state.final_weights()
        objective.module.eval()
        made_by = {name: facts[name] for name in ("config_hash", "versions", "git", "changes")}
        model.provenance = {**model.provenance, "run": {"settings": tree, "step": state.step, **made_by}}
        world.together(lambda: objective.save(folder / MODEL_FOLDER) if world.first else None)
        log.write("end", state.step, status="finished", model=MODEL_FOLDER)
        return TrainResult(status="finished", step=state.step, folder=folder, model_folder=folder / MODEL_FOLDER, last=last)


def _run_steps(
    objective: Objective, batches: BatchSource, config: TrainConfig, state: TrainState, stop: StopSignals, log: RunLog,
    saver: Saver, evaluate: Evaluate | None,
) -> dict[str, Any]:
    """The loop: steps until the last one or a signal. Gives the last record of measurements."""
    world = state.world
    steps, device = _steps_of(config), torch.device(config.device if world.size == 1 else world.device)
    # Of several processes each draws its own random masks; the batches, and all that they decide together, are the same.
    own = () if world.size == 1 else (world.rank,)
    meter, last = Meter(batches.batch_size, batches.num_samples, steps), {}
    measured = batch = None
    with batches_ahead(batches, state.step, steps, config.workers, world) as stream:
        while state.step < steps and (drawn := draw(stream, stop, world)) is not None:
            batch, waited = drawn[0].to(device), drawn[1]
            state.note_rejects(batch)
            objective.before_step(state.step, batches, config.workers)

            torch.manual_seed(runtime.seed_for(config.seed, "step", state.step, *own))
            buffers = [(buffer, buffer.clone()) for buffer in objective.module.buffers()]
            config.patch_dropout.set(objective.model, state.step, steps)
            lr = config.optim.lr * rate_factor(config.schedule, state.step, steps)
            measured = measure(state, backward(objective, batch, config.micro_batch, hold=state.masters.hold), lr)
            if measured.finite:
                state.update(measured)
                meter.add(waited, {**measured.record(), "texts_cut": batch.texts_cut})
            else:
                state.health.skip_or_stop(measured, batch)
                state.optimizer.drop_gradients()
                for buffer, before in buffers:  # batch norm moved its statistics before the loss could be judged
                    buffer.copy_(before)
                log.write("skip", state.step, loss=measured.loss, grad_norm=measured.grad_norm, keys=list(batch.keys))
            state.step += 1

            ending = state.step == steps
            reporting = state.step % config.log_every == 0 or ending
            evaluating = evaluate is not None and (config.evaluates_after(state.step) or ending)
            saving = saver.due() or ending
            if reporting or evaluating or saving:
                state.health.check_weights(measured, batch)
            if reporting and not meter.empty:  # every step since the last report may have been skipped
                counts = {"skipped": len(state.health.skipped), "rejects": dict(state.rejects.counts)}
                last = {**meter.report(state.step), **counts}
                log.write("step", state.step, **last)
            if evaluating and evaluate is not None:
                saving |= _evaluate(objective, config, state, log, evaluate)
            if saving:
                saver.save()
    if measured is not None and batch is not None:  # a stop may come between two checks, and what it saves must be fit
        state.health.check_weights(measured, batch)
    return last


def measure(state: TrainState, found: StepLoss, lr: float) -> Measured:
    """The numbers of a step, fetched from the device at once, before the optimiser moves."""
    values = (found.loss, state.optimizer.gradient_norm(), *found.measured.values())
    # Of several processes the mean: equal numbers stay what they are, and one that is not finite is one for all.
    numbers = state.world.mean(torch.stack([value.detach().double() for value in values]).cpu())
    loss, norm, *others = numbers.tolist()
    return Measured(step=state.step, loss=loss, grad_norm=norm, lr=lr, values=dict(zip(found.measured, others, strict=True)))


def identity(objective: Objective, batches: BatchSource, config: TrainConfig) -> dict[str, Any]:
    """The tree of all settings that decide the result of a run; two runs with equal trees end with equal weights."""
    settings = {key: value for key, value in to_tree(config).items() if key not in FREE}
    start = objective.model.provenance.get("start", {}).get("fingerprint")
    towers = {side: tower["sha256"] for side, tower in objective.model.provenance.get("towers", {}).items()}
    frozen = frozen_names(objective.module)
    return {
        **({} if start is None else {"start": start}),
        **({"towers": towers} if towers else {}),
        **({"frozen": frozen} if frozen else {}),
        "model": to_tree(objective.model.config),
        "data": to_tree(dict(batches.identity())),
        "objective": to_tree(dict(objective.identity())),
        "train": settings,
    }


def _steps_of(config: TrainConfig) -> int:
    assert config.steps is not None, "resolve the configuration first"
    return config.steps


def _check(objective: Objective, batches: BatchSource, config: TrainConfig, evaluate: Evaluate | None) -> None:
    if (evaluate is None) == config.evaluates:
        what = "no evaluation is given" if evaluate is None else "an evaluation is given"
        raise ConfigError(f"train.evaluate_every is {config.evaluate_every}, but {what}", expected="both or neither")
    if batches.num_samples < batches.batch_size:
        raise DataError(f"the data has {batches.num_samples} pairs", expected=f"at least one batch of {batches.batch_size}")
    objective.check()
    config.patch_dropout.check(objective.model, _steps_of(config))


def _enter_folder(stack: contextlib.ExitStack, folder: Path) -> None:
    try:
        stack.enter_context(folder_lock(folder))
    except OSError as problem:
        raise DataError(f"cannot be used: {problem.strerror}", source=folder, expected="a folder that can be written") from None


def _towers(model: CLIP, which: Towers) -> list[nn.Module]:
    """The towers that a setting names."""
    parts = (("image", "visual"), ("text", "text"))  # a detector of duplicates has no text tower
    return [getattr(model, part) for name, part in parts if which in (name, "both")]


@contextlib.contextmanager
def _checkpointing(model: CLIP, which: Towers) -> Iterator[None]:
    """While entered, the blocks of the named towers are computed again on the way back."""
    image, text = (True if which in (name, "both") else None for name in ("image", "text"))
    model.set_checkpointing(image=image, text=text)
    try:
        yield
    finally:
        model.set_checkpointing(image=image and False, text=text and False)


def _starting_point(store: CheckpointStore, named: Path | None, resume: str | Path, state: TrainState) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start at step 0. The first process looks, all read."""

    def find() -> str | None:
        store.remove_leftovers()
        existing = store.paths()
        if named is not None:
            verify(named)
            if existing and named.absolute() != store.path(max(existing)):
                step = read_json(named / STATE, CheckpointError)["step"]
                raise ConfigError(
                    f"the run folder holds step {max(existing)}, which a start from step {step} would come to replace",
                    source=f"--resume {named}",
                    fix="give the branch a run folder of its own",
                )
            return str(named)
        if resume == "never" and existing:
            raise ConfigError(f"holds a run, at step {max(existing)}", source=store.folder.parent, fix="use --resume auto")
        newest = store.newest_path()
        return None if newest is None else str(newest)

    path = state.world.by_first(find)
    return None if path is None else state.world.together(lambda: read_checkpoint(Path(path), state.rows()))


def _check_agreement(world: World, tree: Mapping[str, Any]) -> None:
    """Stop processes that were started with different settings, or see different data."""
    trees = world.all_facts(tree)
    for place, other in zip(world.places, trees, strict=True):
        differing = sorted(changed_keys(trees[0], other))
        if differing:
            what = f"{place} has other settings than {world.places[0]}: {', '.join(differing)}"
            raise ConfigError(what, expected="the same command and the same data for all processes")


def _continue(state: TrainState, start: Checkpoint | None, tree: Mapping[str, Any], allow_change: Sequence[str]) -> list[dict]:
    """Bring the state to the starting point, if there is one; the changes of settings that this sitting begins with."""
    if start is None:
        return []
    changes = check_unchanged(start.state["config"], tree, allow_change, start.path)
    state.load(start)
    changed = [{"step": state.step, "key": key, "old": old, "new": new} for key, (old, new) in changes.items()]
    state.changes += changed
    return changed


def _evaluate(objective: Objective, config: TrainConfig, state: TrainState, log: RunLog, evaluate: Evaluate) -> bool:
    """Evaluate and log; whether this is the best so far, and so to be saved."""
    objective.module.eval()
    try:
        with torch.no_grad(), state.run_weights(), worlds.alone():
            values = state.world.together(lambda: dict(evaluate(objective.model, state.step)))
    finally:
        objective.module.train()
    values = state.world.all_facts(values)[0]
    log.write("evaluation", state.step, **values)
    if config.best is None:
        return False
    if config.best not in values:
        measured = ", ".join(values) or "nothing"
        raise ConfigError(f"train.best is {config.best!r}, but the evaluation measures {measured}")
    name, value = config.best, values[config.best]
    first = state.best_step is None or state.best_name != name  # a later sitting may ask for another measurement
    better = value < state.best_value if name.endswith(LOWER_IS_BETTER) else value > state.best_value
    if math.isnan(value) or not (first or better):
        return False
    state.best_step, state.best_name, state.best_value = state.step, name, value
    return True
