"""Which engine is the fastest for each tower of a model on this processor, by a short measurement.

Every engine that is installed encodes the same inputs in turn, in every precision that it has here. Taken is the fastest
whose embeddings stay within `TOLERANCE` of the model's in float32, and torch unless another one is faster by `HEADWAY`.
What was found is kept in the cache folder, under the model, the processor, the number of threads and all versions;
`ostension doctor --model` measures anew and shows it.

Texts are captions, all different. The prompts of a classifier share their beginnings, which torch's own path computes once
(`model.prefix_tree`) and no graph can.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostension import runtime
from ostension.errors import CheckpointError, ConfigError
from ostension.export.cache import cache_folder, cached_export, identity, version_of
from ostension.export.engines import EngineEncoder, PrecisionName, open_tower, share_preprocessing
from ostension.export.folder import ExportFolder
from ostension.export.graphs import SIDES
from ostension.export.parity import compare, encoder_of, probe_batches
from ostension.export.sessions import ENGINES, available, precisions
from ostension.files import read_json, sha256_json, write_json
from ostension.formats.convert import as_float32
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint

logger = logging.getLogger("ostension.export")
# 1 - cosine to the embedding in float32. bfloat16 is at 1e-5 to 1e-4 over 12 blocks; int8 is usually past it.
TOLERANCE = 1e-3
HEADWAY = 1.1  # of a gain smaller than this, exporting and opening take back what it brings
SECONDS = 1.0  # of measuring for each candidate, after its first call
IMAGES, TEXTS = 8, 64  # in a batch
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Measured:
    """One engine in one precision.

    Attributes:
        engine, precision: which one.
        per_second: images or texts.
        largest: difference of a unit embedding's coordinate to float32 in torch.
        cosine: the least to it.
    """

    engine: str
    precision: str
    per_second: float
    largest: float
    cosine: float

    @property
    def name(self) -> str:
        """As the keys of stores say it."""
        return f"{self.engine}-{self.precision}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was measured for one tower, and what is taken."""

    side: str
    taken: str
    tolerance: float
    rows: tuple[Measured, ...]


Candidate = tuple[str, str, nn.Module]


def choose(
    model: CLIP, *, precision: PrecisionName = "auto", threads: int | None = None, cache: str | os.PathLike | None = None
) -> CLIP:
    """The encoder of the engines that are the fastest here; its `choice` says what was measured.

    Raises:
        ConfigError: for a precision that nothing here has.
    """
    opened = _export(model, cache)
    return _build(model, opened, _known_or_measured(model, opened, precision, threads, cache, refresh=False), threads)


def measure(
    model: CLIP, *, precision: PrecisionName = "auto", threads: int | None = None, cache: str | os.PathLike | None = None
) -> tuple[Choice, ...]:
    """What a measurement finds now, for the image and the text tower; `choose` then takes it.

    Raises:
        ConfigError: for a precision that nothing here has.
    """
    return _known_or_measured(model, _export(model, cache), precision, threads, cache, refresh=True)


def _known_or_measured(
    model: CLIP, opened: ExportFolder | None, precision: PrecisionName, threads: int | None, cache: str | os.PathLike | None,
    *, refresh: bool,
) -> tuple[Choice, ...]:
    if precision == "int8":
        raise ConfigError("a model has no int8 of its own", fix="use a folder that `ostension export onnx MODEL --int8` wrote")
    path = _place(model, precision, threads, cache)
    known = None if refresh else _read(path)
    if known is None:
        known = tuple(_measure(model, opened, side, precision, threads) for side in SIDES)
        _write(path, known)
    return known


def _export(model: CLIP, cache: str | os.PathLike | None) -> ExportFolder | None:
    """The model's graphs, or None where no engine is installed or a tower cannot be exported, which is said."""
    if not any(map(available, ENGINES)):
        logger.warning("neither onnxruntime nor openvino is installed: the model runs in torch")
        return None
    try:
        return cached_export(model, cache)
    except ConfigError as error:
        logger.warning("the model runs in torch: %s", error)
        return None


def _measure(
    model: CLIP, opened: ExportFolder | None, side: str, precision: PrecisionName, threads: int | None
) -> Choice:
    """All candidates of one side."""
    plain = as_float32(model)
    reference = encoder_of(plain, side)
    batches = probe_batches(plain, side)
    candidates, differences = [], []
    for candidate in _candidates(plain, opened, side, precision, threads):
        candidates.append(candidate)
        differences.append(compare(reference, _encoder(plain, side, candidate), batches))
    if not candidates:
        raise ConfigError(f"nothing here computes in {precision}", expected="auto or float32")
    speeds = _speeds(plain, side, candidates)
    rows = tuple(
        Measured(engine, kind, speed, difference.largest, difference.cosine)
        for (engine, kind, _), speed, difference in zip(candidates, speeds, differences, strict=True)
    )
    return Choice(side, _best(rows).name, TOLERANCE, rows)


def _best(rows: Sequence[Measured]) -> Measured:
    """The fastest within the tolerance; torch's unless another is faster by `HEADWAY`."""
    # One precision may have been asked for: its difference is then what was asked for too.
    fit = [row for row in rows if 1 - row.cosine <= TOLERANCE] or list(rows)
    fastest = max(fit, key=lambda row: row.per_second)
    own = max((row for row in fit if row.engine == "torch"), key=lambda row: row.per_second, default=None)
    return own if own is not None and fastest.per_second < HEADWAY * own.per_second else fastest


def _candidates(model: CLIP, opened: ExportFolder | None, side: str, precision: PrecisionName, threads: int | None):
    """Engine, precision and tower of each way to compute one side."""
    wanted = ("float32", "bfloat16") if precision == "auto" else (precision,)
    own = model.visual if side == "image" else model.text
    for kind in wanted:
        if kind == "float32":
            yield "torch", kind, own
        elif runtime.has_bfloat16_units():
            yield "torch", kind, copy.deepcopy(own).to(torch.bfloat16)
    for engine in ENGINES if opened is not None else ():
        if available(engine):
            for kind in precisions(engine):
                if kind in wanted:
                    assert opened is not None
                    yield engine, kind, open_tower(opened, side, engine, kind, threads)


def _encoder(model: CLIP, side: str, candidate: Candidate) -> Callable[[Tensor], Tensor]:
    """Plain embeddings by one candidate, as `encode_image` and `encode_text` would compute them."""
    _, kind, tower = candidate
    if side == "text":
        return lambda tokens: tower(tokens).float()
    half = kind == "bfloat16" and candidate[0] == "torch"
    return lambda pixels: tower(pixels.to(torch.bfloat16) if half else pixels).float()


def _speeds(model: CLIP, side: str, candidates: Sequence[Candidate]) -> list[float]:
    """Rows a second of each, the best of rounds in which they take turns."""
    inputs = measuring_batch(model, side)
    calls = [_encoder(model, side, candidate) for candidate in candidates]
    best, spent = [float("inf")] * len(calls), 0.0
    with torch.no_grad():
        for call in calls:
            call(inputs)
        while spent < SECONDS * len(calls):
            gc.collect()
            for place, call in enumerate(calls):
                start = time.perf_counter()
                call(inputs)
                took = time.perf_counter() - start
                best[place], spent = min(best[place], took), spent + took
    return [len(inputs) / seconds for seconds in best]


def measuring_batch(model: CLIP, side: str) -> Tensor:
    """Pictures of noise, or captions of 6 to 22 tokens that have nothing in common but their ends."""
    generator = runtime.torch_generator("engines", side)
    if side == "image":
        size = model.config.vision.image_size
        return torch.randn(IMAGES, 3, size, size, generator=generator)
    text = model.config.text
    length = text.context_length
    tokens = torch.randint(1, max(2, text.vocab_size - 2), (TEXTS, length), generator=generator)
    if text.sees_padding:
        return tokens
    end = getattr(text, "eos_id", None)
    for row in tokens:
        last = min(length - 1, int(torch.randint(5, 22, (), generator=generator)))
        row[last] = text.vocab_size - 1 if end is None else end
        row[last + 1 :] = getattr(text, "pad_id", 0)
    return tokens


def _build(model: CLIP, opened: ExportFolder | None, choices: Sequence[Choice], threads: int | None) -> CLIP:
    """The encoder with the towers that were taken."""
    taken = {choice.side: choice.taken for choice in choices}
    if taken["image"] == taken["text"] and taken["text"].startswith("torch-"):
        kind = getattr(torch, taken["text"].removeprefix("torch-"))
        encoder: Any = model if model.dtype == kind else copy.deepcopy(model).to(kind)
        encoder.choice = tuple(choices)
        return encoder
    towers = [_tower(model, opened, side, taken[side], threads) for side in SIDES]
    bias = model.logit_bias
    encoder = EngineEncoder(
        model.config, *towers, logit_scale=float(model.logit_scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()), weights=fingerprint(model), provenance=model.provenance,
    )  # fmt: skip
    share_preprocessing(encoder, model)
    encoder.choice = tuple(choices)
    return encoder


def _tower(model: CLIP, opened: ExportFolder | None, side: str, taken: str, threads: int | None) -> nn.Module:
    engine, kind = taken.split("-", 1)
    if engine != "torch":
        assert opened is not None
        return open_tower(opened, side, engine, kind, threads)  # type: ignore[arg-type]
    own = model.visual if side == "image" else model.text
    dtype = getattr(torch, kind)
    return copy.deepcopy(own).to(dtype)


def _place(model: CLIP, precision: str, threads: int | None, cache: str | os.PathLike | None) -> Path:
    """The file of a choice: its name is of everything that could change it."""
    engines = {package: version_of(package) for package in ("onnxruntime", "openvino")}
    key = {
        "format": FORMAT,
        "model": identity(model),
        "precision": precision,
        "tolerance": TOLERANCE,
        "threads": threads or torch.get_num_threads(),
        "processor": runtime.cpu_name(),
        "features": sorted(runtime.cpu_features()),
        "versions": {"ostension": runtime.versions()["ostension"], "torch": torch.__version__, **engines},
    }
    return cache_folder(cache) / "choices" / f"{sha256_json(key)[:16]}.json"


def _read(path: Path) -> tuple[Choice, ...] | None:
    """What is kept, or None; what cannot be read is as good as nothing, and is measured anew."""
    if not path.is_file():
        return None
    try:
        tree = read_json(path, CheckpointError)
        rows = tuple(
            Choice(entry["side"], entry["taken"], entry["tolerance"], tuple(Measured(**row) for row in entry["rows"]))
            for entry in tree["choices"]
        )
    except (CheckpointError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and the engines are measured anew: %s", path, error)
        return None
    names = {choice.side: {row.name for row in choice.rows} for choice in rows}
    return rows if set(names) == set(SIDES) and all(choice.taken in names[choice.side] for choice in rows) else None


def _write(path: Path, choices: Sequence[Choice]) -> None:
    """Keep what was found; a cache folder that cannot be written to is said, and the next run measures again."""
    tree: Mapping[str, Any] = {"format": FORMAT, "choices": [dataclasses.asdict(choice) for choice in choices]}
    try:
        write_json(path, tree)
    except OSError as error:
        logger.warning("the choice of engines is not kept: %s: %s", path, error.strerror or error)
