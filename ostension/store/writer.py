"""Writing a set: shards first, the manifest last, one writer at a time.

A shard's files are written under partial names, flushed, renamed and hashed; then the manifest that names them is renamed
into place. Whoever is killed before that leaves files that nobody knows of, which the next writer removes: at most the
rows of one shard are lost, and the set goes on where the manifest ends.

Letters: N rows, n rows of a shard, E embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.files import LOCK_NAME, atomic_path, folder_lock, sha256_file
from ostension.store.key import SetKey
from ostension.store.manifest import NAME, Deleted, Manifest, read_manifest
from ostension.store.sets import EmbeddingSet, read_deleted
from ostension.store.shards import ROWS, SIDECAR, Column, Reject, checked_columns, checked_rows, write_shard

SHARD_ROWS = 16384  # at 512 float16 numbers a row, 16 MB: what a kill can lose


class Writer:
    """Appends to a set, deletes from it, compacts it; use it in a `with` block, which holds the set's lock.

    On leaving the block, rows that do not fill a shard become a smaller one; after an error they are dropped.

    Args:
        folder: the set's folder.
        key: what the rows are of; None for a set that is there.
        shard_rows: rows of a shard; None leaves it to `commit`.
        merge: make one shard of the last ones while they are no longer than the new one, so that many small additions
            leave few files.
        wait_s: how long to wait for another writer.

    Raises:
        DataError: on entering, if another writer holds the set, or its key is another one.
    """

    def __init__(
        self,
        folder: str | Path,
        key: SetKey | None = None,
        *,
        shard_rows: int | None = SHARD_ROWS,
        merge: bool = False,
        wait_s: float = 0.0,
    ):
        self.folder, self.merge, self.shard_rows = Path(folder), merge, shard_rows
        self._key, self._wait_s = key, wait_s
        self._rows: list[np.ndarray] = []
        self._columns: list[dict[str, Column]] = []

    def __enter__(self) -> Writer:
        if self._key is None:
            read_manifest(self.folder)  # there must be one; else the lock would make a folder
        self._held = contextlib.ExitStack()
        self._held.enter_context(waiting_lock(self.folder, self._wait_s))
        try:
            if (self.folder / NAME).exists():
                self.manifest = read_manifest(self.folder)
                if self._key is not None and self.manifest.key.sha256() != self._key.sha256():
                    raise _other_key(self.manifest.key, self._key, self.folder)
            elif self._key is None:  # another process deleted it while this one waited
                raise DataError("is gone", source=self.folder)
            else:
                self.manifest = Manifest(key=self._key)
                self.manifest.write(self.folder)
            self._remove_leftovers()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self._held.close()

    @property
    def pending(self) -> int:
        """Rows that are not on the disk yet."""
        return sum(map(len, self._rows))

    def append(self, rows: Any, **columns: Column) -> None:
        """Add rows (n, E) with a value of every column for each: `id`, as texts, and others.

        Raises:
            DataError: for rows or columns that the set cannot take (see `checked_rows`); nothing of the call is added.
        """
        manifest = self.manifest
        key = manifest.key
        width = manifest.width or (self._rows[0].shape[1] if self._rows else None)
        names, unit = columns.get("id"), key.level == "post"
        checked = checked_rows(rows, width=width, stored=key.stored, unit=unit, source=self.folder, names=names)  # type: ignore[arg-type]
        found = checked_columns(columns, len(checked), self.folder)
        kinds = {name: "number" if isinstance(values, np.ndarray) else "text" for name, values in found.items()}
        known = manifest.columns or (_kinds(self._columns[0]) if self._columns else kinds)
        if kinds != known:
            what = f"columns {', '.join(map(' '.join, sorted(kinds.items()))) or 'none'}"
            raise DataError(what, source=self.folder, expected=", ".join(map(" ".join, sorted(known.items()))) or "none")
        self._rows.append(checked)
        self._columns.append(found)
        if self.shard_rows is not None and self.pending >= self.shard_rows:
            rows, together = self._taken()
            for start in range(0, len(rows), self.shard_rows):
                part = slice(start, start + self.shard_rows)
                here = {name: values[part] for name, values in together.items()}
                if len(rows[part]) == self.shard_rows:
                    self._write(rows[part], here)
                else:
                    self._rows, self._columns = [rows[part]], [here]

    def commit(
        self,
        *,
        position: int | None = None,
        complete: bool | None = None,
        rejects: Sequence[Reject] = (),
        replaced: Sequence[int] | np.ndarray = (),
    ) -> None:
        """Make a shard of the rows that wait, and the manifest that names it.

        Args:
            position: samples of the source that are done now.
            complete: whether the source is done.
            rejects: samples that have no row, with the reasons; kept in the shard.
            replaced: rows that count no more from the moment that the new ones do, by their numbers on the disk (with the
                deleted ones counted).
        """
        assert not (self.merge and len(replaced)), "merging numbers the rows anew"
        changes: dict[str, Any] = {"position": position, "complete": complete}
        facts = {name: value for name, value in changes.items() if value is not None}
        if len(replaced):
            gone = np.union1d(read_deleted(self.folder, self.manifest), np.asarray(replaced, dtype=np.int64))
            facts |= {"deleted": self._deleted_file(gone), "serial": self.manifest.serial + 1}
        if self._rows or rejects:
            rows, columns = self._taken()
            self._write(rows, columns, rejects, facts)
            if len(replaced):
                self._remove_leftovers()
        elif len(replaced):
            self._replace(**facts)
            self._remove_leftovers()
        elif any(getattr(self.manifest, name) != value for name, value in facts.items()):
            self._replace(**facts)

    def delete(self, rows: Sequence[int] | np.ndarray) -> int:
        """Let rows, by their numbers as the set shows them now, count no more; gives how many.

        Raises:
            DataError: for a number that is none.
        """
        assert not self._rows, "commit first"
        opened = EmbeddingSet(self.folder)
        chosen = np.unique(np.asarray(rows, dtype=np.int64))
        if chosen.size and not 0 <= chosen[0] <= chosen[-1] < len(opened):
            what = f"rows {chosen[0]} to {chosen[-1]} are to be deleted"
            raise DataError(what, source=self.folder, expected=f"numbers from 0 to {len(opened) - 1}")
        if not chosen.size:
            return 0
        gone = read_deleted(self.folder, self.manifest)
        live = np.setdiff1d(np.arange(self.manifest.num_stored), gone, assume_unique=True)
        deleted = self._deleted_file(np.union1d(gone, live[chosen]))
        self._replace(deleted=deleted, serial=self.manifest.serial + 1)
        self._remove_leftovers()
        return len(chosen)

    def _deleted_file(self, gone: np.ndarray) -> Deleted:
        """A new file of rows that count no more, which nothing knows of yet."""
        path = self.folder / f"deleted-{self.manifest.serial:06d}.npy"
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as handle:
                np.save(handle, gone)
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=path, fix="make room, then run it again") from None
        return Deleted(name=path.name, count=len(gone), sha256=sha256_file(path))

    def compact(self) -> None:
        """Write the rows that count anew, in full shards, and remove the old files."""
        assert not self._rows, "commit first"
        opened = EmbeddingSet(self.folder)
        size = self.shard_rows or SHARD_ROWS
        shards, serial = [], self.manifest.serial
        rejects: Sequence[Reject] = opened.reject_records()
        for start in range(0, max(len(opened), len(rejects) > 0), size):
            chosen = range(start, min(start + size, len(opened)))
            columns = {name: opened.column(name, chosen) for name in opened.columns}
            rows = opened.rows[start : start + size]
            shards.append(write_shard(self.folder, f"rows-{serial:06d}", rows, columns, rejects))
            serial, rejects = serial + 1, []
        self._replace(shards=tuple(shards), serial=serial, deleted=None)
        self._remove_leftovers()

    def _taken(self) -> tuple[np.ndarray, dict[str, Column]]:
        """The rows and columns that wait, which then wait no more."""
        if not self._rows:
            kinds = self.manifest.columns
            nothing: dict[str, Column] = {name: [] if kind == "text" else np.zeros(0, np.int64) for name, kind in kinds.items()}
            return np.zeros((0, self.manifest.width), np.dtype(self.manifest.key.stored).newbyteorder("<")), nothing
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        columns = {name: _joined([part[name] for part in self._columns]) for name in self._columns[0]}
        self._rows, self._columns = [], []
        return rows, columns

    def _write(
        self,
        rows: np.ndarray,
        columns: Mapping[str, Column],
        rejects: Sequence[Reject] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """A new shard; with `merge`, together with those before it that are no longer."""
        manifest = self.manifest
        kept = len(manifest.shards)
        if self.merge and manifest.deleted is None:
            count = len(rows)
            while kept and manifest.shards[kept - 1].rows <= count <= (self.shard_rows or SHARD_ROWS):
                kept -= 1
                count += manifest.shards[kept].rows
        if kept < len(manifest.shards):
            opened = EmbeddingSet(self.folder)
            first = sum(shard.rows for shard in manifest.shards[:kept])
            chosen = range(first, len(opened))
            rows = np.concatenate([opened.rows[first:], rows])
            columns = {name: _joined([opened.column(name, chosen), columns[name]]) for name in columns}
            rejects = [*opened.reject_records(range(kept, len(manifest.shards))), *rejects]
        shard = write_shard(self.folder, f"rows-{manifest.serial:06d}", rows, columns, rejects)
        self._replace(
            shards=(*manifest.shards[:kept], shard),
            **{"serial": manifest.serial + 1, "width": rows.shape[1], "columns": _kinds(columns), **(facts or {})},
        )
        if kept < len(manifest.shards):
            self._remove_leftovers()

    def _replace(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        self.manifest.write(self.folder)

    def _remove_leftovers(self) -> None:
        """Remove what a killed writer left, and what the manifest does not name any more."""
        known = {NAME, LOCK_NAME, self.manifest.deleted.name if self.manifest.deleted else NAME}
        known |= {shard.name + suffix for shard in self.manifest.shards for suffix in (ROWS, SIDECAR)}
        for path in self.folder.iterdir():
            if path.name not in known and path.name.startswith((".", "rows-", "deleted-")):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def waiting_lock(folder: Path, wait_s: float) -> Any:
    """Hold a folder alone, after waiting for it if need be.

    Raises:
        DataError: if another holds it for longer.
    """
    until = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder_lock(folder))
                break
            except OSError as error:
                raise DataError(f"cannot be written: {error.strerror}", source=folder) from None
            except DataError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.02)
        yield


def _kinds(columns: Mapping[str, Column]) -> dict[str, str]:
    return {name: "number" if isinstance(values, np.ndarray) else "text" for name, values in columns.items()}


def _joined(parts: Sequence[Column]) -> Column:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [text for part in parts for text in part]


def _other_key(theirs: SetKey, ours: SetKey, folder: Path) -> DataError:
    if theirs.weights != ours.weights:
        what, expected = f"holds embeddings of the model {theirs.weights[:16]}", f"{ours.weights[:16]}"
    else:
        what, expected = f"holds embeddings of the key {theirs.sha256()[:16]}", f"{ours.sha256()[:16]}"
    return DataError(what, source=folder, expected=expected, fix="keep them in sets of their own")
