"""A store: a folder with one folder a set, found by what they are of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ostension.errors import DataError
from ostension.store.key import Kind, Level, ModelKey, SetKey
from ostension.store.manifest import NAME, read_manifest
from ostension.store.sets import EmbeddingSet
from ostension.store.writer import SHARD_ROWS, Writer

if TYPE_CHECKING:
    from ostension.model.clip import CLIP


class Store:
    """The sets of embeddings below a folder, which is made with the first set.

    Several processes may read and write at once; each set has one writer at a time.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise DataError("is not a folder", source=self.path, expected="a store, or a name that is free")

    def folder(self, key: SetKey) -> Path:
        """Where the set of a key lies, or would lie."""
        return self.path / key.folder

    def keys(self) -> dict[str, SetKey]:
        """The keys of all sets, by the names of their folders.

        Raises:
            DataError: for a manifest that is damaged.
        """
        if not self.path.is_dir():
            return {}
        folders = sorted(entry for entry in self.path.iterdir() if (entry / NAME).is_file())
        return {folder.name: read_manifest(folder).key for folder in folders}

    def find(
        self,
        model: CLIP | ModelKey | None = None,
        *,
        kind: Kind = "images",
        data: str | None = None,
        split: str | None = None,
        level: Level = "post",
        view: int = 0,
    ) -> EmbeddingSet:
        """The one set that fits what is given.

        Args:
            model: what made it.
            data: the fingerprint of the source.
            view: the number of the random view; 0 for the model's own preprocessing.

        Raises:
            DataError: if none fits, or several do. If the only sets that fit are another model's or another transform's, the
                message has both hashes.
        """
        fits = [
            (name, key)
            for name, key in self.keys().items()
            if key.kind == kind and key.level == level and (0 if key.view is None else key.view.get("number")) == view
            and data in (None, key.data) and split in (None, key.split)
        ]  # fmt: skip
        if model is not None and fits:
            made = model if isinstance(model, ModelKey) else ModelKey.of(model)
            mine = []
            for name, key in fits:
                try:
                    made.check(key, self.path / name)
                    mine.append((name, key))
                except DataError as error:
                    problem = error
            if not mine:
                raise problem
            fits = mine
        if len(fits) == 1:
            return EmbeddingSet(self.path / fits[0][0])
        if not fits:
            known = "; ".join(f"{name}: {key.level}, split {key.split!r}" for name, key in self.keys().items()) or "it is empty"
            raise DataError(f"no set of {kind} fits", source=self.path, expected=known, fix="embed the data first")
        listed = "; ".join(f"{name}: split {key.split!r}, data {key.data[:12]}, {key.stored}" for name, key in fits)
        raise DataError(f"{len(fits)} sets fit ({listed})", source=self.path, fix="say more of it, or open the folder itself")

    def open(self, key: SetKey) -> EmbeddingSet:
        """The set of a key.

        Raises:
            DataError: if it is not there, or damaged.
        """
        return EmbeddingSet(self.folder(key))

    def writer(self, key: SetKey, *, shard_rows: int | None = SHARD_ROWS, merge: bool = False, wait_s: float = 0.0) -> Writer:
        """A writer of the set of a key, which is made if it is not there."""
        return Writer(self.folder(key), key, shard_rows=shard_rows, merge=merge, wait_s=wait_s)
