"""What is computed in batches: embeddings of pictures and texts, and logits of saved predictors. No HTTP, no queue.

Each kind of work is a lane: "image" and "text", and "predictor:NAME" for each saved predictor. Batches are of one lane.
Texts are short work and pictures long: they are computed side by side, and pictures give way (`lower_priority`).
Pictures come as bytes (the transform before its normalisation, a quarter of the memory), texts as token ids.

Letters: B batch, S pixels a side, E embedding, C classes.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.errors import ConfigError, DataError

GIVE_WAY = 3  # of nice, each a fifth less: half of the share of what does not give way
IMAGE, TEXT, PREDICTOR = "image", "text", "predictor:"
WARM_PICTURES, WARM_TEXTS, WARM_TOKENS = 4, 16, 8
SLOW_S = 1.0
NOT_SERVED = {"batch": "its answers depend on the other pictures of a batch", "views": "it computes gradients for each picture"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model once its weights are read.

    `paces` has, for each lane, the seconds of a batch as (fixed, for each picture or token), measured on the model alone.
    """

    sha256: str
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    dtype: str
    engine: str
    threads: int
    provenance: dict[str, Any]
    model_key: dict[str, Any]
    predictors: dict[str, dict[str, Any]]
    paces: dict[str, Sequence[float]] = dataclasses.field(default_factory=dict)


class Computation:
    """An encoder and saved predictors, ready to compute batches."""

    def __init__(self, encoder: Any, predictors: Mapping[str, Any] | None = None, *, engine: str = "torch"):
        self.encoder, self.predictors, self.engine = encoder.eval(), dict(predictors or {}), engine
        self._locks = {TEXT: threading.Lock(), IMAGE: threading.Lock()}
        self.paces: dict[str, tuple[float, float]] = {}
        for name, predictor in self.predictors.items():
            check_servable(name, predictor)

    def lanes(self) -> list[str]:
        """Every lane."""
        return [IMAGE, TEXT, *(f"{PREDICTOR}{name}" for name in self.predictors)]

    def run(self, lane: str, batch: Any) -> np.ndarray:
        """A row for each item: (B, E) unit embeddings, or (B, C) logits, float32.

        Args:
            batch: (B, 3, S, S) uint8 pictures, or B lists of token ids.

        Raises:
            DataError: if the model gives numbers that are not finite.
        """
        found = self._rows(lane, batch)
        if not np.isfinite(found).all():
            raise DataError("the model gave numbers that are not finite")
        return found

    def _rows(self, lane: str, batch: Any) -> np.ndarray:
        import torch

        with self._locks[group_of(lane)], torch.inference_mode():
            if lane == TEXT:
                rows = self.encoder.encode_text(self._tokens(batch), normalize=True)
            else:
                pixels = self.encoder.transform.normalize(torch.from_numpy(np.ascontiguousarray(batch)))
                if lane == IMAGE:
                    rows = self.encoder.encode_image(pixels, normalize=True)
                else:
                    predictor = self.predictors[lane.removeprefix(PREDICTOR)]
                    rows = predictor.forward(pixels.to(self.encoder.device))
            return rows.float().cpu().numpy()

    def warm(self) -> None:
        """Run every lane a few times, so that the first request finds everything in place: memory, kernels, tokenizer; and
        so that it is known what a batch takes."""
        for lane in self.lanes():
            self._timed(lane, 1)
            one = self._timed(lane, 1)
            few, cost = (WARM_TEXTS, WARM_TOKENS) if lane == TEXT else (WARM_PICTURES, 1)
            more = self._timed(lane, few) if one < SLOW_S else few * one  # who takes so long gains nothing by company
            slope = min(max(0.0, (more - one) / (few - 1)), one)
            self.paces[lane] = (one - slope, slope / cost)

    def _timed(self, lane: str, count: int) -> float:
        side, end = self.encoder.config.preprocess.image_size, self.encoder.tokenizer.end_id
        # Different from their first token on, for what texts have in common is computed once.
        ids = [one for one in range(count * WARM_TOKENS) if one != end]
        texts = [[*ids[index * (WARM_TOKENS - 1) :][: WARM_TOKENS - 1], end] for index in range(count)]
        start = time.perf_counter()
        self._rows(lane, texts if lane == TEXT else np.zeros((count, 3, side, side), np.uint8))
        return time.perf_counter() - start

    def facts(self) -> Facts:
        """What is known of the model."""
        import torch

        from ostension.store.key import ModelKey

        encoder = self.encoder
        key = ModelKey.of(encoder)
        bias = encoder.logit_bias
        engine, dtype = self._computed()
        return Facts(
            sha256=key.weights, embed_dim=encoder.config.embed_dim, logit_scale=encoder.scale().item(),
            logit_bias=None if bias is None else bias.item(), dtype=dtype,
            engine=engine, threads=torch.get_num_threads(), provenance=dict(encoder.provenance),
            model_key=dataclasses.asdict(key),
            predictors={
                name: {"kind": one.kind, "class_names": list(one.class_names), "templates": list(one.templates)}
                for name, one in self.predictors.items()
            },
            paces=dict(self.paces),
        )  # fmt: skip

    def _computed(self) -> tuple[str, str]:
        """Engine and precision: of an encoder in an engine what it says of itself, in full where its towers differ."""
        computed = getattr(self.encoder, "computed", None)
        if not computed:
            return self.engine, str(self.encoder.dtype).removeprefix("torch.")
        engine, _, precision = computed.partition("-")
        return (computed, "") if " " in computed else (engine, precision)

    def _tokens(self, rows: Sequence[Sequence[int]]) -> Any:
        """Token ids as one matrix: as wide as the longest row, or as the context where the tower sees padding."""
        from ostension.text.tokenizer import pack

        text = self.encoder.config.text
        return pack(rows, self.encoder.tokenizer.pad_id, text.context_length if text.sees_padding else None)


def group_of(lane: str) -> str:
    """The lane, or the one whose work it shares a thread with: predictors are of pictures."""
    return TEXT if lane == TEXT else IMAGE


def lower_priority() -> None:
    """Let this thread, and those that it starts, give way to others where processors are short: half of their share."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + GIVE_WAY)


def check_servable(name: str, predictor: Any) -> None:
    """Refuse a predictor whose answers for one picture cannot stand alone.

    Raises:
        ConfigError: for one of videos, or one that looks at a batch or computes gradients.
    """
    reason = "it classifies videos" if predictor.takes != "pictures" else NOT_SERVED.get(predictor.depends)
    if reason is not None:
        raise ConfigError(f"the predictor {name!r} cannot be served: {reason}", fix="use `ostension classify --predictor`")


def load_computation(
    model: str, *, device: str, dtype: str, engine: str, threads: int | None, predictors: Mapping[str, str]
) -> Computation:
    """The computation of a model's files and its predictors' folders.

    Raises:
        CheckpointError, ConfigError: for what cannot be loaded or served.
    """
    from ostension import runtime
    from ostension.export.engines import load_encoder
    from ostension.model.predictor import Predictor

    runtime.set_threads(threads)
    encoder: Any = load_encoder(model, engine, device=device, dtype=dtype)  # type: ignore[arg-type]
    found = {name: Predictor.load(folder, encoder) for name, folder in predictors.items()}
    return Computation(encoder, found, engine=engine)
