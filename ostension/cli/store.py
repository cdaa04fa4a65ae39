"""Look after a store: what is in it, check it, remove, compact, import and export."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.cli._collection import OfCollection, say, stdin_lines
from ostension.cli.classify import model_name
from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    from ostension.store.sets import EmbeddingSet

STORE = tyro.conf.Positional
SHOWN = 12  # letters of a hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Print what a store holds as JSON: collections, their models, sources and sizes, and how many other sets.

    Examples:
      ostension store info store
      ostension store info store --name web

    Args:
        store: The folder of the store.
        name: One collection alone.
    """

    store: Annotated[Path, STORE]
    name: str | None = None

    def run(self) -> int:
        from ostension.store.collection import collection_folder, collection_names, open_collection
        from ostension.store.folder import Store

        names = collection_names(self.store)
        if self.name is not None:
            collection_folder(self.store, self.name)
            print(json.dumps(facts_of(open_collection(self.store, self.name)), indent=2))
            return 0
        _must_exist(self.store)
        tree: dict[str, Any] = {"store": str(self.store)}
        tree["collections"] = {name: facts_of(open_collection(self.store, name)) for name in names}
        tree["other_sets"] = len(Store(self.store).keys()) - len(names)
        print(json.dumps(tree, indent=2))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List a store's collections, or a collection's rows, one JSON object a line.

    Examples:
      ostension store ls store
      ostension store ls store --name web --limit 10

    Args:
        store: The folder of the store.
        name: A collection, whose rows are listed.
        limit: At most so many rows.
        failures: List what could not be used instead, with the reasons.
    """

    store: Annotated[Path, STORE]
    name: str | None = None
    limit: int | None = None
    failures: bool = False

    def __post_init__(self):
        if self.name is None and (self.limit is not None or self.failures):
            raise UsageError("--limit and --failures are of a collection", fix="give its --name")

    def run(self) -> int:
        from ostension.store.collection import collection_names, open_collection
        from ostension.store.plan import Held

        if self.name is None:
            _must_exist(self.store)
            for name in collection_names(self.store):
                opened = open_collection(self.store, name)
                print(json.dumps({"name": name, "rows": len(opened), "width": opened.width, "complete": opened.complete}))
            return 0
        opened = open_collection(self.store, self.name)
        if self.failures:
            for name, (reason, _) in list(Held.of(opened).rejects.items())[: self.limit]:
                print(json.dumps({"id": name, "reason": reason}))
            return 0
        rows = range(len(opened) if self.limit is None else min(self.limit, len(opened)))
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000]
            columns = {name: opened.column(name, part) for name in opened.columns}
            for place in range(len(part)):
                print(json.dumps({name: shown_value(name, values[place]) for name, values in columns.items()}))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Read everything and compare it with the hashes that were written beside it.

    Args:
        store: The folder of the store.
        name: One collection alone.
    """

    store: Annotated[Path, STORE]
    name: str | None = None

    def run(self) -> int:
        from ostension.store.collection import collection_folder
        from ostension.store.folder import Store
        from ostension.store.sets import EmbeddingSet

        _must_exist(self.store)
        keys = Store(self.store).keys()
        folders = [collection_folder(self.store, self.name)] if self.name else [self.store / folder for folder in keys]
        rows, bad = 0, 0
        for folder in folders:
            try:
                opened = EmbeddingSet(folder)
                opened.verify()
                rows += len(opened)
            except DataError as error:
                bad += 1
                say(str(error))
        print(json.dumps({"store": str(self.store), "sets": len(folders), "rows": rows, "damaged": bad}))
        return 1 if bad else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove(OfCollection):
    """Remove rows by their ids.

    Examples:
      ostension store rm store cat.jpg sub/dog.jpg
      ostension search store "a screenshot" --json | jq -r .id | ostension store rm store -

    Args:
        ids: The ids, or - for a list on stdin, one a line.
    """

    ids: Annotated[tuple[str, ...], tyro.conf.Positional]

    def run(self) -> int:
        from ostension.store.collection import remove

        lines = stdin_lines() if "-" in self.ids else []
        ids = list(dict.fromkeys([name for name in self.ids if name != "-"] + lines))
        if not ids:
            raise UsageError("no id is given", expected="ids, or - for a list on stdin")
        count = remove(self.store, ids, self.name)
        _tell(removed=count, rows=len(self.opened()))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete a whole collection.

    Args:
        store: The folder of the store.
        name: The collection.
        yes: Really do it.
    """

    store: Annotated[Path, STORE]
    name: Annotated[str, tyro.conf.Positional]
    yes: bool = False

    def run(self) -> int:
        from ostension.store.collection import drop, open_collection

        rows = len(open_collection(self.store, self.name))
        if not self.yes:
            raise UsageError(f"{rows:,} rows of the collection {self.name!r} would be deleted", fix="add --yes to do it")
        drop(self.store, self.name)
        _tell(deleted=self.name, removed=rows)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(OfCollection):
    """Remove rows whose pictures are no longer in their sources.

    Args:
        dry_run: Only print the ids.
    """

    dry_run: bool = False

    def run(self) -> int:
        from ostension.store.collection import remove
        from ostension.store.origins import gone

        opened = self.opened()
        ids = gone(opened)
        if self.dry_run:
            for name in ids:
                print(json.dumps({"id": name}))
            return 0
        if ids:
            remove(self.store, ids, self.name)
        _tell(removed=len(ids), rows=len(opened) - len(ids))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compact(OfCollection):
    """Free the room of removed rows, and make one file of many small ones."""

    def run(self) -> int:
        from ostension.store.collection import compact

        before = _size(self.opened())
        compact(self.store, self.name)
        opened = self.opened()
        _tell(rows=len(opened), bytes_before=before, bytes_after=_size(opened))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(OfCollection):
    """Write a collection for other programs.

    Examples:
      ostension store export store -o for-others
      ostension store export store -o for-clip-retrieval --format clip-retrieval

    Args:
        output: The folder to write.
        format: npy: embeddings.npy and rows.parquet. clip-retrieval: img_emb/ (of texts text_emb/) and metadata/, as its
            indexer reads them.
        vectors: With npy, also put the rows into the table.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    format: Literal["npy", "clip-retrieval"] = "npy"
    vectors: bool = False

    def __post_init__(self):
        if self.vectors and self.format != "npy":
            raise UsageError("--vectors has no effect on clip-retrieval's files", fix="leave it out")

    def run(self) -> int:
        from ostension.store.clip_retrieval import export_layout
        from ostension.store.parquet import export

        opened = self.opened()
        if self.format == "npy":
            paths = list(export(opened, self.output, vectors=self.vectors))
        else:
            paths = export_layout(opened, self.output)
        _tell(rows=len(opened), files=[str(path) for path in paths])
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Make a collection of embeddings that clip-retrieval wrote, or of `embeddings.npy` and `rows.parquet`.

    The files do not say which model made them, so it has to be named. Captions, and pictures that still lie at their paths, are
    embedded again and compared, some of them; another model is refused.

    Examples:
      ostension store import clip-retrieval-output store --name web --model FOLDER

    Args:
        folder: The folder with img_emb/ (or text_emb/) and metadata/, or with embeddings.npy and rows.parquet.
        store: The folder of the store.
        name: The new collection.
        of: What is imported: images, or texts.
        model: The model that made them. Default: the environment variable OSTENSION_MODEL.
        stored: Type of the numbers on the disk.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16. What is added later has to be computed in it.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    store: Annotated[Path, STORE]
    name: str = "default"
    of: Literal["images", "texts"] = "images"
    model: str | None = None
    stored: Literal["float16", "float32"] = "float16"
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from ostension import runtime
        from ostension.formats.load import load
        from ostension.store.clip_retrieval import FOLDERS, import_layout
        from ostension.store.folder import Store
        from ostension.store.key import ModelKey

        runtime.set_threads()
        named = model_name(self.model)
        model = load(named, device=self.device, dtype=self.dtype)
        found = import_layout(
            Store(self.store), self.folder, ModelKey.of(model), name=self.name, stored=self.stored, kind=self.of,
            embed=lambda some: (
                model.embed_images(some) if self.of == "images" else model.embed_texts(some, truncate=True)
            ).float().cpu().numpy(),
            model_at=os.path.abspath(named) if os.path.exists(named) else named,
        )  # fmt: skip
        if not found.checked:
            say("no picture lies at its path, so nothing shows that this model made the rows")
        other = "texts" if self.of == "images" else "images"
        if (self.folder / FOLDERS[other]).is_dir():  # type: ignore[index]
            say(f"{FOLDERS[other]} is left out: --of {other} and another --name make a collection of it")  # type: ignore[index]
        cosine = None if found.least_cosine is None else round(found.least_cosine, 4)
        _tell(rows=found.rows, checked=found.checked, least_cosine=cosine)
        return 0


COMMAND = {
    "info": Info,
    "ls": List,
    "verify": Verify,
    "rm": Remove,
    "delete": Delete,
    "prune": Prune,
    "compact": Compact,
    "export": Export,
    "import": Import,
}


def facts_of(opened: EmbeddingSet) -> dict[str, Any]:
    """What is to be known of a collection."""
    from ostension.files import sha256_json
    from ostension.store.collection import model_of, sources
    from ostension.store.plan import Held

    manifest, key = opened.manifest, opened.key
    return {
        "folder": opened.folder.name,
        "rows": len(opened),
        "width": opened.width,
        "complete": opened.complete,
        "model": model_of(opened),
        "model_hash": key.weights[:SHOWN],
        "transform_hash": sha256_json(dict(key.inputs))[:SHOWN],
        "computed": key.computed,
        "stored": key.stored,
        "failures": len(Held.of(opened).rejects),
        "deleted_rows": manifest.deleted.count if manifest.deleted else 0,
        "shards": len(manifest.shards),
        "bytes": _size(opened),
        "columns": list(opened.columns),
        "sources": [dataclasses.asdict(source) for source in sources(opened)],
    }


def shown_value(column: str, value: Any) -> Any:
    """A column's value as JSON has it."""
    if column in ("labels", "texts", "fields"):
        return json.loads(value)
    return value if isinstance(value, str) else int(value)


def _size(opened: EmbeddingSet) -> int:
    return sum(shard.rows_bytes + shard.sidecar_bytes for shard in opened.manifest.shards)


def _must_exist(store: Path) -> None:
    if not store.is_dir():
        raise DataError("no such folder", source=store, expected="a store", fix="fill one: ostension embed PICTURES -o STORE")


def _tell(**facts: Any) -> None:
    print(json.dumps(facts))
