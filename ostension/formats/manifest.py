"""A model folder that is whole or absent, with a list of its files' sizes and SHA-256 that a load checks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ostension.errors import CheckpointError
from ostension.files import PARTIAL_SUFFIX, fsync_folder, read_json, sha256_file, write_json
from ostension.formats.quick_sum import quick_sum_file

MANIFEST = "manifest.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Sums:
    """What tells a file from others: its name for good, and the sum that is compared in passing (see `quick_sum`)."""

    sha256: str
    quick: str

    @classmethod
    def of(cls, path: Path) -> Sums:
        return cls(sha256_file(path), quick_sum_file(path))


def write_manifest(folder: Path, known: Mapping[str, Sums] | None = None) -> dict[str, str]:
    """Write `manifest.json` over every file of `folder`; gives the files' SHA-256.

    Args:
        known: by name, of files that were summed while they were written.
    """
    known = known or {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    entries = {
        path.name: {"bytes": path.stat().st_size, **dataclasses.asdict(known.get(path.name) or Sums.of(path))} for path in files
    }
    write_json(folder / MANIFEST, {"version": _VERSION, "files": entries})
    return {name: str(entry["sha256"]) for name, entry in entries.items()}


def verify(folder: Path, *, quick: bool = False, summed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Compare every file of the manifest with what is in `folder`; gives the files' SHA-256.

    Costs one pass over the files: about half a second a gigabyte here (SHA-256 of one core).

    Args:
        quick: compare the quick sums, in a fifth of the time; SHA-256 where a manifest has no others.
        summed: quick sums of files, by name, that were taken while they were read.

    Raises:
        CheckpointError: if the manifest is missing or malformed, or a file is missing or not the one that was saved.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"no {MANIFEST}, so the files cannot be checked",
            source=folder,
            fix="copy the whole folder again, or load with verify=False",
        )
    hashes = {}
    for name, (size, digest, sum_) in _entries(path).items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"the file {name!r} of the manifest is missing", source=folder, fix="copy the folder again")
        found = file.stat().st_size
        if found != size:
            raise CheckpointError(
                f"the file {name!r} has {found} bytes",
                source=folder,
                expected=f"{size}, as when it was saved",
                fix="copy the folder again",
            )
        by_sum = quick and sum_ is not None
        known = (summed or {}).get(name)
        if ((known or quick_sum_file(file)) != sum_) if by_sum else (sha256_file(file) != digest):
            raise CheckpointError(
                f"the file {name!r} is not the one that was saved (its {'checksum' if by_sum else 'SHA-256'} differs)",
                source=folder,
                fix="copy the folder again",
            )
        hashes[name] = digest
    return hashes


def recorded(folder: Path) -> dict[str, Sums]:
    """What the manifest says of each file, without looking at the files; no quick sum is "".

    Raises:
        CheckpointError: if the manifest is missing or malformed.
    """
    return {name: Sums(digest, sum_ or "") for name, (_, digest, sum_) in _entries(folder / MANIFEST).items()}


def _entries(path: Path) -> dict[str, tuple[int, str, str | None]]:
    """Sizes, SHA-256, and quick sums, which folders of earlier versions lack."""
    tree = read_json(path, CheckpointError)
    files = tree.get("files") if isinstance(tree, Mapping) else None
    if not isinstance(files, Mapping) or tree.get("version") != _VERSION:
        raise CheckpointError(
            "is not a manifest of this version", source=path, expected=f"version {_VERSION} and a table of files"
        )
    entries = {}
    for name, entry in files.items():
        plain_file_name(name, path)
        if (
            not isinstance(entry, Mapping)
            or not isinstance(entry.get("bytes"), int)
            or not isinstance(entry.get("sha256"), str)
            or not isinstance(entry.get("quick", ""), str)
        ):
            raise CheckpointError(f"the entry of {name!r} is malformed", source=path, expected="bytes and sha256")
        entries[name] = (entry["bytes"], entry["sha256"], entry.get("quick") or None)
    return entries


def plain_file_name(name: object, source: Path) -> str:
    """`name`, if it is the name of a file in a folder and nothing that leads out of it.

    Raises:
        CheckpointError: for an absolute path, a path with folders, "..", or what is not a name.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(f"names the file {name!r}", source=source, expected="a plain file name in the same folder")
    return name


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `target`; on leaving without an error, flush it and rename it to `target`.

    After an error, or when the process dies, whatever stood at `target` is untouched. What a dead process left beside it is
    removed by the next one.

    Raises:
        CheckpointError: if `target` is a file, or a folder with something in it and `overwrite` is not set.
    """
    replaced = target.with_name(f".{target.name}.replaced")
    _settle(target, replaced)
    occupied = target.is_dir() and any(target.iterdir())
    if target.exists() and not target.is_dir():
        raise CheckpointError("is a file", source=target, expected="a folder to write a model to")
    if occupied and not overwrite:
        raise CheckpointError(
            "already has something in it", source=target, fix="choose another folder, or overwrite (--overwrite)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    owner = f".{target.name}.{platform.node()}.{os.getpid()}."
    partial = Path(tempfile.mkdtemp(prefix=owner, suffix=PARTIAL_SUFFIX, dir=target.parent))
    try:
        partial.chmod(0o755)
        yield partial
        for path in partial.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        fsync_folder(partial)
        if occupied:
            # Two renames: in between there is no folder at `target`, but both are whole, and `_settle` finds them.
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(target: Path, replaced: Path) -> None:
    """Put back, or away, what a process had replaced when it died."""
    if replaced.is_dir() and target.exists():
        shutil.rmtree(replaced)
    elif replaced.is_dir():
        replaced.rename(target)


def _remove_leftovers(target: Path) -> None:
    """Remove what processes of this machine that are no longer alive were writing for `target`."""
    owned = f".{target.name}.{platform.node()}."
    for path in target.parent.glob(f".*{PARTIAL_SUFFIX}"):
        pid = path.name.removeprefix(owned).split(".", 1)[0]
        if not path.name.startswith(owned) or not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # alive, and somebody else's
