"""One file from the network, only where the user allows it: its size and its hash must be those of the record."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from ostension.data.task_parts import Source
from ostension.errors import ConfigError, DataError
from ostension.files import atomic_path

CHUNK = 1 << 20
TIMEOUT_S = 60


def fetch(source: Source, root: Path, *, allowed: bool) -> Path:
    """The file of a source at `root/path`, fetched from its URL if it is not there.

    Raises:
        ConfigError: if fetching is not allowed.
        DataError: if the file cannot be fetched, or is not the one that the record names; nothing is kept then.
    """
    assert source.url is not None and source.sha256 is not None and source.num_bytes is not None
    target = root / source.path
    if target.exists():
        return target
    if not allowed:
        what = f"is not here, and fetching {source.num_bytes / 1e6:,.1f} MB from {source.url} is not allowed"
        raise ConfigError(what, source=target, fix="allow it with --download")
    digest, size = hashlib.sha256(), 0
    with atomic_path(target) as temporary:
        try:
            with urllib.request.urlopen(source.url, timeout=TIMEOUT_S) as answer, open(temporary, "wb") as handle:
                while chunk := answer.read(CHUNK):
                    size += len(chunk)
                    if size > source.num_bytes:
                        break
                    digest.update(chunk)
                    handle.write(chunk)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DataError(f"cannot be fetched: {error}", source=source.url) from None
        if size != source.num_bytes:
            found = f"more than {source.num_bytes:,}" if size > source.num_bytes else f"{size:,}"
            raise DataError(f"has {found} bytes", source=source.url, expected=f"{source.num_bytes:,}, as the record says")
        if digest.hexdigest() != source.sha256:
            what = f"has the SHA-256 {digest.hexdigest()}"
            raise DataError(what, source=source.url, expected=f"{source.sha256}, as the record says")
    return target
