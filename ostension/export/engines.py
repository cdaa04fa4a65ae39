"""An encoder whose towers run in onnxruntime or OpenVINO, and goes wherever a model goes.

    encoder = engine_encoder(model, "openvino")            # exported once, into the user's cache folder
    encoder = load_encoder("export-folder", engine="onnx")  # what `ostension export` wrote; no torch weights are read

`EngineEncoder` is a `CLIP` with other towers: `encode_image`, `encode_text`, `embed_images`, `classifier`, the store, the
service and every protocol that only reads embeddings use it unchanged. What needs gradients, inserts, or states inside a
tower is refused in one line.

Letters: B batch, T tokens, S pixels a side, W width, E embedding.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ostension.errors import CheckpointError, ConfigError, DataError, OstensionError, unknown_name
from ostension.export.cache import cached_export
from ostension.export.folder import ExportFolder, is_export, open_export, tokenizer_of
from ostension.export.graphs import INPUTS, OUTPUTS, SIDES
from ostension.export.lengths import used_lengths
from ostension.export.sessions import Engine, Precision, Session, open_session, precisions
from ostension.model.clip import CLIP, Frozen
from ostension.model.config import ModelConfig
from ostension.model.insert import TextInsert, VisualInsert
from ostension.model.taps import Taps
from ostension.model.towers.bert import check_ids

logger = logging.getLogger("ostension.export")
EngineName = Literal["torch", "onnx", "openvino", "auto"]
PrecisionName = Literal["auto", "float32", "bfloat16", "int8"]
ENGINE_NAMES: tuple[EngineName, ...] = ("torch", "onnx", "openvino", "auto")
PRECISION_NAMES: tuple[PrecisionName, ...] = ("auto", "float32", "bfloat16", "int8")
# Tokens that pass the blocks together, as in the text tower's own path: what a batch of long texts takes in memory.
MAX_TOKENS = 4096
TAPS = {"embedding": OUTPUTS[0], "pooled": OUTPUTS[2]}


class EngineRefusal(ConfigError, AttributeError):
    """What an engine cannot do; also an `AttributeError`, so that `hasattr` answers no."""


class EngineTower(nn.Module):
    """One tower that runs in an engine.

    Args:
        config: of the tower.
        computed: engine and precision in words, such as "openvino-bfloat16".
        embed_dim: what the graph's rows have to have.
        free_length: whether rows of tokens may be shorter than the context length.
    """

    def __init__(self, side: str, session: Session, config: Any, computed: str, *, embed_dim: int, free_length: bool):
        super().__init__()
        self.side, self.session, self.config, self.computed, self.free_length = side, session, config, computed, free_length
        self.embed_dim = embed_dim
        # Says where results are and of what type, to whoever looks at a tower's first parameter.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise EngineRefusal(
                f"the {self.side} tower runs in {self.computed} and has no {name!r}", fix="use the engine torch for this"
            ) from None

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise _refusal(self, "cannot be copied")

    def __reduce__(self) -> NoReturn:
        raise _refusal(self, "cannot be sent to another process")

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name: those that the graph gives."""
        return ("pooled", "embedding")

    def forward(
        self, inputs: Tensor, *, insert: VisualInsert | TextInsert | None = None, taps: Taps | None = None, plain: bool = False
    ) -> Tensor:
        """Embeddings (B, E).

        Raises:
            EngineRefusal: for an insert, or inputs that want gradients.
            DataError: for token ids that the vocabulary does not have, or rows of another length than the graph takes.
            CheckpointError: if the graph does not run, or gives other rows than the model's.
        """
        if insert is not None:
            raise _refusal(self, "takes no inserts")
        if inputs.requires_grad and torch.is_grad_enabled():
            raise _refusal(self, "has no gradients")
        names = OUTPUTS[:1] if taps is None else tuple(dict.fromkeys((OUTPUTS[0], *(TAPS[name] for name in taps.found))))
        found = dict(zip(names, self._run(inputs, names), strict=True))
        if taps is not None:
            for name, output in TAPS.items():
                if output in found:
                    taps.put(name, found[output])
        rows = found[OUTPUTS[0]]
        if rows.shape != (len(inputs), self.embed_dim):
            what = f"the graph of the {self.side} tower gives {tuple(rows.shape)} for {len(inputs)} inputs"
            raise CheckpointError(what, expected=f"({len(inputs)}, {self.embed_dim})", fix="export the model again")
        return rows

    def _run(self, inputs: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        if not len(inputs):  # one row of zeros knows how wide the outputs are
            shape = inputs.shape if inputs.shape[1:].numel() else (0, self.config.context_length)
            return [value[:0] for value in self._run(inputs.new_zeros(1, *shape[1:]), names)]
        if self.side == "image":
            return self._call(inputs.float().contiguous().numpy(), names)
        check_ids(inputs, self.config.context_length, self.config.vocab_size)
        if not self.free_length:
            if inputs.shape[1] != self.config.context_length:
                raise DataError(
                    f"the tokens have {inputs.shape[1]} positions", expected=f"the context length {self.config.context_length}"
                )
            return self._call(inputs.contiguous().numpy(), names)
        return self._by_length(inputs, names)

    def _by_length(self, tokens: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        """Rows of similar length together, cut after the longest of them."""
        used = used_lengths(self.config, tokens)
        order = used.argsort(descending=True, stable=True)
        parts, start = [], 0
        while start < len(order):
            length = int(used[order[start]])
            rows = order[start : start + max(1, MAX_TOKENS // length)]
            parts.append(self._call(tokens[rows, :length].contiguous().numpy(), names))
            start += len(rows)
        back = order.argsort()
        return [torch.cat(values)[back] for values in zip(*parts, strict=True)]

    def _call(self, inputs: np.ndarray, names: tuple[str, ...]) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(value)) for value in self.session(inputs, names)]


class EngineEncoder(CLIP):
    """A model whose towers may run in an engine. Evaluation only.

    Attributes:
        weights_fingerprint: of the model that was exported.
        computed: engine and precision of the image and the text tower; one word where they are the same.
        choice: how the engines were chosen, where they were measured.
    """

    def __init__(
        self, config: ModelConfig, visual: nn.Module, text: nn.Module, *, logit_scale: float, logit_bias: float | None,
        weights: str, provenance: dict[str, Any],
    ):
        nn.Module.__init__(self)  # and not CLIP's, which would build the towers
        self.config, self.provenance, self.weights_fingerprint = config, provenance, weights
        self.frozen, self._transform, self._tokenizer = Frozen(), None, None
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale), requires_grad=False)
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias), requires_grad=False)
        self.choice: Any = None
        self.requires_grad_(False)
        self.eval()

    @property
    def computed(self) -> str:
        """Engine and precision, for the keys of a store."""
        image, text = (_computed(tower) for tower in (self.visual, self.text))
        return image if image == text else f"{image} (images), {text} (texts)"

    def train(self, mode: bool = True) -> EngineEncoder:
        """Evaluation mode; there is no other."""
        if mode:
            raise _refusal(self, "cannot be trained")
        super().train(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> EngineEncoder:
        """Refused when true."""
        if requires_grad:
            raise _refusal(self, "has no gradients")
        return super().requires_grad_(False)

    def resized(self, *, image_size: int | None = None, context_length: int | None = None) -> NoReturn:
        """Refused: sizes are part of a graph."""
        raise _refusal(self, "cannot be resized")

    def _apply(self, fn, recurse=True):
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise _refusal(self, f"cannot be moved to {probe.device.type} in {str(probe.dtype).removeprefix('torch.')}")
        return super()._apply(fn, recurse)


def engine_encoder(
    model: CLIP, engine: EngineName = "auto", *, precision: PrecisionName = "auto", threads: int | None = None,
    cache: str | os.PathLike | None = None,
) -> CLIP:
    """`model` with its towers in an engine; the model itself for "torch".

    Args:
        model: on the processor; in float32, or its weights are exported as rounded as they are.
        engine: "onnx", "openvino", "torch", or "auto": the fastest for each tower by a short measurement within a stated
            difference (`export.choice`), kept in the cache folder.
        precision: in which to compute: "auto" is bfloat16 where engine and processor have it, else float32.
        threads: None for torch's number.
        cache: folder for exported graphs and choices; None for the user's (`export.cache`).

    Raises:
        ConfigError: for an unknown engine, a precision that it does not have, or a tower that cannot be exported.
        MissingExtraError: without the engine's package.
    """
    _check_names(engine, precision)
    if isinstance(model, EngineEncoder) or engine == "torch":
        return model
    if model.device.type != "cpu":
        raise ConfigError(f"the engine {engine!r} runs on the processor, and the model is on {model.device}")
    if engine == "auto":
        from ostension.export.choice import choose

        return choose(model, precision=precision, threads=threads, cache=cache)
    return encoder_of_export(cached_export(model, cache), engine, precision=precision, threads=threads, like=model)


def load_encoder(
    path_or_name: str | os.PathLike, engine: EngineName = "auto", *, device: str = "auto", dtype: str = "auto",
    threads: int | None = None, cache: str | os.PathLike | None = None, **options: Any,
) -> CLIP:
    """The model in a folder or file, in an engine; or the folder that `ostension export` wrote.

    Args:
        engine: as in `engine_encoder`; "torch" is `formats.load.load` and nothing else.
        dtype: the precision: "auto", "float32", "bfloat16", or "int8" of an export folder that has it.
        options: of `formats.load.load`.

    Raises:
        CheckpointError, ConfigError, MissingExtraError: as `load` and `engine_encoder`.
    """
    from ostension.formats.load import load

    if is_export(path_or_name):
        if engine == "torch":
            raise ConfigError("holds exported graphs and no weights", source=path_or_name, fix="use --engine onnx or openvino")
        stays_in_torch("onnx" if engine == "auto" else engine, device)
        return encoder_of_export(open_export(path_or_name), engine, precision=as_precision(dtype), threads=threads)
    if stays_in_torch(engine, device):
        return load(path_or_name, device=device, dtype=dtype, **options)
    model = load(path_or_name, device="cpu", dtype="float32", **options)
    return engine_encoder(model, engine, precision=as_precision(dtype), threads=threads, cache=cache)


def stays_in_torch(engine: str, device: str) -> bool:
    """Whether a model runs in torch with these flags: asked for, or "auto" where there is a GPU.

    Raises:
        ConfigError: for an unknown engine, or one that runs on the processor with another device asked for.
    """
    from ostension.runtime import pick_device

    if engine not in ENGINE_NAMES:
        raise unknown_name("engine", engine, ENGINE_NAMES)
    if engine in ("torch", "auto"):
        return engine == "torch" or pick_device(device).type != "cpu"
    if device != "auto" and pick_device(device).type != "cpu":
        fix = "leave --device out, or use --engine torch"
        raise ConfigError(f"the engine {engine!r} runs on the processor, and the device is {device!r}", fix=fix)
    return False


def encoder_of_export(
    opened: ExportFolder, engine: EngineName = "auto", *, precision: PrecisionName = "auto", threads: int | None = None,
    like: CLIP | None = None,
) -> EngineEncoder:
    """The encoder of an export folder.

    Args:
        engine: "auto" takes OpenVINO where it is installed, or the folder has its form only, else onnxruntime.
        like: the model that was exported, whose tokenizer and provenance are used.

    Raises:
        ConfigError: where the folder lacks a tower, or what the engine would need.
    """
    if engine == "auto":
        from ostension.export.sessions import available

        only = all(graph.form == "openvino" for graph in opened.graphs)
        engine = "openvino" if only or available("openvino") else "onnx"
    assert engine != "torch"
    towers = [open_tower(opened, side, engine, precision, threads) for side in SIDES]
    encoder = EngineEncoder(
        opened.config, *towers, logit_scale=opened.logit_scale, logit_bias=opened.logit_bias, weights=opened.weights,
        provenance=dict(opened.provenance if like is None else like.provenance),
    )  # fmt: skip
    if like is not None:
        share_preprocessing(encoder, like)
        return encoder
    try:
        encoder.tokenizer = tokenizer_of(opened)
    except OstensionError as error:
        logger.warning("%s: images and token ids only: %s", opened.path, error)
    return encoder


def open_tower(
    opened: ExportFolder, side: str, engine: Engine, precision: PrecisionName = "auto", threads: int | None = None
) -> EngineTower:
    """One tower of an export folder in an engine."""
    graph = opened.find(side, engine, quantised=precision == "int8")
    if graph is None and precision == "auto":
        graph = opened.find(side, engine, quantised=True)
    if graph is None:
        what = f"no {side} tower" + (" in int8" if precision == "int8" else "")
        have = ", ".join(f"{one.file} ({one.precision})" for one in opened.graphs)
        raise ConfigError(f"{what} that {engine} could run", source=opened.path, expected=f"one of: {have}")
    computes: Precision = "int8" if graph.precision == "int8" else precisions(engine)[0] if precision == "auto" else precision
    session = open_session(opened.path / graph.file, engine, computes, threads)
    if session.inputs != (INPUTS[side],) or not set(OUTPUTS) <= set(session.outputs):
        takes, gives = ", ".join(session.inputs), ", ".join(session.outputs)
        what = f"is no graph of the {side} tower: it takes {takes} and gives {gives}"
        expected = f"{INPUTS[side]}, and {', '.join(OUTPUTS)}"
        raise CheckpointError(what, source=opened.path / graph.file, expected=expected, fix="export the model again")
    config, wide = opened.config.vision if side == "image" else opened.config.text, opened.config.embed_dim
    return EngineTower(side, session, config, f"{engine}-{computes}", embed_dim=wide, free_length=graph.free_length)


def share_preprocessing(encoder: CLIP, model: CLIP) -> None:
    """Give `encoder` the transform and the tokenizer of `model`, which may be other than its configuration says."""
    encoder.transform = model.transform
    encoder._tokenizer = model._tokenizer


def _computed(tower: nn.Module) -> str:
    own = tower.computed if isinstance(tower, EngineTower) else None
    return own or f"torch-{str(next(tower.parameters()).dtype).removeprefix('torch.')}"


def _refusal(what: EngineTower | EngineEncoder, why: str) -> EngineRefusal:
    name = f"the {what.side} tower in {what.computed}" if isinstance(what, EngineTower) else f"an encoder in {what.computed}"
    return EngineRefusal(f"{name} {why}", fix="use the engine torch for this")


def _check_names(engine: str, precision: str) -> None:
    if engine not in ENGINE_NAMES:
        raise unknown_name("engine", engine, ENGINE_NAMES)
    if precision not in PRECISION_NAMES:
        raise unknown_name("precision", precision, PRECISION_NAMES)


def as_precision(dtype: str) -> PrecisionName:
    """The flag `--dtype` as a precision.

    Raises:
        ConfigError: for one that no engine has.
    """
    if dtype not in PRECISION_NAMES:
        known = ", ".join(PRECISION_NAMES)
        raise ConfigError(f"dtype is {dtype!r}", expected=f"one of {known} with an engine other than torch")
    return dtype  # type: ignore[return-value]
