"""Files that are either whole or absent: atomic writes, checksums, locks and JSON that explains itself.

Every file of the system is written to a temporary name in the same folder, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ostension.errors import DataError, OstensionError

PARTIAL_SUFFIX = ".partial"
LOCK_NAME = ".lock"


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving without an error, flush it and rename it to `path`.

    After an error the temporary file is removed and whatever stood at `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """While entered, what the system says of a file or folder that cannot be written becomes one line.

    Raises:
        DataError: if the disk is full, something is in the way, or the folder may not be written to.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise DataError(what, source=path, fix="make room or give another folder, then run it again") from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, tree: Any) -> None:
    """Write a JSON tree to `path` atomically; non-finite numbers are refused, for they are not JSON."""
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, error: type[OstensionError] = DataError) -> Any:
    """The JSON tree in `path`.

    Raises:
        error: if the file is missing, not UTF-8 or not JSON (the message names the line).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("no such file", source=path, expected="a JSON file") from None
    except UnicodeDecodeError as problem:
        raise error(f"not UTF-8 at byte {problem.start}", source=path, expected="a JSON file") from None
    except json.JSONDecodeError as problem:
        raise error(f"not JSON: {problem.msg} at line {problem.lineno}", source=path, expected="a JSON file") from None
    except (RecursionError, ValueError):  # nested without end, or a number of thousands of digits
        raise error("not JSON that can be read: nested too deep, or with endless numbers", source=path) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror}", source=path) from None


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(tree: Any) -> str:
    """The SHA-256 of a JSON tree in canonical form (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` for this process alone until the block ends, or the process dies (the kernel releases it).

    Raises:
        DataError: if another process holds it; the message names its process id.
    """
    import fcntl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / LOCK_NAME, "a+", encoding="utf-8")
    try:
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)  # `is_locked` holds it for an instant
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise DataError(
                f"in use by another run (process {owner})", source=folder, fix="wait for it to end or choose another folder"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
    finally:
        handle.close()


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether a process that lives holds `folder` with `folder_lock`; nothing is created."""
    import fcntl

    try:
        handle = open(Path(folder) / LOCK_NAME, encoding="utf-8")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
