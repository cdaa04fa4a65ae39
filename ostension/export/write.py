"""Export a model's towers into a folder, each graph compared with the model before the folder takes its name."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.errors import CheckpointError, ConfigError
from ostension.export.calibration import Calibration
from ostension.export.folder import ExportFolder, GraphFile, open_export, write_rest
from ostension.export.graphs import OUTPUTS, SIDES, free_length, tower_graph
from ostension.export.onnx import OPSET, example_input, write_onnx
from ostension.export.parity import FLOAT32_BOUND, Difference, compare, encoder_of, probe_batches
from ostension.export.quantize import quantise
from ostension.export.sessions import Precision, Session, import_openvino, open_session
from ostension.formats.convert import as_float32
from ostension.formats.manifest import whole_folder
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint

Form = Literal["onnx", "openvino"]
Say = Callable[[str], None]
Judge = Callable[[ExportFolder], Mapping[str, Any]]
# float16 weights keep 11 bits of each number; measured 3e-4 over 12 blocks.
FLOAT16_BOUND = 2e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How graphs are written.

    Attributes:
        form: ONNX files, or OpenVINO's.
        sides: which towers.
        opset: version of ONNX's operators.
        half: OpenVINO's weights in float16, half as large on the disk.
        int8: quantised graphs (`export.quantize`), whose difference is told and not bounded.
        calibration: inputs for int8 with fixed ranges; None for ranges found at run time.
        seven_bits: of `quantise`.
    """

    form: Form = "onnx"
    sides: tuple[str, ...] = SIDES
    opset: int = OPSET
    half: bool = False
    int8: bool = False
    calibration: Calibration | None = None
    seven_bits: bool = False

    def __post_init__(self):
        if self.int8 and self.form == "openvino" and self.calibration is None:
            raise ConfigError("OpenVINO gains from int8 with fixed ranges only", fix="give --calibration PICTURES")
        if self.half and (self.int8 or self.form != "openvino"):
            raise ConfigError("weights in float16 are OpenVINO's", expected="its form, and not int8 too")

    @property
    def precision(self) -> str:
        """Of what is written."""
        return "int8" if self.int8 else "float16" if self.half else "float32"


def write_export(
    model: CLIP, target: str | os.PathLike, options: Options | None = None, *, overwrite: bool = False,
    say: Say = lambda line: None, judge: Judge = lambda opened: {},
) -> list[GraphFile]:
    """Write towers of `model` into the folder `target`, whole or not at all.

    Args:
        say: told of each graph and how far it is from the model.
        judge: called with the finished folder before it takes its name; what it gives is recorded.

    Raises:
        CheckpointError: if a graph gives other embeddings than the model, or the folder cannot be written.
        ConfigError: for a tower that cannot be exported.
        MissingExtraError: without the packages for it.
    """
    options = options or Options()
    plain, weights = as_float32(model).eval(), fingerprint(model)
    facts: dict[str, Any] = {"exporter": f"torch {torch.__version__}, torch.export", "opset": options.opset}
    try:
        with whole_folder(Path(target), overwrite=overwrite) as partial:
            graphs = [_write_side(plain, side, partial, options, say) for side in options.sides]
            write_rest(model, partial, weights=weights, graphs=graphs, facts=facts)
            judged = judge(open_export(partial, check=False))
            if judged:
                write_rest(model, partial, weights=weights, graphs=graphs, facts={**facts, **judged})
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", source=target) from None
    return graphs


def _write_side(model: CLIP, side: str, folder: Path, options: Options, say: Say) -> GraphFile:
    """One graph in the folder, compared."""
    made = None
    with tempfile.TemporaryDirectory(dir=folder) as name:  # inside, so that what a killed process leaves goes with the rest
        scratch = Path(name)
        path = _record(model, side, scratch, options.opset)
        if options.int8:
            checked(model, side, path, "onnx", FLOAT32_BOUND)  # what is wrong before is not a matter of rounding
            found = options.calibration
            batches = None if found is None else found.pixels if side == "image" else found.tokens
            target = scratch / f"{side}.int8.onnx"
            made = quantise(path, target, scratch, calibration=batches, seven_bits=options.seven_bits)
            path = target
        if options.form == "openvino":
            path = write_openvino(path, folder / f"{path.stem}.xml", half=options.half)
        else:
            path = _move(path, folder)
    bound = math.inf if options.int8 else FLOAT16_BOUND if options.half else FLOAT32_BOUND
    difference = checked(model, side, path, options.form, bound, "int8" if options.int8 else "float32")
    say(f"{path.name}: {difference.line()}")
    return GraphFile(
        side=side, file=path.name, precision=options.precision, free_length=side == "text" and free_length(model),
        difference=numbers(difference), made=made,
    )  # fmt: skip


def _record(model: CLIP, side: str, folder: Path, opset: int) -> Path:
    """One tower as a float32 graph in ONNX."""
    path = folder / f"{side}.onnx"
    write_onnx(
        tower_graph(model, side), side, example_input(model, side), path,
        free_length=side == "text" and free_length(model), context_length=model.config.text.context_length, opset=opset,
    )  # fmt: skip
    return path


def _move(path: Path, folder: Path) -> Path:
    """The graph in `folder`, with its weights where they lie beside it; the names are part of the graph."""
    for one in path.parent.glob(path.name + "*"):
        one.rename(folder / one.name)
    return folder / path.name


def write_openvino(source: Path, target: Path, *, half: bool = False) -> Path:
    """An ONNX file in OpenVINO's own form, an `.xml` with a `.bin` beside it.

    It is read by the runtime and not by `openvino.convert_model`, which sends reports of its use.
    """
    openvino = import_openvino()
    openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=half)
    return target


def checked(model: CLIP, side: str, path: Path, form: Form, bound: float, precision: Precision = "float32") -> Difference:
    """How far the graph in a file is from the model, on inputs of several sizes.

    Raises:
        CheckpointError: if it is further than `bound`.
    """
    found = compare(encoder_of(model, side), through(open_session(path, form, precision)), probe_batches(model, side))
    if not found.largest <= bound:  # also for what is not a number
        raise CheckpointError(
            f"the exported {side} tower gives other embeddings: {found.line()}", source=path.name,
            expected=f"a largest difference of {bound:.0e}", fix="nothing was written",
        )  # fmt: skip
    return found


def through(session: Session) -> Callable[[Tensor], Tensor]:
    """A session's plain embeddings, from tensor to tensor."""
    return lambda inputs: torch.from_numpy(np.asarray(session(inputs.numpy(), OUTPUTS[:1])[0]))


def numbers(found: Difference) -> Mapping[str, Any]:
    """What the record keeps of a difference."""
    tree = dataclasses.asdict(found)
    return {key: tree[key] for key in ("largest", "cosine", "rows")}
