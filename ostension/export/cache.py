"""Where exported graphs and choices of engines are kept between runs: a folder of the user's.

`OSTENSION_CACHE`, else `XDG_CACHE_HOME`/ostension, else ~/.cache/ostension. Everything in it can be deleted at any time.
A graph is kept under its weights to the last bit, and the versions that decide how it is written.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import tempfile
from pathlib import Path

import torch

import ostension
from ostension.errors import CheckpointError
from ostension.export.folder import FORMAT, ExportFolder, is_export, open_export
from ostension.export.onnx import OPSET
from ostension.files import sha256_json
from ostension.formats.quick_sum import QuickSum
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint

logger = logging.getLogger("ostension.export")
VARIABLE = "OSTENSION_CACHE"
_temporary: dict[str, tempfile.TemporaryDirectory] = {}  # of this process, where the cache folder cannot be written


def cache_folder(given: str | os.PathLike | None = None) -> Path:
    """The folder, which may not exist yet."""
    if given is not None:
        return Path(given)
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ostension"


def cached_export(model: CLIP, cache: str | os.PathLike | None = None) -> ExportFolder:
    """The model's graphs in ONNX, written now if they are not there, or not whole: cleaners of disks take single files.

    Two processes that want the same one at a time both write it; the second finds it there and uses it.

    Raises:
        CheckpointError, ConfigError, MissingExtraError: as `write_export`.
    """
    from ostension.export.write import write_export

    target = cache_folder(cache) / "engines" / _key(model)
    if (opened := _usable(target)) is not None:
        return opened
    place = _writable(target)
    if place != target:
        logger.warning("%s cannot be written to: exported for this process only", cache_folder(cache))
        if (opened := _usable(place)) is not None:
            return opened
    logger.info("exporting %s once, into %s", model.config.name, place)
    try:
        write_export(model, place, overwrite=True)
    except CheckpointError:
        if (opened := _usable(place)) is None:
            raise
        return opened  # another process was faster
    return open_export(place)


def _key(model: CLIP) -> str:
    """The name of a model's graphs: of its weights to the last bit, and of all that decides how they are written."""
    packages = {name: version_of(name) for name in ("onnx", "onnxscript")}
    facts = [FORMAT, OPSET, identity(model), ostension.__version__, torch.__version__, packages]
    return sha256_json(facts)[:16]


def identity(model: CLIP) -> str:
    """What tells a model from all others. Its fingerprint does not: that sees weights in bfloat16, where two steps of a
    training or two temperatures may look the same.
    """
    exact = QuickSum()
    for name, value in sorted(model.state_dict().items()):
        exact.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        if value.numel():
            exact.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{fingerprint(model)}-{exact.value()}"


def version_of(package: str) -> str:
    """Of an installed package; "missing" where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _usable(folder: Path) -> ExportFolder | None:
    """The export in a folder of the cache, or None where there is none that is whole."""
    if not is_export(folder):
        return None
    try:
        return open_export(folder)
    except CheckpointError as error:
        logger.warning("damaged, and written anew: %s", error)
        return None


def _writable(target: Path) -> Path:
    """`target`, or a folder of this process's where it cannot be made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.access(target.parent, os.W_OK):
            return target
    except OSError:
        pass
    held = _temporary.get(target.name)
    if held is None:
        held = _temporary[target.name] = tempfile.TemporaryDirectory(prefix="ostension-engines-")
    return Path(held.name) / "export"
