"""Export a model's towers into a folder, each graph compared with the model before the folder takes its name."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.export.folder import GraphFile, write_rest
from ostension.export.graphs import OUTPUTS, SIDES, free_length, tower_graph
from ostension.export.onnx import OPSET, example_input, write_onnx
from ostension.export.parity import FLOAT32_BOUND, Difference, compare, encoder_of, probe_batches
from ostension.export.sessions import Precision, Session, open_session
from ostension.formats.convert import as_float32
from ostension.formats.manifest import whole_folder
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint

Form = Literal["onnx", "openvino"]
Say = Callable[[str], None]
# float16 weights keep 11 bits of each number; measured 3e-4 over 12 blocks.
FLOAT16_BOUND = 2e-2


def write_export(
    model: CLIP,
    target: str | os.PathLike,
    *,
    form: Form = "onnx",
    sides: Sequence[str] = SIDES,
    opset: int = OPSET,
    half: bool = False,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> list[GraphFile]:
    """Write the towers `sides` of `model` into the folder `target`, whole or not at all.

    Args:
        form: ONNX files, or OpenVINO's.
        opset: version of ONNX's operators.
        half: OpenVINO's weights in float16, half as large on the disk.
        say: told of each graph and how far it is from the model.

    Raises:
        CheckpointError: if a graph gives other embeddings than the model, or the folder cannot be written.
        ConfigError: for a tower that cannot be exported.
        MissingExtraError: without the packages for it.
    """
    plain = as_float32(model).eval()
    try:
        with whole_folder(Path(target), overwrite=overwrite) as partial:
            graphs = [_write_side(plain, side, partial, form, opset, half, say) for side in sides]
            facts = {"exporter": f"torch {torch.__version__}, torch.export", "opset": opset}
            write_rest(model, partial, weights=fingerprint(model), graphs=graphs, facts=facts)
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", source=target) from None
    return graphs


def _write_side(model: CLIP, side: str, folder: Path, form: Form, opset: int, half: bool, say: Say) -> GraphFile:
    """One graph in the folder, compared."""
    free = side == "text" and free_length(model)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.{side}.") as scratch:
        path = (folder if form == "onnx" else Path(scratch)) / f"{side}.onnx"
        write_onnx(
            tower_graph(model, side), side, example_input(model, side), path,
            free_length=free, context_length=model.config.text.context_length, opset=opset,
        )  # fmt: skip
        if form == "openvino":
            path = write_openvino(path, folder / f"{side}.xml", half=half)
    found = checked(model, side, path, form, FLOAT16_BOUND if half else FLOAT32_BOUND)
    say(f"{path.name}: {found.line()}")
    return GraphFile(
        side=side, file=path.name, precision="float16" if half else "float32", free_length=free, difference=numbers(found)
    )


def write_openvino(source: Path, target: Path, *, half: bool = False) -> Path:
    """An ONNX file in OpenVINO's own form, an `.xml` with a `.bin` beside it.

    It is read by the runtime and not by `openvino.convert_model`, which would report its use to Intel.
    """
    from ostension.errors import require_extra

    openvino = require_extra("openvino", "openvino")
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
