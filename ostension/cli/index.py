"""Indexes of a store: make the search of millions faster, measure it, or push a collection into PostgreSQL."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

from ostension.cli._collection import OfCollection, say
from ostension.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build(OfCollection):
    """Make or bring up to date what makes searching faster, beside the collection.

    codes (exact, a quarter of float32's memory) are for up to ten million items: searches give the same answers. hnsw, ivf
    and ivfpq are approximate, need faiss (pip install 'ostension[ann]'), and are measured against exact search when they are
    built; the least effort that reaches --recall is kept.

    Examples:
      ostension index build store
      ostension index build store --kind hnsw --recall 0.98

    Args:
        kind: codes; or approximate: hnsw (fast, most memory), ivf, ivfpq (a quarter of the memory), flat.
        recall: Recall@10 that an approximate index should reach.
        seed: Of training and of the queries that recall is measured with.
    """

    kind: Literal["codes", "flat", "hnsw", "ivf", "ivfpq"] = "codes"
    recall: float = 0.95
    seed: int = 0

    def run(self) -> int:
        from ostension.store.codes import Codes
        from ostension.store.index import Index

        opened = self.opened()
        if self.kind == "codes":
            codes = Codes.of_set(opened, build=True)
            print(json.dumps({"kind": "codes", "rows": 0 if codes is None else len(codes)}))
            return 0
        built = Index.build(opened, self.kind, recall=self.recall, seed=self.seed).built
        print(json.dumps(dataclasses.asdict(built)))
        if built.recall < self.recall:
            raise DataError(
                f"recall@10 is {built.recall:.3f} with the greatest effort", source=opened.folder, expected=f"{self.recall}",
                fix="the index is kept; try --kind hnsw or ivf, or search with --exact",
            )  # fmt: skip
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status(OfCollection):
    """Say which indexes a collection has, and whether they are up to date."""

    def run(self) -> int:
        from ostension.store.codes import Codes
        from ostension.store.index import Index

        opened = self.opened()
        facts: dict[str, object] = {"rows": len(opened), "codes": Codes.of_set(opened) is not None}
        try:
            index = Index.open(opened, needed=False)
            facts["approximate"] = None if index is None else dataclasses.asdict(index.built)
        except DataError as error:
            facts["approximate"] = f"not usable: {error.what}"
        print(json.dumps(facts, indent=2))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove(OfCollection):
    """Remove the codes and the approximate index of a collection; its rows stay."""

    def run(self) -> int:
        from ostension.store.codes import remove_codes
        from ostension.store.collection import collection_folder
        from ostension.store.index import remove

        folder = collection_folder(self.store, self.name)
        print(json.dumps({"codes": remove_codes(folder), "approximate": remove(folder)}))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push(OfCollection):
    """Bring a collection into a PostgreSQL database with pgvector, so that many machines can search it.

    Only what changed since the last push is sent. Search there with `ostension search STORE ... --database URL`.

    Args:
        database: As postgresql://user@host/name; a password is better kept in ~/.pgpass.
        hnsw: Also make an HNSW index, for more than about 100,000 rows; searches become approximate.
    """

    database: str
    hnsw: bool = False

    def run(self) -> int:
        from ostension.store.pgvector import Database

        pushed = Database(self.database).push(self.opened(), hnsw=self.hnsw)
        print(json.dumps(dataclasses.asdict(pushed)))
        say(f"table {pushed.table}")
        return 0


COMMAND = {"build": Build, "status": Status, "remove": Remove, "push": Push}
