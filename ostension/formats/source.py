"""From what a user names to files: a folder, a weight file, `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from ostension.errors import CheckpointError
from ostension.files import read_json
from ostension.formats import hf_clip, open_clip, ours, siglip
from ostension.formats.manifest import plain_file_name

HUB, LOCAL = "hf-hub:", "local-dir:"
_HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")
_INDEX = ".index.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes:
        name: where to find it again: an absolute path, or the name on the hub.
        folder: where the neighbours of the weights are (configurations, tokenizer).
        files: the weights: one file, or the shards of one model.
        revision: the commit on the hub, where it came from there.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The file that messages name."""
        return self.files[0]

    @property
    def public_name(self) -> str:
        """The name without the folders of this machine."""
        return public_name(self.name)


def public_name(name: str) -> str:
    """A `Source.name` without the folders of this machine, for records that travel with the model."""
    return name if name.startswith(HUB) else Path(name).name


def find(name: str | os.PathLike, layout: str | None = None) -> Source:
    """The files of a model.

    Args:
        layout: the layout to read, where a folder holds several.

    Raises:
        CheckpointError: if there is no such file or folder, no weights in it, or several without saying which.
        MissingExtraError: for a name on the hub without the extra `hub`.
    """
    text = os.fspath(name)
    if text.startswith(HUB):
        from ostension.formats.hub import fetch

        folder, revision = fetch(text.removeprefix(HUB), layout)
        return Source(text, folder, _weights_in(folder, layout), revision)
    path = Path(text.removeprefix(LOCAL)).expanduser()
    if text.startswith(LOCAL) and not path.is_dir():
        raise CheckpointError("is not a folder", source=path, expected="the folder of a model after 'local-dir:'")
    if path.is_dir():
        return Source(str(path.absolute()), path, _weights_in(path, layout))
    if path.exists():
        return Source(str(path.absolute()), path.parent, _shards(path) if path.name.endswith(_INDEX) else (path,))
    raise CheckpointError(
        "no such file or folder", source=text, expected="a model's folder or weight file, or hf-hub:ORG/NAME", fix=_hint(text)
    )


def choose_weights(names: Collection[str], layout: str | None) -> str | None:
    """The weight file, or the index of its parts, to read of a folder with files called `names`."""
    if layout in (hf_clip.NAME, siglip.NAME):
        order: tuple[str, ...] = _HF_FILES
    elif open_clip.CONFIG in names:
        order = open_clip.WEIGHT_FILES + tuple(name for name in _HF_FILES if name.endswith(_INDEX))
    else:
        order = (ours.WEIGHTS, *_HF_FILES)
    found = next((name for name in order if name in names), None)
    if found is not None:
        return found
    rest = sorted(name for name in names if name.endswith(_SUFFIXES) and name != "tokenizer.model")
    return rest[0] if len(rest) == 1 else None


def _weights_in(folder: Path, layout: str | None) -> tuple[Path, ...]:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    chosen = choose_weights(names, layout)
    if chosen is not None:
        return _shards(folder / chosen) if chosen.endswith(_INDEX) else (folder / chosen,)
    if ".metadata" in names:
        raise CheckpointError(
            "is a sharded training checkpoint",
            source=folder,
            expected="a model",
            fix="merge it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
        )
    several = sorted(name for name in names if name.endswith(_SUFFIXES))
    if several:
        raise CheckpointError(
            f"holds several weight files ({', '.join(several[:5])})", source=folder, fix="name the file to load"
        )
    shown = ", ".join(sorted(names)[:5]) or "nothing"
    fix = "what `ostension export` wrote runs in an engine: --engine onnx or openvino" if "export.json" in names else None
    raise CheckpointError(f"holds no weights (it has {shown})", source=folder, expected="the folder of a model", fix=fix)


def _shards(index: Path) -> tuple[Path, ...]:
    tree = read_json(index, CheckpointError)
    table = tree.get("weight_map") if isinstance(tree, Mapping) else None
    if not isinstance(table, Mapping) or not table:
        raise CheckpointError("has no table 'weight_map'", source=index, expected="the index of a model in parts")
    files = tuple(index.parent / plain_file_name(name, index) for name in sorted(set(table.values()), key=str))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"the part {file.name!r} is missing", source=index, fix="copy or download the folder again")
    return files


def _hint(text: str) -> str | None:
    from ostension.model.presets import preset_names

    if text in preset_names():
        return f"{text} is an architecture without weights (in Python: CLIP(preset({text!r})) gives random ones)"
    parts = text.split("/")
    if len(parts) == 2 and all(parts) and not text.startswith((".", "~")):
        return f"for a model on the Hugging Face hub write {HUB}{text}"
    return None
