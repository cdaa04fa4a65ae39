"""A folder with exported towers, and everything that is needed to use them without the model that they came from.

    export.json       what the graphs are of, take and give, how far from the model each was, versions
    image.onnx, text.onnx (and .onnx.data where they are large), image.int8.onnx ...; image.xml and image.bin for OpenVINO
    config.json       both towers, preprocessing and tokenizer, as in a model's folder
    tokenizer.json    and what else the tokenizer saves
    provenance.json   where the weights came from
    manifest.json     size and SHA-256 of every file

Nothing in it is code or a pickle.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from ostension.export.graphs import INPUTS, OUTPUTS, SIDES
from ostension.files import read_json, write_json
from ostension.formats import ours
from ostension.formats.manifest import plain_file_name, verify, write_manifest
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.runtime import versions

RECORD = "export.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One exported graph.

    Attributes:
        side: "image" or "text".
        file: its name in the folder; `.onnx` or `.xml`.
        precision: of its weights and products as they are written: "float32", "float16" (weights only) or "int8".
        free_length: whether token rows may be shorter than the context length.
        difference: from the model in float32: `largest` and `cosine` of unit rows.
        made: how, for a quantised one.
    """

    side: str
    file: str
    precision: str
    free_length: bool
    difference: Mapping[str, float]
    made: Mapping[str, Any] | None = None

    @property
    def form(self) -> str:
        """Which engine's own file it is."""
        return "openvino" if self.file.endswith(".xml") else "onnx"


@dataclasses.dataclass(frozen=True)
class ExportFolder:
    """What a folder holds."""

    path: Path
    config: ModelConfig
    weights: str
    logit_scale: float
    logit_bias: float | None
    graphs: tuple[GraphFile, ...]
    provenance: Mapping[str, Any]

    def find(self, side: str, engine: str, quantised: bool) -> GraphFile | None:
        """The graph of one side that an engine can read; OpenVINO's own form before ONNX."""
        forms = ("openvino", "onnx") if engine == "openvino" else ("onnx",)
        for form in forms:
            for graph in self.graphs:
                if graph.side == side and graph.form == form and (graph.precision == "int8") == quantised:
                    return graph
        return None


def is_export(path: str | os.PathLike) -> bool:
    """Whether a folder holds exported towers."""
    return (Path(path) / RECORD).is_file()


def write_rest(
    model: CLIP, folder: Path, *, weights: str, graphs: Sequence[GraphFile], facts: Mapping[str, Any]
) -> None:
    """Write everything but the graphs, the manifest last.

    Args:
        weights: the model's fingerprint.
        facts: more to record, such as the exporter's settings.
    """
    write_json(folder / ours.CONFIG, to_tree(model.config))
    try:
        model.tokenizer.save(folder)
    except (CheckpointError, ConfigError, MissingExtraError):
        pass  # a model without its tokenizer's file: images and token ids only, as in its own folder
    write_json(folder / ours.PROVENANCE, {"versions": versions(), **model.provenance})
    size, length = model.config.vision.image_size, model.config.text.context_length
    record = {
        "format": FORMAT,
        "name": model.config.name,
        "weights": weights,
        "logit_scale": float(model.logit_scale.detach()),
        "logit_bias": None if model.logit_bias is None else float(model.logit_bias.detach()),
        "inputs": {
            INPUTS["image"]: {"type": "float32", "shape": ["batch", 3, size, size], "from": "config.json: preprocess"},
            INPUTS["text"]: {"type": "int64", "shape": ["batch", f"up to {length}"], "from": "tokenizer.json"},
        },
        "outputs": {
            OUTPUTS[0]: ["batch", model.config.embed_dim],
            OUTPUTS[1]: "the same, as unit rows",
            OUTPUTS[2]: "before the projection",
        },
        "graphs": [dataclasses.asdict(graph) for graph in graphs],
        **facts,
    }  # fmt: skip
    write_json(folder / RECORD, record)
    write_manifest(folder)


def open_export(path: str | os.PathLike, *, check: bool = True) -> ExportFolder:
    """The folder's contents.

    Args:
        check: compare the files with their manifest.

    Raises:
        CheckpointError: for a folder that is none, or damaged.
    """
    folder = Path(path)
    if not is_export(folder):
        raise CheckpointError(f"has no {RECORD}", source=folder, expected="a folder that `ostension export` wrote")
    if check:
        verify(folder, quick=True)
    record = read_json(folder / RECORD, CheckpointError)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError("not an export's record of this version", source=folder / RECORD, expected=f"format {FORMAT}")
    try:
        graphs = tuple(GraphFile(**entry) for entry in record["graphs"])
        config = ours.read_config(read_json(folder / ours.CONFIG, CheckpointError), folder / ours.CONFIG)
        bias = record["logit_bias"]
        found = ExportFolder(
            folder, config, str(record["weights"]), float(record["logit_scale"]), None if bias is None else float(bias), graphs,
            read_json(folder / ours.PROVENANCE, CheckpointError),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not a usable record: {error!r}", source=folder / RECORD) from None
    for graph in graphs:
        plain_file_name(graph.file, folder / RECORD)
        if graph.side not in SIDES or not (folder / graph.file).is_file():
            raise CheckpointError(f"names {graph.file!r}, which is not there", source=folder / RECORD)
    return found


def tokenizer_of(opened: ExportFolder) -> Any:
    """The tokenizer in the folder.

    Raises:
        CheckpointError, ConfigError, DataError, MissingExtraError: if there is none, or it cannot be read.
    """
    from ostension.text.tokenizer import build_tokenizer

    config = opened.config.tokenizer
    own_file = config.kind in ("sentencepiece", "wordpiece", "hf_fast")
    try:
        return build_tokenizer(config, opened.path if own_file else None)
    except FileNotFoundError as error:
        raise DataError(f"no tokenizer file: {error}", source=opened.path) from None
