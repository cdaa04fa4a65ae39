"""A set of embeddings as it was when it was opened: rows, ids, labels and whatever else is known of each row.

What is open stays as it is: files are never changed after the manifest names them. A writer that appends makes new ones.

Letters: N rows, E embedding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.errors import ConfigError, DataError, unknown_name
from ostension.files import sha256_file
from ostension.store.key import ModelKey, SetKey
from ostension.store.manifest import Manifest, read_manifest
from ostension.store.rows import BLOCK_ROWS, Rows
from ostension.store.shards import ROWS, SIDECAR, Sidecar, open_rows

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

MAPPED = 128  # shards whose files are mapped at a time; a map holds a file open, and systems allow about a thousand
TRIES = 20


class EmbeddingSet:
    """The rows of one key.

    Args:
        folder: the set's folder.
        model: what must have made it, if given.

    Attributes:
        rows: (N, E), read as needed; see `Rows`.
        key: what the rows are of.
        position: samples of the source that are done.
        complete: whether the source is done.

    Raises:
        DataError: if files are missing or of another size than the manifest says, or another model made the rows.
    """

    def __init__(self, folder: str | Path, *, model: CLIP | ModelKey | None = None):
        self.folder = Path(folder)
        for tries in range(TRIES):
            self.manifest = read_manifest(self.folder)
            try:
                self._open()
                break
            except DataError:
                # A writer may have replaced what this manifest names.
                if tries + 1 == TRIES or read_manifest(self.folder).serial == self.manifest.serial:
                    raise
        if model is not None:
            (model if isinstance(model, ModelKey) else ModelKey.of(model)).check(self.key, self.folder)

    def _open(self) -> None:
        manifest, folder = self.manifest, self.folder
        self._part = functools.lru_cache(maxsize=MAPPED)(
            lambda part: open_rows(folder, manifest.shards[part], manifest.width, manifest.key.stored)
        )
        self._sidecar = functools.lru_cache(maxsize=MAPPED)(lambda part: Sidecar(folder, manifest.shards[part]))
        for part, shard in enumerate(manifest.shards):
            if part < MAPPED:
                self._part(part)
                self._sidecar(part)
            else:
                check_sizes(folder, shard)
        live = None
        if manifest.deleted is not None:
            deleted = read_deleted(folder, manifest)
            live = np.setdiff1d(np.arange(manifest.num_stored), deleted, assume_unique=True)
        counts = [shard.rows for shard in manifest.shards]
        dtype = np.dtype(manifest.key.stored).newbyteorder("<")
        self.rows = Rows(counts, self._part, manifest.width, dtype, live)

    @property
    def key(self) -> SetKey:
        return self.manifest.key

    @property
    def position(self) -> int:
        return self.manifest.position

    @property
    def complete(self) -> bool:
        return self.manifest.complete

    @property
    def width(self) -> int:
        """E; 0 in an empty set that was never written to."""
        return self.manifest.width

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is known of each row."""
        return tuple(self.manifest.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        return f"EmbeddingSet({len(self):,} x {self.width} {self.key.stored}, {self.key.level}{state}, {self.folder})"

    def column(self, name: str, rows: Sequence[int] | np.ndarray | None = None) -> list[str] | np.ndarray:
        """Values of a column, of all rows or of some.

        Raises:
            ConfigError: for a column that the set does not have.
        """
        if name not in self.manifest.columns:
            raise unknown_name("column", name, self.manifest.columns, source=self.folder)
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        text = self.manifest.columns[name] == "text"
        parts, places = self.rows.locate(wanted)
        out: np.ndarray = np.empty(len(wanted), object)
        numbers: list[np.ndarray] = []
        order: list[np.ndarray] = []
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            values = self._sidecar(int(part)).column(name, places[here])  # type: ignore[arg-type]
            if text:
                out[here] = values
            else:
                numbers.append(values)  # type: ignore[arg-type]
                order.append(here)
        if text:
            return out.tolist()
        joined = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        back = np.concatenate(order) if order else np.zeros(0, np.int64)
        found = np.empty_like(joined)
        found[back] = joined
        return found

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [] if not len(self) else self.column("id")  # type: ignore[return-value]

    def numbers(self, ids: Sequence[str]) -> np.ndarray:
        """The row number of each of these ids, the first one of an id that comes twice.

        Raises:
            ConfigError: for an id that the set does not have.
        """
        known: dict[str, int] = {}
        for row, name in enumerate(self.ids):
            known.setdefault(name, row)
        for name in ids:
            if name not in known:
                raise ConfigError(f"no row has the id {name!r}", source=self.folder)
        return np.array([known[name] for name in ids], dtype=np.int64)

    def rejects(self, shards: Sequence[int] | None = None) -> list[tuple[str, str]]:
        """Samples of the source that have no row, with the reasons; of all shards or of some."""
        return [(key, reason) for key, reason, _ in self.reject_records(shards)]

    def reject_records(self, shards: Sequence[int] | None = None) -> list[tuple[str, str, int]]:
        """The same, each with the digest of its bytes, 0 where that is not known."""
        found = []
        for part in range(len(self.manifest.shards)) if shards is None else shards:
            if self.manifest.shards[part].rejects:
                found += self._sidecar(part).rejects
        return found

    def verify(self) -> None:
        """Read everything and compare it with the manifest's hashes.

        Raises:
            DataError: for a file with another content, a row that is not finite or all zeros, or an id that comes twice.
        """
        for part, shard in enumerate(self.manifest.shards):
            for suffix, expected in ((ROWS, shard.rows_sha256), (SIDECAR, shard.sidecar_sha256)):
                path = self.folder / (shard.name + suffix)
                found = sha256_file(path)
                if found != expected:
                    raise DataError(f"has the hash {found[:16]}", source=path, expected=f"{expected[:16]} by the manifest")
            rows = self._part(part)
            for start in range(0, len(rows), BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS].astype(np.float32)
                bad = ~np.isfinite(block).all(axis=1) | ~block.any(axis=1)
                if bad.any():
                    source = self.folder / (shard.name + ROWS)
                    raise DataError(f"row {start + int(bad.argmax())} is not finite or all zeros", source=source)
        if self.manifest.deleted is not None:
            path = self.folder / self.manifest.deleted.name
            if sha256_file(path) != self.manifest.deleted.sha256:
                raise DataError("has another hash than the manifest says", source=path)
        if "id" in self.columns:
            ordered = sorted(self.ids)
            twice = next((name for name, after in itertools.pairwise(ordered) if name == after), None)
            if twice is not None:
                raise DataError(f"the id {twice!r} comes twice", source=self.folder, expected="every id once")

    def reopen(self) -> EmbeddingSet:
        """The set as it is now."""
        return EmbeddingSet(self.folder)


def check_sizes(folder: Path, shard: Any) -> None:
    """Compare the sizes of a shard's files with the manifest, without opening them.

    Raises:
        DataError: naming the file.
    """
    for suffix, size in ((ROWS, shard.rows_bytes), (SIDECAR, shard.sidecar_bytes)):
        path = folder / (shard.name + suffix)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", source=path) from None
        if found != size:
            raise DataError(f"has {found} bytes", source=path, expected=f"{size} by the manifest")


def read_deleted(folder: Path, manifest: Manifest) -> np.ndarray:
    """Numbers of the stored rows that were deleted, ascending.

    Raises:
        DataError: if the file is missing or damaged.
    """
    if manifest.deleted is None:
        return np.zeros(0, np.int64)
    path = folder / manifest.deleted.name
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read ({error})", source=path) from None
    if rows.dtype != np.int64 or rows.shape != (manifest.deleted.count,):
        raise DataError(f"numbers of shape {rows.shape}", source=path, expected=f"({manifest.deleted.count},) by the manifest")
    return rows
