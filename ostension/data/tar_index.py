"""The index of a tar shard: where each pair's image, texts and metadata lie, so that any pair is one read away.

An index is a file, `NAME.tar.idx`, made on first use beside the shard, or in the cache folder where the shard's folder
cannot be written or the shard lies at a URL. It is read through a memory map: worker processes share it, and opening it
costs nothing per pair. It pins the shard by size and SHA-256; a shard that has changed since is refused.

Members are grouped as webdataset does: the key is the path up to the first dot of its last part, the rest is the suffix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.arrays import MappedArrays, cache_folder, cannot_write, joined_texts, one_at_a_time, text_at, write_arrays
from ostension.data.pairs import IMAGE_SUFFIXES, image_digest
from ostension.data.remote import RemoteFile
from ostension.data.tar_scan import TornArchive, scan
from ostension.errors import DataError
from ostension.files import sha256_file, sha256_json

KIND = "tar 2"
NO_TEXT = "image without text"
INDEX_SUFFIX = ".idx"
_PARTS = ("image", "text", "json")
_ARRAYS = ("key_ends", "keys", *_PARTS, "digest")
_FACTS = {"tar_size": int, "tar_sha256": str, "tar_mtime_ns": int, "rejects": dict, "torn": str | None}
_NOT_TAR = {
    b"\x1f\x8b": "a gzip file",
    b"BZ": "a bzip2 file",
    b"PK": "a zip file",
    b"<": "HTML or XML",
    b"{": "JSON",
    b"PAR1": "Parquet",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the images of one shard that have a text, JSON or both, and what belongs to them, lie.

    Attributes:
        key_ends, keys: the keys, see `arrays.joined_texts`.
        image, text, json: offset and size of each row's members, (N, 2); size -1 where there is none.
        digest: a 64-bit hash of each image.
        tar_size, tar_sha256, tar_mtime_ns: the shard that was indexed.
        rejects: members and keys that no row stands for, counted by reason.
        torn: where the shard breaks off, or None.
    """

    key_ends: np.ndarray
    keys: np.ndarray
    image: np.ndarray
    text: np.ndarray
    json: np.ndarray
    digest: np.ndarray
    tar_size: int
    tar_sha256: str
    tar_mtime_ns: int
    rejects: dict[str, int]
    torn: str | None

    def __len__(self) -> int:
        return len(self.digest)

    def key(self, row: int) -> str:
        """The key of a row."""
        return text_at(self.keys, self.key_ends, row)


def build_index(path: Path) -> ShardIndex:
    """Read a shard once and give its index.

    Raises:
        DataError: if the file is missing, empty, not a tar archive, or an archive without members.
    """
    status = _stat(path)
    with open(path, "rb") as handle:

        def pread(offset: int, count: int) -> bytes:
            return os.pread(handle.fileno(), count, offset)

        groups, torn = _Groups(), None
        try:
            for member in scan(pread, status.st_size):
                groups.add(member.name, member.offset, member.size, member.problem)
        except TornArchive as error:
            torn = str(error)
            if not groups.num_members:
                what = _kind_of(pread(0, 512)) or f"not a tar archive ({torn})"
                raise DataError(what, source=path, expected="an uncompressed tar shard") from None
        if not groups.num_members:
            raise DataError("an archive without members", source=path, expected="a tar shard with images and texts")
        rows = list(groups.rows())
        digests = [image_digest(pread(*parts[0])) for _, parts in rows]
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    keys, key_ends = joined_texts([key for key, _ in rows])
    spans = np.array([parts for _, parts in rows], dtype=np.int64).reshape(len(rows), 3, 2)
    return ShardIndex(
        key_ends=key_ends,
        keys=keys,
        image=spans[:, 0],
        text=spans[:, 1],
        json=spans[:, 2],
        digest=np.array(digests, dtype=np.uint64),
        tar_size=status.st_size,
        tar_sha256=sha256,
        tar_mtime_ns=status.st_mtime_ns,
        rejects=groups.rejects,
        torn=torn,
    )


def save_index(index: ShardIndex, path: Path) -> None:
    """Write an index atomically."""
    write_arrays(path, KIND, {name: getattr(index, name) for name in _ARRAYS}, {name: getattr(index, name) for name in _FACTS})


def load_index(path: Path) -> ShardIndex:
    """An index from its file, through a memory map.

    Raises:
        DataError: if the file is torn, of another version, or points outside its shard.
    """
    fix = "delete it, or run: ostension data index --force SHARD"
    try:
        found = MappedArrays(path, KIND)
    except DataError as error:
        raise DataError(error.what, source=path, fix=fix) from None
    try:
        values: dict[str, Any] = {**found.facts, **{name: found[name] for name in _ARRAYS}}
        index = ShardIndex(**values)
        _check(index)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"an index that contradicts itself ({error})", source=path, fix=fix) from None
    return index


def open_index(path: Path | RemoteFile, folder: Path | None = None, *, verified_mtime_ns: int | None = None) -> ShardIndex:
    """The index of a shard: read, or made and kept where that is possible.

    Args:
        folder: keep the index there, not beside the shard.
        verified_mtime_ns: time of change at which the content was compared before (by the process that sent this one).

    Raises:
        DataError: if the shard is no tar archive, or is not the one that was indexed.
    """
    index = _kept(path, folder, verified_mtime_ns)
    if index is not None:
        return index
    places = index_places(path, folder)
    with one_at_a_time(places[-1].name):
        index = _kept(path, folder, verified_mtime_ns)
        if index is not None:
            return index
        if isinstance(path, RemoteFile):
            with path.downloaded() as local:
                try:
                    index = build_index(local)
                except DataError as error:
                    raise DataError(error.what, source=path, expected=error.expected) from None
        else:
            index = build_index(path)
        problem: OSError | None = None
        for place in places:
            try:
                save_index(index, place)
            except OSError as error:
                problem = error
                continue
            return load_index(place)
        assert problem is not None
        raise cannot_write(places[-1], problem)


def _kept(path: Path | RemoteFile, folder: Path | None, verified_mtime_ns: int | None) -> ShardIndex | None:
    """The index that was kept, if there is one."""
    status = None if isinstance(path, RemoteFile) else _stat(path)
    for place in index_places(path, folder):
        if place.is_file():
            index = load_index(place)
            if isinstance(path, Path):
                assert status is not None
                _refuse_changed(path, status, index, place, verified_mtime_ns)
            return index
    return None


def index_places(path: Path | RemoteFile, folder: Path | None = None) -> list[Path]:
    """Where the index of a shard may lie, in order of preference: beside it, then in the cache folder."""
    if isinstance(path, RemoteFile):  # another size or version is another file, and gets another index
        return [(folder or cache_folder("index")) / (sha256_json(path.cache_key())[:32] + INDEX_SUFFIX)]
    cached = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32] + INDEX_SUFFIX
    return [folder / cached] if folder else [path.with_name(path.name + INDEX_SUFFIX), cache_folder("index") / cached]


def _check(index: ShardIndex) -> None:
    for name, kind in _FACTS.items():
        if not isinstance(getattr(index, name), kind):
            raise ValueError(f"{name} is {getattr(index, name)!r}")
    count = len(index.digest)
    shapes = {"key_ends": (count,), "image": (count, 2), "text": (count, 2), "json": (count, 2)}
    for name, shape in shapes.items():
        if getattr(index, name).shape != shape:
            raise ValueError(f"{name} has the shape {getattr(index, name).shape}, not {shape}")
    if count and (index.key_ends[0] < 0 or (np.diff(index.key_ends) < 0).any() or index.key_ends[-1] != len(index.keys)):
        raise ValueError("its keys overlap")
    for name in _PARTS:
        start, size = getattr(index, name)[:, 0], getattr(index, name)[:, 1]
        lowest = 0 if name == "image" else -1
        if count and (start.min() < 0 or size.min() < lowest or (start > index.tar_size - np.maximum(size, 0)).any()):
            raise ValueError(f"a span of {name} lies outside the shard")
    if (np.maximum(index.text[:, 1], index.json[:, 1]) < 0).any():
        raise ValueError("an image without text and JSON")


def _refuse_changed(path: Path, status: os.stat_result, index: ShardIndex, place: Path, verified_mtime_ns: int | None) -> None:
    fix = f"restore the shard; if the change is meant, run: ostension data index --force {path}"
    if status.st_size != index.tar_size:
        raise DataError(
            f"changed since it was indexed: {status.st_size} bytes, the index says {index.tar_size}", source=path, fix=fix
        )
    # A copy or a checkout changes the time but not the content, so only then is it hashed.
    if status.st_mtime_ns not in (index.tar_mtime_ns, verified_mtime_ns) and sha256_file(path) != index.tar_sha256:
        raise DataError(f"changed since it was indexed: its SHA-256 is not the one in {place.name}", source=path, fix=fix)


def _kind_of(start: bytes) -> str | None:
    """What a file that is no tar archive seems to be, from its first bytes."""
    if not start:
        return "an empty file"
    return next((f"{what}, not a tar archive" for magic, what in _NOT_TAR.items() if start.lstrip().startswith(magic)), None)


def _stat(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        what = f"cannot be read: {(error.strerror or 'no such file').lower()}"
        raise DataError(what, source=path, expected="a tar shard") from None
    if not path.is_file():
        raise DataError("not a file", source=path, expected="a tar shard")
    return status


class _Groups:
    """Members by key, in the order in which the keys appear."""

    def __init__(self) -> None:
        self.rejects: dict[str, int] = {}
        self.num_members = 0
        self._parts: dict[str, list[tuple[int, int] | None]] = {}

    def add(self, name: str, offset: int, size: int, problem: str | None) -> None:
        self.num_members += 1
        if problem:
            self._reject(problem)
            return
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        slot = 0 if suffix in IMAGE_SUFFIXES else 1 if suffix == "txt" else 2 if suffix == "json" else None
        if slot is None or not stem:
            self._reject("member of another kind")
            return
        parts = self._parts.setdefault(folder + slash + stem, [None, None, None])
        if parts[slot] is not None:
            self._reject(("a second image", "a second text", "a second json")[slot] + " under one key")
            return
        parts[slot] = (offset, size)

    def rows(self) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        for key, (image, text, metadata) in self._parts.items():
            if image is None:
                self._reject("text without image" if text else "neither image nor text")
            elif text is None and metadata is None:
                self._reject(NO_TEXT)
            else:
                yield key, [image, text or (0, -1), metadata or (0, -1)]

    def _reject(self, reason: str) -> None:
        self.rejects[reason] = self.rejects.get(reason, 0) + 1
