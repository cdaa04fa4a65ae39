"""A run on paper: parameters, operations, memory in each process, time at a stated rate, without allocating any of it.

Operations follow `model.flops`: 1 MAC is 2 FLOP, products only. "Model" FLOP are the published convention, three forward
passes over every position; "run" FLOP are what this library computes for it, captions of a stated length, what
checkpointing and cached embeddings compute again, and the similarities. The time is of the run's FLOP at a stated rate in
each process, and nothing else: data, communication and the optimiser are taken to hide behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from ostension import runtime
from ostension.errors import ConfigError, UsageError
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.flops import image_products, text_products, total, training
from ostension.train.loop import PRECISIONS
from ostension.train.memory import Carried, StateBytes, activations, loss_bytes, meta_model
from ostension.train.objective import ContrastiveConfig
from ostension.train.pretraining import Pretraining
from ostension.train.train_config import Towers

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator by its data sheet: dense products in 16 and 32 bits (FLOP/s), memory in bytes."""

    half: float
    single: float
    memory: float


# Data sheets, the boards with the most memory of each kind; without sparsity, without TF32.
DEVICES = {
    "v100": Device(125e12, 15.7e12, 32 * GB),
    "a100": Device(312e12, 19.5e12, 80 * GB),
    "h100": Device(989e12, 67e12, 80 * GB),
    "h200": Device(989e12, 67e12, 141 * GB),
}
SUSTAINED = 0.4  # share of a data sheet's rate that is assumed where no rate is given
DEFAULT_RATE = 1e14


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a plan is asked for.

    Attributes:
        world_size: processes that share the batch.
        pairs: in the data, where the length of the run is in epochs.
        flops_per_s: sustained in one process; None takes a share of the device's data sheet, or 1e14.
        device: one of `DEVICES`, or "cpu"; None is where the run would be.
        caption_tokens: of a caption with its start and end; None is the context length, which is the most.
    """

    world_size: int = 1
    pairs: int | None = None
    flops_per_s: float | None = None
    device: str | None = None
    caption_tokens: int | None = None

    def __post_init__(self):
        for key in ("world_size", "pairs", "flops_per_s", "caption_tokens"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise UsageError(f"--{key.replace('_', '-')} is {value:g}", expected="more than 0")
        if self.device not in (None, "cpu", *DEVICES):
            raise UsageError(f"--device-name is {self.device!r}", expected=f"one of cpu, {', '.join(DEVICES)}")

    @property
    def datasheet(self) -> Device | None:
        return DEVICES.get(self.device or "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """Of a run."""

    steps: int
    batch_size: int
    local_batch: int
    pairs_seen: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """Products of a pair, in MAC; `image` and `text` forward over every position, as the published tables count.

    Attributes:
        run_forward, run_training: as this library runs them, for captions of `caption_tokens`.
        loss: a pair's share of the similarities, forward and backward.
    """

    image: int
    text: int
    caption_tokens: int
    run_forward: int
    run_training: int
    loss: int

    @property
    def model_training_flop(self) -> int:
        """Three forward passes, whatever is done to save some or memory."""
        return 2 * 3 * (self.image + self.text)

    @property
    def run_training_flop(self) -> int:
        return 2 * (self.run_training + self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateRow:
    """What one process carries, in one precision and one form of sharing it."""

    precision: str
    parallel: str
    state: StateBytes
    chosen: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationRow:
    """What embedding some pairs at a time takes beside it."""

    precision: str
    checkpointing: Towers
    pairs: int
    kept: int
    peak: int
    chosen: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper; bytes and MAC are whole numbers, times seconds.

    Attributes:
        process: bytes of one process with the run's own settings, by what they are for; their sum is an upper bound, for
            not all are at their most at the same moment.
        notes: what the numbers leave out.
    """

    model: str
    parameters: dict[str, int]
    length: Length
    operations: Operations | None
    precision: str
    device: str
    fused_attention: bool
    flops_per_s: float
    rate_from: str
    world_size: int
    states: list[StateRow]
    activations: list[ActivationRow]
    process: dict[str, int]
    checkpoint: int
    device_memory: float | None
    notes: list[str]

    @property
    def seconds(self) -> float | None:
        """Of the whole run at the stated rate."""
        if self.operations is None:
            return None
        return self.operations.run_training_flop * self.length.pairs_seen / (self.flops_per_s * self.world_size)

    def tree(self) -> dict[str, Any]:
        """The plan as JSON, with the sums that follow from it."""
        tree = dataclasses.asdict(self)
        for row, state in zip(tree["states"], self.states, strict=True):
            row["total"] = state.state.total
        tree["process"]["total"] = sum(self.process.values())
        if self.operations is not None:
            flop = {
                "model_training_per_pair": self.operations.model_training_flop,
                "run_training_per_pair": self.operations.run_training_flop,
            }
            seen, batch = self.length.pairs_seen, self.length.batch_size
            whole = {
                f"{name.removesuffix('_per_pair')}_{what}": value * count
                for name, value in flop.items()
                for what, count in (("per_step", batch), ("total", seen))
            }
            tree["flop"] = {**flop, **whole}
        found = {"seconds": self.seconds, "processor_hours": self.processor_hours}
        return {**tree, **found, "largest_micro_batch": self.largest_micro_batch}

    @property
    def largest_micro_batch(self) -> int | None:
        """Pairs that can be embedded at a time in nine tenths of the device's memory; None where that is not known."""
        if self.device_memory is None:
            return None
        row = next(row for row in self.activations if row.chosen)
        rest = sum(size for name, size in self.process.items() if name != "activations")
        return max(0, int((0.9 * self.device_memory - rest) / (row.peak / row.pairs)))

    @property
    def processor_hours(self) -> float | None:
        """Of all processes together."""
        return None if self.seconds is None else self.seconds * self.world_size / 3600


def make_plan(pretraining: Pretraining, asked: PlanConfig) -> Plan:
    """The plan of a run; seconds of one core, next to no memory.

    Raises:
        ConfigError: where the batch cannot be shared so, the length of the run is not known, or the model is none with two
            towers.
    """
    if not isinstance(pretraining.model, ModelConfig):
        raise ConfigError(f"there is no plan for {pretraining.model.name!r}", expected="a model with two towers")
    notes: list[str] = []
    train, model = pretraining.train, pretraining.model
    device = asked.device or runtime.pick_device(train.device).type
    on_gpu = device != "cpu"
    length = _length(pretraining, asked)
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu or runtime.has_bfloat16_units(torch.device("cpu")) else "fp32"
    parallel = "one process" if asked.world_size == 1 else train.parallel
    micro = min(train.micro_batch or length.local_batch, length.local_batch)
    loss = pretraining.objective.loss if isinstance(pretraining.objective, ContrastiveConfig) else None
    if loss is None:
        kind = getattr(pretraining.objective, "kind", type(pretraining.objective).__name__)
        notes.append(f"the objective {kind!r} may hold and compute more than the towers, which these numbers do not see")

    carried = {name: _carried(pretraining, name) for name in _precisions(precision)}
    states = [
        StateRow(precision=name, parallel=form, state=state, chosen=(name, form) == (precision, parallel))
        for name, one in carried.items()
        for form, state in _forms(pretraining, name, one, asked.world_size)
    ]
    rows = [
        ActivationRow(
            precision=name, checkpointing=again, pairs=pairs,
            chosen=(name, again, pairs) == (precision, train.checkpointing, micro),
            **dataclasses.asdict(activations(
                model, pairs=pairs, dtype=PRECISIONS[name], checkpointing=again, freeze=pretraining.freeze, fused=on_gpu,
                num_tokens=asked.caption_tokens,
            )),
        )
        for name in carried
        for again in dict.fromkeys((train.checkpointing, "none", "both"))
        for pairs in dict.fromkeys((length.local_batch, micro))
    ]  # fmt: skip
    state = next(row.state for row in states if row.chosen)
    process = dataclasses.asdict(state)
    process["activations"] = next(row.peak for row in rows if row.chosen)
    process["loss"] = loss_bytes(
        length.local_batch, length.batch_size, model.embed_dim, None if loss is None else loss.chunk_rows
    ).peak
    process["batch"] = 4 * 3 * model.vision.image_size**2 * length.local_batch
    if micro < length.local_batch:
        process["cached embeddings"] = 2 * 2 * 4 * model.embed_dim * length.local_batch

    rate, rate_from = _rate(asked, precision)
    return Plan(
        model=model.name,
        parameters=_parameters(carried[precision].model),
        length=length,
        operations=_operations(pretraining, asked, length, carried[precision].model, micro < length.local_batch, notes),
        precision=precision,
        device=device,
        fused_attention=on_gpu or precision not in ("bf16", "fp16"),
        flops_per_s=rate,
        rate_from=rate_from,
        world_size=asked.world_size,
        states=states,
        activations=rows,
        process={name: size for name, size in process.items() if size},
        checkpoint=carried[precision].checkpoint(),
        device_memory=None if asked.datasheet is None else asked.datasheet.memory,
        notes=notes,
    )


def _length(pretraining: Pretraining, asked: PlanConfig) -> Length:
    train, batches = pretraining.train, pretraining.batches
    batch_size, pairs = getattr(batches, "batch_size", None), asked.pairs
    if batch_size is None or (train.steps is None and pairs is None):
        source = batches.build(meta_model(pretraining.model))  # which opens the data
        batch_size, pairs = source.batch_size, pairs or source.num_samples
    if batch_size % asked.world_size:
        near = next(size for size in range(asked.world_size, 0, -1) if batch_size % size == 0)
        raise UsageError(
            f"--world-size is {asked.world_size}, which does not divide the batch of {batch_size}", expected=f"such as {near}"
        )
    steps = train.steps
    if steps is None:
        assert train.epochs is not None and pairs is not None
        steps = max(1, round(train.epochs * max(1, pairs // batch_size)))
    return Length(steps=steps, batch_size=batch_size, local_batch=batch_size // asked.world_size, pairs_seen=steps * batch_size)


def _precisions(own: str) -> list[str]:
    """The run's, and the usual ones beside it."""
    return [own] if own == "fp64" else list(dict.fromkeys((own, "bf16", "fp32")))


def _carried(pretraining: Pretraining, precision: str, *, rounding: bool = True) -> Carried:
    """What the run would carry in a precision; only bf16 weights can be without masters (`rounding`)."""
    train = pretraining.train
    if precision != "bf16" or not rounding:
        train = dataclasses.replace(train, stochastic_rounding="none")
    return Carried(pretraining.model, train, PRECISIONS[precision], pretraining.freeze)


def _forms(pretraining: Pretraining, precision: str, carried: Carried, world_size: int) -> list[tuple[str, StateBytes]]:
    if world_size == 1:
        return [("one process", carried.whole(averaging=False))]
    # Slices are float32, which weights without masters are not: with fsdp they have masters.
    sliced = carried if not carried.masters.rounded else _carried(pretraining, precision, rounding=False)
    return [("ddp", carried.whole(averaging=True)), ("fsdp", sliced.sliced(world_size))]


def _parameters(model: CLIP) -> dict[str, int]:
    parts = {"image": model.visual, "text": model.text, "total": model}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _operations(
    pretraining: Pretraining, asked: PlanConfig, length: Length, meta: CLIP, cached: bool, notes: list[str]
) -> Operations | None:
    model: ModelConfig = pretraining.model
    tokens = min(asked.caption_tokens or model.text.context_length, model.text.context_length)
    try:
        whole = [image_products(model.vision, model.embed_dim), text_products(model.text, model.embed_dim)]
        run = [
            image_products(model.vision, model.embed_dim, whole=False),
            text_products(model.text, model.embed_dim, whole=False, num_tokens=tokens),
        ]
    except ConfigError as unknown:
        notes.append(f"no operations and no time: {unknown}")
        return None
    again = [pretraining.train.checkpointing in (tower, "both") for tower in ("image", "text")]
    forwards = 2 if cached else 1
    loss = pretraining.objective.loss if isinstance(pretraining.objective, ContrastiveConfig) else None
    # Scores, their two gradients; in chunks the scores are computed a second time on the way back.
    products = 3 if loss is None or (loss.chunk_rows is None and asked.world_size == 1) else 4
    return Operations(
        image=total(whole[0]),
        text=total(whole[1]),
        caption_tokens=tokens,
        run_forward=sum(map(total, run)),
        run_training=sum(
            training(part, checkpointing=twice, forwards=forwards, trained=_trained(tower))
            for part, twice, tower in zip(run, again, (meta.visual, meta.text), strict=True)
        ),
        loss=products * length.batch_size * model.embed_dim,
    )


def _trained(tower: nn.Module) -> list[str]:
    return [name for name, weight in tower.named_parameters() if weight.requires_grad]


def _rate(asked: PlanConfig, precision: str) -> tuple[float, str]:
    if asked.flops_per_s is not None:
        return asked.flops_per_s, "as given"
    if asked.datasheet is None:
        return DEFAULT_RATE, "a round number; give --flops-per-s or --device-name"
    peak = asked.datasheet.half if precision in ("bf16", "fp16") else asked.datasheet.single
    return SUSTAINED * peak, f"assumed: {100 * SUSTAINED:.0f} % of the data sheet's {peak:.3g}"
