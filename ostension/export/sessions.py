"""An exported graph, ready to run: in onnxruntime, or in OpenVINO.

Both take and give numpy arrays in float32 (int64 for token ids) and run on as many threads as torch is set to. Neither
tells anybody that it runs: onnxruntime's events are switched off, and OpenVINO is imported without what sends its reports
(docs/decisions/engines.md).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ostension.errors import CheckpointError, ConfigError, require_extra

Engine = Literal["onnx", "openvino"]
Precision = Literal["float32", "bfloat16", "int8"]
ENGINES: tuple[Engine, ...] = ("onnx", "openvino")
PACKAGES = {"onnx": ("onnxruntime", "export"), "openvino": ("openvino", "openvino")}


class Session(Protocol):
    """A graph that runs.

    Attributes:
        inputs, outputs: the names of what it takes and gives.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, inputs: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """The named outputs.

        Raises:
            CheckpointError: if the graph does not run on them.
        """
        ...


def open_session(path: Path, engine: Engine, precision: Precision, threads: int | None = None) -> Session:
    """The graph in a file.

    Args:
        path: an `.onnx` file for either engine, or OpenVINO's own `.xml`.
        precision: in which to compute. "int8" says that the file is quantised.
        threads: None for torch's number.

    Raises:
        CheckpointError: for a file that the engine cannot read.
        ConfigError: for a precision that the engine does not have.
        MissingExtraError: without its package.
    """
    threads = threads or torch.get_num_threads()
    if engine == "onnx":
        return OnnxSession(path, precision, threads)
    return OpenVinoSession(path, precision, threads)


class OnnxSession:
    """A graph in onnxruntime, on the processor."""

    def __init__(self, path: Path, precision: Precision, threads: int):
        if precision == "bfloat16":
            raise ConfigError("onnxruntime has no bfloat16 on a processor", expected="float32, or int8 of a quantised file")
        runtime = require_extra(*PACKAGES["onnx"])
        runtime.disable_telemetry_events()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that spin while they wait take the cores from decoding and tokenising.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; they come back as exceptions
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, of which there are many
            raise _unusable(path, "onnxruntime cannot read it", error) from None
        self._path = path
        self.inputs = tuple(one.name for one in self._session.get_inputs())
        self.outputs = tuple(one.name for one in self._session.get_outputs())

    def __call__(self, inputs: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        try:
            return self._session.run(list(outputs), {self.inputs[0]: inputs})
        except Exception as error:  # a graph of other types or sizes than its folder says, or one too large for the memory
            raise _unusable(self._path, "onnxruntime cannot run it", error) from None


class OpenVinoSession:
    """A graph in OpenVINO, on the processor."""

    def __init__(self, path: Path, precision: Precision, threads: int):
        core = _openvino_core()
        half = has_bfloat16()
        # What of a quantised graph is not in int8 may as well be in bfloat16: a tenth faster, and no further off.
        hint = "bf16" if precision == "bfloat16" or (precision == "int8" and half) else "f32"
        if precision == "bfloat16" and not half:
            raise ConfigError("OpenVINO has no bfloat16 on this processor", expected="float32")
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # several processes of one run would all be bound to the first cores
        }
        try:
            compiled = core.compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise _unusable(path, "OpenVINO cannot read it", error) from None
        self._path = path
        self._places = {name: index for index, output in enumerate(compiled.outputs) for name in output.names}
        self.inputs = tuple(name for one in compiled.inputs for name in one.names)
        self.outputs = tuple(self._places)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # a request holds the tensors of one call

    def __call__(self, inputs: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        with self._lock:
            try:
                found = self._request.infer([inputs], share_inputs=True)
            except RuntimeError as error:
                raise _unusable(self._path, "OpenVINO cannot run it", error) from None
            return [found[self._places[name]] for name in outputs]


def import_openvino() -> Any:
    """The package OpenVINO, without the sender of reports that its import would make.

    Where `openvino_telemetry` cannot be imported, OpenVINO uses a stand-in of its own that does nothing.

    Raises:
        MissingExtraError: if it is not installed.
    """
    sender = "openvino_telemetry"
    if "openvino" in sys.modules or sender in sys.modules:
        return require_extra(*PACKAGES["openvino"])
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        return require_extra(*PACKAGES["openvino"])
    finally:
        del sys.modules[sender]


@functools.cache
def _openvino_core() -> Any:
    return import_openvino().Core()


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 here: the processor has it, and oneDNN, which it calls, is not held below that.

    With ONEDNN_MAX_CPU_ISA=AVX2 OpenVINO still says that it can, and then compiles nothing.
    """
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    free = held in ("ALL", "DEFAULT") or any(name in held for name in ("BF16", "FP16", "AMX", "AVX10"))
    return free and "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def available(engine: Engine) -> bool:
    """Whether the engine's package is installed."""
    import importlib.util

    return importlib.util.find_spec(PACKAGES[engine][0]) is not None


def precisions(engine: Engine) -> tuple[Precision, ...]:
    """In what the engine can compute a float32 file here, the fastest first."""
    if engine == "openvino" and has_bfloat16():
        return ("bfloat16", "float32")
    return ("float32",)


def _unusable(path: Path, what: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{what}: {reason}", source=path, fix="export the model again")
