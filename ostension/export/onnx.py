"""A graph as an ONNX file, recorded by torch.export.

torch has two exporters. The older one runs the model once and writes down what happened: with our towers it wrote the batch
size of that run into the file and said nothing (seen with torch 2.13: `Concat` of 1 and 2 rows). The newer one knows which
sizes are free and refuses to lose one; it takes seconds a tower, once (docs/decisions/engines.md).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ostension.errors import ConfigError, require_extra
from ostension.export.graphs import INPUTS, OUTPUTS, Graph
from ostension.model.clip import CLIP

OPSET = 20  # the first with GELU as one operator
# Past it weights lie beside the graph: one message of protobuf holds 2 GB.
EMBEDDED_BYTES = 1_500_000_000
PROBE_ROWS = 2  # torch.export takes a size of 1 for a constant


def write_onnx(
    graph: Graph, side: str, example: Tensor, path: Path, *, free_length: bool, context_length: int, opset: int = OPSET
) -> list[Path]:
    """Write the graph of one tower; gives the files, of which the first is `path`.

    Args:
        example: an input of two or more rows; texts of at least two tokens and less than the context length where the
            length is free.

    Raises:
        ConfigError: for a tower that cannot be recorded.
        MissingExtraError: without the packages of the extra `export`.
    """
    sizes: dict[int, object] = {0: torch.export.Dim("batch")}
    if free_length:
        sizes[1] = torch.export.Dim("length", min=2, max=context_length)
    names = ((INPUTS[side],), OUTPUTS)
    return record_onnx(graph, example, path, what=f"the {side} tower", names=names, sizes=sizes, opset=opset)


def record_onnx(
    graph: torch.nn.Module, example: Tensor, path: Path, *, what: str, names: tuple[Sequence[str], Sequence[str]],
    sizes: dict[int, object], opset: int = OPSET,
) -> list[Path]:
    """The same for any module of one input.

    Args:
        what: of the module, for messages.
        names: of the input, and of the outputs.
        sizes: which of the input's are free.

    Raises: as `write_onnx`.
    """
    for module in ("onnx", "onnxscript"):
        require_extra(module, "export")
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                graph, (example,), dynamo=True, input_names=list(names[0]), output_names=list(names[1]),
                dynamic_shapes=(sizes,), opset_version=opset, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise ConfigError(f"{what} cannot be recorded as an ONNX graph: {reason}") from None
    assert program is not None
    written = [one.const_value for one in program.model.graph.initializers.values()]
    outside = sum(value.nbytes for value in written if value is not None) > EMBEDDED_BYTES
    program.save(str(path), external_data=outside)
    beside = path.with_name(path.name + ".data")
    return [path, beside] if beside.is_file() else [path]


def example_input(model: CLIP, side: str) -> Tensor:
    """An input to record with."""
    if side == "image":
        size = model.config.vision.image_size
        return torch.zeros(PROBE_ROWS, 3, size, size)
    text = model.config.text
    length = max(2, text.context_length // 2) if not text.sees_padding else text.context_length
    return torch.ones(PROBE_ROWS, length, dtype=torch.int64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own parts: that torchvision is missing, and of torch's own old calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            # torch 2.13's exporter calls what torch itself has deprecated (LeafSpec).
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="(torch|onnxscript|onnx_ir|onnx|copyreg)")
            yield
    finally:
        logger.disabled = before
