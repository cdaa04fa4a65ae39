"""A predictor on disk: its own tensors, a JSON record, and the fingerprint and place of the encoder that it was made with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

import ostension
from ostension import files, runtime
from ostension.errors import CheckpointError
from ostension.model.fingerprint import fingerprint

FORMAT = 1
RECORD, TENSORS = "predictor.json", "predictor.safetensors"
KEYS = {"format", "kind", "settings", "tensors_sha256", "class_list_sha256", "prompts_sha256", "encoder", "versions"}


def write_predictor(
    folder: Path,
    *,
    kind: str,
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    encoder: Any,
) -> None:
    """Write tensors and record; the record comes last and holds the checksum, so a save cut short is refused on loading.

    Raises:
        DataError: if they cannot be written.
    """
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        "kind": kind,
        "settings": settings,
        "tensors_sha256": files.sha256_bytes(data),
        "class_list_sha256": files.sha256_json(list(class_names)),
        "prompts_sha256": files.sha256_json([list(templates), list(class_names)]),
        "encoder": {
            "name": encoder.config.name,
            "fingerprint": fingerprint(encoder),
            "source": encoder.provenance.get("source"),
        },
        "versions": runtime.versions(),
    }
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(folder / TENSORS, data)
        files.write_json(folder / RECORD, record)


def read_record(folder: Path, kinds: Collection[str]) -> dict[str, Any]:
    """The record of a predictor's folder.

    Raises:
        CheckpointError: if it is missing, damaged, not of this format, or of a kind not in `kinds`.
    """
    if not folder.is_dir():
        raise CheckpointError("no such folder", source=folder, expected=f"a folder with {RECORD}")
    path = folder / RECORD
    if not path.exists():
        raise CheckpointError("holds no predictor", source=folder, expected=f"a folder with {RECORD}")
    record = files.read_json(path, CheckpointError)
    if not isinstance(record, dict) or record.keys() != KEYS or not isinstance(record["encoder"], dict):
        raise CheckpointError("not a predictor's record", source=path, expected="what Predictor.save wrote")
    if record["format"] != FORMAT:
        raise CheckpointError(f"format {record['format']!r}", source=path, expected=f"format {FORMAT}")
    if record["kind"] not in kinds:
        raise CheckpointError(
            f"unknown kind of predictor {record['kind']!r}", source=path, expected=f"one of {', '.join(sorted(kinds))}"
        )
    return record


def read_predictor(folder: Path, kinds: Collection[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors of a predictor's folder.

    Raises:
        CheckpointError: as `read_record`, and for missing or damaged tensors.
    """
    record = read_record(folder, kinds)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", source=folder / TENSORS) from None
    found, wanted = files.sha256_bytes(data), str(record["tensors_sha256"])
    if found != wanted:
        raise CheckpointError(f"SHA-256 {found[:16]}... is not the recorded {wanted[:16]}...", source=folder / TENSORS)
    return record, safetensors.torch.load(data)


def check_class_list(folder: Path, record: dict[str, Any], class_names: Sequence[str]) -> None:
    """Refuse class names other than those that were saved, or in another order.

    Raises:
        CheckpointError: if their hash differs from the recorded one.
    """
    if files.sha256_json(list(class_names)) != record["class_list_sha256"]:
        raise CheckpointError("the class names are not those that were saved", source=folder / RECORD)


def find_encoder(folder: Path, recorded: dict[str, Any], given: Any, **options: Any) -> Any:
    """The encoder that a predictor was made with: the given model or path, or what lies at the recorded place.

    Raises:
        CheckpointError: if there is none, or it is another one than recorded.
    """
    if given is None:
        given = _recorded_place(folder, recorded)
    if not isinstance(given, nn.Module):
        # Through the front door: the readers of model files lie above this row.
        given = ostension.load(given, **options)
    found, wanted = fingerprint(given), recorded.get("fingerprint")
    if found != wanted:
        raise CheckpointError(
            f"made with the encoder {recorded.get('name')!r} {wanted}, and this is {given.config.name!r} {found}",
            source=folder,
            fix="pass the encoder that it was made with",
        )
    return given


def _recorded_place(folder: Path, recorded: dict[str, Any]) -> Path | str:
    source = recorded.get("source")
    if not source:
        raise CheckpointError(
            f"made with {recorded.get('name')!r}, which was not saved at that time",
            source=folder,
            fix="pass its encoder (--model)",
        )
    if source.startswith("hf-hub:"):  # a name, not a path: the hub's cache knows where it lies
        return source
    # Beside the predictor first, so that a folder that holds both can be moved.
    for place in (folder.parent / Path(source).name, Path(source)):
        if place.exists():
            return place
    raise CheckpointError(f"its encoder is no longer at {source}", source=folder, fix="pass the encoder (--model)")
