"""A plan as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ostension.cli._tables import text_table

if TYPE_CHECKING:
    from ostension.train.plan import Plan

STATE = ("weights", "masters", "gradients", "moments", "average", "gathered", "buffers")
AGAIN = {"none": "", "image": ", image tower checkpointed", "text": ", text tower checkpointed", "both": ", checkpointed"}


def as_lines(plan: Plan) -> str:
    """The whole plan; the run's own rows are marked."""
    parts = ["\n".join(_opening(plan)), _carried(plan), _embedding(plan), "\n".join(_process(plan))]
    notes = [f"note        {note}" for note in plan.notes]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _opening(plan: Plan) -> Iterator[str]:
    count, length = plan.parameters, plan.length
    yield f"model       {plan.model}: {count['total']:,} parameters, image {count['image']:,}, text {count['text']:,}"
    yield f"run         {length.steps:,} steps of {length.batch_size:,} pairs: {length.pairs_seen:,} pairs seen"
    each = "one process" if plan.world_size == 1 else f"{plan.world_size:,} processes, {length.local_batch:,} pairs in each"
    yield f"processes   {each}, {plan.precision}, on {'a processor' if plan.device == 'cpu' else plan.device}"
    found = plan.operations
    if found is None:
        return
    yield (
        f"forward     {_scaled(2 * found.image, 4)} an image, {_scaled(2 * found.text, 4)} a text "
        f"({1e-9 * (found.image + found.text):.4g} GMAC a pair; 1 MAC is 2 FLOP, products only)"
    )
    for name, flop, how in (
        ("training", found.model_training_flop, "three forward passes"),
        ("as run", found.run_training_flop, f"captions of {found.caption_tokens} tokens"),
    ):
        yield (
            f"{name:<12}{_scaled(flop, 4)} a pair ({how}), {_scaled(flop * length.batch_size)} a step, "
            f"{_scaled(flop * length.pairs_seen)} in all"
        )
    assert plan.seconds is not None and plan.processor_hours is not None
    yield (
        f"time        {duration(plan.seconds)}, {plan.processor_hours:,.3g} processor hours, at {plan.flops_per_s:.3g} FLOP/s "
        f"in each process ({plan.rate_from})"
    )


def _carried(plan: Plan) -> str:
    columns = [name for name in STATE if any(getattr(row.state, name) for row in plan.states)]
    rows = [
        [f"{_mark(row.chosen)}{row.precision}, {row.parallel}"]
        + [size(getattr(row.state, name)) for name in columns]
        + [size(row.state.total)]
        for row in plan.states
    ]
    return text_table(["a process carries", *columns, "total"], rows)


def _embedding(plan: Plan) -> str:
    rows = [
        [
            f"{_mark(row.chosen)}{row.precision}{AGAIN[row.checkpointing]}", f"{row.pairs:,}", size(row.kept), size(row.peak),
            size(row.peak / row.pairs),
        ]
        for row in plan.activations
    ]  # fmt: skip
    return text_table(["embedding takes besides", "pairs", "kept", "at most", "each pair"], rows)


def _process(plan: Plan) -> Iterator[str]:
    parts = ", ".join(f"{name} {size(value)}" for name, value in plan.process.items())
    yield f"at most     {size(sum(plan.process.values()))} in a process: {parts}"
    if plan.device_memory is not None:
        most = plan.largest_micro_batch
        fits = f"train.micro_batch of {most:,} or less fits" if most else "no micro-batch fits"
        yield f"{plan.device:<12}{size(plan.device_memory)} of memory: {fits} in nine tenths of it"
    yield f"checkpoint  {size(plan.checkpoint)}"


def _mark(chosen: bool) -> str:
    return "* " if chosen else "  "


def size(count: float) -> str:
    """Bytes with three figures: GB is 1e9."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:#.3g} {unit}".replace(". ", " ")
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """A time with three figures in the unit that people would take."""
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _scaled(flop: float, digits: int = 3) -> str:
    for unit, length in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flop >= length:
            return f"{flop / length:.{digits}g} {unit}"
    return f"{flop:.{digits}g} FLOP"
