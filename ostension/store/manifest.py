"""The manifest of a set: the one file that says which shards there are. It is renamed into place last.

{"format": ..., "key": {...}, "key_sha256": ..., "width": 512, "columns": {"id": "text", ...}, "serial": 3,
 "position": 24576, "complete": false, "deleted": {...} or null, "shards": [{"name": ..., "rows": ..., ...}]}
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ostension.errors import DataError
from ostension.files import read_json, write_json
from ostension.store.key import SetKey
from ostension.store.shards import Shard

NAME = "manifest.json"
FORMAT = "ostension embeddings 1"
_FILE = re.compile(r"rows-\d{6,}|deleted-\d{6,}\.npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deleted:
    """The file with the numbers of the rows that were deleted."""

    name: str
    count: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a set holds.

    Attributes:
        key: what it is of.
        width: E, 0 while there are no rows.
        columns: "text" or "number" by the name of each column.
        serial: the number of the next file.
        position: samples of the source that are done, the rejected ones included.
        complete: whether the source is done.
        deleted: rows that count no more.
        shards: in the order of the rows.
    """

    key: SetKey
    width: int = 0
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    serial: int = 0
    position: int = 0
    complete: bool = False
    deleted: Deleted | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def num_stored(self) -> int:
        """Rows on the disk, the deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Put the manifest into place.

        Raises:
            DataError: if the disk does not take it.
        """
        tree: dict[str, Any] = {"format": FORMAT, "key": self.key.tree(), "key_sha256": self.key.sha256()}
        tree |= {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:-2]}
        tree["deleted"] = None if self.deleted is None else dataclasses.asdict(self.deleted)
        tree["shards"] = [dataclasses.asdict(shard) for shard in self.shards]
        try:
            write_json(folder / NAME, tree)
        except OSError as error:
            fix = "make room, then run it again"
            raise DataError(f"cannot be written: {error.strerror}", source=folder / NAME, fix=fix) from None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set.

    Raises:
        DataError: if there is none, or it is not one of ours, or its key was changed by hand.
    """
    path = folder / NAME
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else None
        raise DataError(f"not the manifest of a set of embeddings (format {found!r})", source=path, expected=repr(FORMAT))
    try:
        key = SetKey.of_tree(tree["key"], path)
        if key.sha256() != tree["key_sha256"]:
            raise DataError(f"the key has the hash {key.sha256()[:16]}", source=path, expected=tree["key_sha256"][:16])
        for name in [entry["name"] for entry in (*tree["shards"], tree["deleted"]) if entry is not None]:
            if not _FILE.fullmatch(name):
                raise DataError(f"names a file {name!r}", source=path, expected="a file of its own")
        return Manifest(
            key=key,
            deleted=None if tree["deleted"] is None else Deleted(**tree["deleted"]),
            shards=tuple(Shard(**shard) for shard in tree["shards"]),
            **{name: tree[name] for name in ("width", "columns", "serial", "position", "complete")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"a damaged manifest ({error})", source=path) from None
