"""A float32 graph in ONNX as one in int8: weights by channel, and activations by calibration or at run time.

    static   activations have fixed ranges, found on calibration inputs. Both engines run it; convolutions gain too.
    dynamic  each product finds the range of its input when it runs. No data is needed; only onnxruntime gains, and
             convolutions stay in float32.

What is no product with weights (softmax, LayerNorm, the products inside attention) stays in float32.
Source: onnxruntime.quantization; which of the forms pays was measured (docs/decisions/engines.md).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ostension.errors import ConfigError, require_extra
from ostension.export.onnx import EMBEDDED_BYTES

PRODUCTS = ("MatMul", "Gemm")


def quantise(
    source: Path, target: Path, scratch: Path, *, calibration: Sequence[Tensor] | None, seven_bits: bool = False
) -> dict[str, Any]:
    """Write the int8 form of the graph `source` to `target`; gives what was done, for the record.

    Args:
        scratch: a folder for what lies in between.
        calibration: batches of inputs, for the static form; None for the dynamic one.
        seven_bits: use 7 of the 8 bits of weights, for processors without VNNI, on which sums of 8-bit products overflow.

    Raises:
        ConfigError: for a convolutional tower without calibration.
        MissingExtraError: without onnxruntime.
    """
    onnx = require_extra("onnx", "export")
    quantization = require_extra("onnxruntime.quantization", "export")
    shape_inference = require_extra("onnxruntime.quantization.shape_inference", "export")
    large = source.stat().st_size + sum(path.stat().st_size for path in source.parent.glob(source.name + ".data"))
    outside = large > EMBEDDED_BYTES
    folded = scratch / f"{source.stem}.folded.onnx"
    with _quiet():
        shape_inference.quant_pre_process(
            str(source), str(folded), skip_symbolic_shape=True, save_as_external_data=outside, all_tensors_to_one_file=outside,
            external_data_location=folded.name + ".data" if outside else None,
        )  # fmt: skip
        graph = onnx.load(str(folded), load_external_data=False).graph
        convolutions = sum(node.op_type == "Conv" for node in graph.node)
        options: dict[str, Any] = {
            "per_channel": True,
            "reduce_range": seven_bits,
            "weight_type": quantization.QuantType.QInt8,
            "use_external_data_format": outside,
        }
        if calibration is None:
            if convolutions:
                raise ConfigError(
                    f"the tower has {convolutions} convolutions, which int8 makes faster with fixed ranges only",
                    fix="give --calibration PICTURES",
                )
            quantization.quantize_dynamic(str(folded), str(target), op_types_to_quantize=list(PRODUCTS), **options)
            return {"form": "dynamic", "seven_bits": seven_bits}
        quantization.quantize_static(
            str(folded), str(target), _reader(quantization, graph.input[0].name, calibration),
            quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=[*PRODUCTS, "Conv"],
            nodes_to_exclude=_without_weights(graph), activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax, **options,
        )  # fmt: skip
    rows = sum(len(batch) for batch in calibration)
    return {"form": "static", "seven_bits": seven_bits, "calibration_rows": rows, "ranges": "least and greatest"}


def _without_weights(graph: Any) -> list[str]:
    """The names of products of two activations, which attention is made of."""
    known = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in PRODUCTS and not known.intersection(node.input)]


def _reader(quantization: Any, name: str, batches: Sequence[Tensor]) -> Any:
    """The batches as onnxruntime asks for them."""

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left: Iterator[np.ndarray] = (batch.contiguous().numpy() for batch in batches)

        def get_next(self):
            values = next(self.left, None)
            return None if values is None else {name: values}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime's quantiser logs through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
