"""A predictor as one ONNX file: preprocessed pixels in, probabilities of its classes out, nothing else needed.

    pixels (B, 3, S, S) float32 -> probabilities (B, C), logits (B, C), float32

Image tower, class matrix (or whatever head a method has), scale and softmax are one graph. What it is to be fed with and what
its columns are called stands in the file's metadata, as JSON texts: `class_names`, `preprocess`, `templates`, `predictor`
(kind, encoder, fingerprint), `difference` (from the predictor), `versions`.

The predictor's own products with its classes run in float64, so that no result depends on the size of a batch; in the file
they are float32, for there are engines without anything wider.

Letters: B batch, C classes, S pixels a side.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, require_extra
from ostension.export.engines import EngineEncoder
from ostension.export.graphs import INPUTS
from ostension.export.onnx import OPSET, example_input, record_onnx
from ostension.export.parity import probe_batches
from ostension.export.sessions import open_session
from ostension.files import fsync_folder
from ostension.model.fingerprint import fingerprint
from ostension.model.predictor import Predictor
from ostension.runtime import versions

OUTPUTS = ("probabilities", "logits")
# Logits are up to 100 times cosines, so float32's 1e-7 to 4e-7 of an embedding's coordinate become 1e-5 to 1e-4 of a logit.
PROBABILITY_BOUND = 1e-3
WHAT = "image classifier of Ostension: preprocess as `preprocess` says; column i of `probabilities` is `class_names`[i]"


@dataclasses.dataclass(frozen=True)
class Compared:
    """The file's answers beside the predictor's, on the same inputs.

    Attributes:
        largest: difference of a probability.
        same: how many rows have the same best class.
        rows: of how many.
        sizes: the shapes of the batches.
    """

    largest: float
    same: int
    rows: int
    sizes: tuple[tuple[int, ...], ...]

    def line(self) -> str:
        """In words."""
        shapes = ", ".join("x".join(map(str, size)) for size in self.sizes)
        same = f"the same best class for {self.same} of {self.rows} ({shapes})"
        return f"largest difference of a probability {self.largest:.2g}, {same}"


class PredictorGraph(nn.Module):
    """What is recorded."""

    weights: Tensor | None

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor
        # Registered, so that the recorder finds their weights; what the graph does not use is not written.
        self.encoder, self.addition = predictor.encoder, getattr(predictor, "module", None)
        weights = getattr(predictor, "weights", None)
        own = type(predictor).logits is not Predictor.logits and getattr(predictor, "_own_logits", True)
        self.register_buffer("weights", None if own or weights is None else (predictor.scale * weights.double()).float())
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.predictor.features(pixels)
        logits = self.predictor.logits(features) if self.weights is None else features.float() @ self.weights.T
        return logits.float().softmax(dim=-1), logits.float()


def write_predictor_onnx(
    predictor: Predictor, target: str | os.PathLike, *, opset: int = OPSET, overwrite: bool = False
) -> Compared:
    """Write a predictor as the file `target`, whole or not at all; gives how far it is from the predictor.

    Weights past 2 GB lie beside it, in `target`.data.

    Raises:
        CheckpointError: if the graph gives other answers than the predictor, or the file is there or cannot be written.
        ConfigError: for a predictor that cannot be recorded.
        MissingExtraError: without the packages for it.
    """
    path = Path(target)
    check_exportable(predictor, path)
    if path.exists() and not overwrite:
        raise CheckpointError("is there already", source=path, fix="choose another file, or overwrite (--overwrite)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            graph = PredictorGraph(predictor)
            what = f"a predictor of the kind {predictor.kind!r}"
            record_onnx(
                graph, example_input(predictor.encoder, "image"), made, what=what, names=((INPUTS["image"],), OUTPUTS),
                sizes={0: torch.export.Dim("batch")}, opset=opset,
            )  # fmt: skip
            _narrow(made)
            found = compared(predictor, made)
            _describe(made, facts(predictor, found))
            for one in sorted(Path(scratch).iterdir(), reverse=True):  # what lies beside the graph before the graph
                with open(one, "rb") as handle:
                    os.fsync(handle.fileno())
                one.replace(path.with_name(one.name))
        fsync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", source=path) from None
    return found


def check_exportable(predictor: Predictor, target: Path) -> None:
    """Refuse what no graph of pixels to probabilities can hold, before anything is computed.

    Raises:
        ConfigError: for a file that is not called .onnx, and for such predictors.
    """
    if target.suffix != ".onnx":
        raise ConfigError(f"the file is to be called {target.name!r}", expected="a name that ends in .onnx")
    why = {"batch": "looks at a whole batch", "views": "looks at many views of a picture"}.get(predictor.depends)
    if predictor.takes != "pictures":
        why = "classifies videos"
    if why is not None:
        raise ConfigError(f"a {predictor.kind!r} predictor {why}, and cannot be one graph of pixels to probabilities")
    if predictor.encoder is None or isinstance(predictor.encoder, EngineEncoder):
        raise ConfigError("the predictor's model has no weights here", fix="give the folder of its weights (--model)")


def compared(predictor: Predictor, path: Path) -> Compared:
    """The file in onnxruntime beside the predictor, on pictures and noise in batches of several sizes.

    Raises:
        CheckpointError: if they differ by more than rounding explains.
        ConfigError: if the file does not take batches of any size.
    """
    session = open_session(path, "onnx", "float32")
    largest, same, rows, batches = 0.0, 0, 0, probe_batches(predictor.encoder, "image")
    for batch in batches:
        with torch.no_grad():
            ours = predictor.forward(batch).double().softmax(dim=-1).numpy()
        try:
            theirs = np.asarray(session(batch.numpy(), OUTPUTS[:1])[0])
        except CheckpointError:  # the recorder kept the number of rows that it saw
            what = f"a {predictor.kind!r} predictor cannot be recorded as a graph with a free batch size"
            raise ConfigError(what, fix="export its model's towers (ostension export onnx)") from None
        if theirs.shape != ours.shape:
            raise CheckpointError(f"the recorded graph gives {theirs.shape}", source=path.name, expected=f"{ours.shape}")
        largest = max(largest, float(np.abs(ours - theirs).max()))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        rows += len(batch)
    found = Compared(largest, same, rows, tuple(tuple(batch.shape) for batch in batches))
    if not largest <= PROBABILITY_BOUND:  # also for what is not a number
        raise CheckpointError(
            f"the recorded graph gives other answers: {found.line()}", source=path.name,
            expected=f"a largest difference of {PROBABILITY_BOUND:.0e}", fix="nothing was written",
        )  # fmt: skip
    return found


def facts(predictor: Predictor, found: Compared) -> dict[str, str]:
    """What the file says of itself: JSON texts by name."""
    config = predictor.encoder.config
    preprocess = {
        "input": f"{INPUTS['image']}: float32 (batch, 3, {config.preprocess.image_size}, {config.preprocess.image_size}), RGB",
        "steps": steps(predictor.encoder.transform.config), **to_tree(predictor.encoder.transform.config),
    }  # fmt: skip
    tree: Mapping[str, Any] = {
        "class_names": list(predictor.class_names), "preprocess": preprocess, "templates": list(predictor.templates),
        "predictor": {"kind": predictor.kind, "encoder": config.name, "fingerprint": fingerprint(predictor.encoder)},
        "difference": {"probability": found.largest, "rows": found.rows}, "versions": versions(),
    }  # fmt: skip
    return {name: json.dumps(value, ensure_ascii=False) for name, value in tree.items()}


def steps(config: Any) -> list[str]:
    """The preprocessing in words, in its order."""
    size, way = config.image_size, config.interpolation
    resize = {
        "shortest": f"resize the short side to {config.short_side or size} pixels, the long one in proportion (rounded down)",
        "squash": f"resize to {size} x {size} pixels",
        "longest": f"resize the long side to {size} pixels, pad to {size} x {size} with the value {config.fill}",
    }[config.resize]
    listed = ["apply the EXIF orientation" if config.exif else "leave the EXIF orientation out"]
    listed.append("composite transparency on white, as RGB" if config.alpha == "white" else "drop transparency, as RGB")
    listed.append(f"{resize}, {way} with antialiasing (as Pillow does), as bytes")
    if config.resize == "shortest":
        listed.append(f"cut {size} x {size} pixels from the middle, at half the rest rounded {config.crop_rounding}")
    return [*listed, "divide by 255, subtract `mean`, divide by `std`, channel by channel", "channels first"]


def _narrow(path: Path) -> None:
    """float64 as float32, in a graph whose large tensors are float32 already."""
    onnx = require_extra("onnx", "export")
    model = onnx.load(str(path), load_external_data=False)
    wide, narrow = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for tensor in _tensors(onnx, model.graph):
        if tensor.data_type == wide:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == wide:
                attribute.i = narrow
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == wide:
            value.type.tensor_type.elem_type = narrow
    onnx.save(model, str(path))


def _tensors(onnx: Any, graph: Any) -> Sequence[Any]:
    """Initial values, and those that stand in nodes."""
    within = [one.t for node in graph.node for one in node.attribute if one.type == onnx.AttributeProto.TENSOR]
    return [*graph.initializer, *within]


def _describe(path: Path, texts: Mapping[str, str]) -> None:
    onnx = require_extra("onnx", "export")
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, dict(texts))
    model.doc_string = WHAT
    onnx.save(model, str(path))
