"""Where exported graphs and choices of engines are kept between runs: a folder of the user's.

`OSTENSION_CACHE`, else `XDG_CACHE_HOME`/ostension, else ~/.cache/ostension. Everything in it can be deleted at any time.
A graph is kept under the fingerprint of its weights and the versions that decide how it is written.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import torch

import ostension
from ostension.errors import CheckpointError
from ostension.export.folder import RECORD, ExportFolder, open_export
from ostension.files import sha256_json
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
    """The model's graphs in ONNX, written now if they are not there.

    Two processes that want the same one at a time both write it; the second finds it there and uses it.
    """
    from ostension.export.write import write_export

    weights = fingerprint(model)
    rounded = "" if model.dtype == torch.float32 else str(model.dtype)
    key = sha256_json([weights, rounded, ostension.__version__, torch.__version__])[:16]
    target = cache_folder(cache) / "engines" / key
    if not (target / RECORD).is_file():
        place = _writable(target)
        if place != target:
            logger.warning("%s cannot be written to: exported for this process only", cache_folder(cache))
        target = place
        if not (target / RECORD).is_file():
            logger.info("exporting %s once, into %s", model.config.name, target)
            try:
                write_export(model, target)
            except CheckpointError:
                if not (target / RECORD).is_file():  # another process was faster
                    raise
    return open_export(target)


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
