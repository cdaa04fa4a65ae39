"""A collection: a set of embeddings of pictures, or of texts, with a name, which grows, shrinks and remembers what made it.

On the disk it is a set like any other, under a key whose `data` is "collection:NAME"; so search, export and all that reads
sets read it. Model, preprocessing, precision and the type of the numbers are pinned by whoever adds first. Beside the
manifest lies `collection.json`, which says where the pictures came from, so that they can be shown.

Columns: those of `fill` and `width`, `height`, `bytes` (of the picture and its file), `source` (its number in
`collection.json`) and `described` (64 bits of a hash of labels, captions and fields). Rows of texts have the caption in
`texts`, and neither `width`, `height` nor `perceptual`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostension.config import require
from ostension.errors import DataError, unknown_name
from ostension.files import read_json, write_json
from ostension.store.folder import Store
from ostension.store.key import Kind, ModelKey, SetKey, Stored
from ostension.store.sets import EmbeddingSet
from ostension.store.writer import Writer, waiting_lock

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

DATA = "collection:"
DEFAULT = "default"
FACTS = "collection.json"
FORMAT = "ostension collection 1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it stands in file names and in addresses
CUT = "truncated"  # the split of texts of which the too long ones were cut, as in `texts`
LOCK_WAIT_S = 30.0  # for what takes moments: making a collection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows came from.

    Attributes:
        name: what the source is called; the same name again is the same source.
        kind: "folder", where an id without the prefix is a path below `root`; "pairs", which `open_pictures` opens at `root`;
            "urls", where an id without the prefix is a URL; or "" for what cannot be read again.
        root: an absolute path, or a URL; empty where there is none.
        prefix: what was put before the source's keys to make ids.
    """

    name: str
    kind: str = ""
    root: str = ""
    prefix: str = ""


def collection_names(store: Store | str | Path) -> dict[str, str]:
    """The names of a store's collections, and the folder that each is in, sorted.

    Raises:
        DataError: for a manifest that is damaged.
    """
    keys = _store(store).keys()
    return dict(sorted((name_of(key), name) for name, key in keys.items() if key.data.startswith(DATA)))


def collection_folder(store: Store | str | Path, name: str = DEFAULT) -> Path:
    """The folder of a collection.

    Raises:
        DataError: if the store does not exist or has no collection.
        ConfigError: if it has none of this name.
    """
    store = _store(store)
    names = collection_names(store)
    if name not in names:
        if not names:
            what = "no collection here" if store.path.is_dir() else "no such folder"
            raise DataError(what, source=store.path, expected="a store", fix="fill one: ostension embed PICTURES -o STORE")
        raise unknown_name("collection", name, names, source=store.path)
    return store.path / names[name]


def open_collection(
    store: Store | str | Path, name: str = DEFAULT, model: CLIP | ModelKey | None = None
) -> EmbeddingSet:  # fmt: skip
    """A collection as it is now; deleted rows are not in it.

    Args:
        model: what is going to ask: its weights and its transform must be those that made the rows.

    Raises:
        DataError: if it is not there or damaged, or another model or transform made it: both hashes are named.
    """
    return EmbeddingSet(collection_folder(store, name), model=model)


def sources(opened: EmbeddingSet) -> list[Source]:
    """Where the rows of a collection came from; the column `source` counts in this list.

    Raises:
        DataError: if the file is damaged.
    """
    return _read_facts(opened.folder)[0]


def model_of(opened: EmbeddingSet) -> str:
    """The path or name of the model that made a collection, as it was when rows were added last; empty if that is not known.

    Raises:
        DataError: if the file is damaged.
    """
    return _read_facts(opened.folder)[1]


def remove(store: Store | str | Path, ids: Sequence[str], name: str = DEFAULT) -> int:
    """Take rows out of a collection by their ids; gives how many. The room that they take is freed by `compact`.

    Raises:
        ConfigError: for an id that the collection does not have; then nothing is removed.
        DataError: if another process writes it.
    """
    folder = collection_folder(store, name)
    with Writer(folder) as writer:
        return writer.delete(EmbeddingSet(folder).numbers(ids))


def compact(store: Store | str | Path, name: str = DEFAULT) -> None:
    """Write what counts of a collection anew, in full shards.

    Raises:
        DataError: if another process writes it, or the disk is full; then the collection is as it was.
    """
    with Writer(collection_folder(store, name)) as writer:
        writer.compact()


def drop(store: Store | str | Path, name: str) -> None:
    """Delete a collection, all of it.

    Raises:
        DataError: if another process writes it.
    """
    import shutil

    folder = collection_folder(store, name)
    with waiting_lock(_store(store).path, LOCK_WAIT_S), waiting_lock(folder, 0.0):  # nobody begins it anew in between
        (folder / "manifest.json").unlink()  # from here on it is no set, whatever else of it is left
        shutil.rmtree(folder)


def collection_key(
    made: ModelKey, name: str, stored: Stored = "float16", *, kind: Kind = "images", truncate: bool = False
) -> SetKey:  # fmt: skip
    """The key of a collection's rows; texts that were cut where they are too long are others than those that were not."""
    require(bool(_NAME.fullmatch(name)), "name", name, "1 to 64 letters A to Z, digits, . _ -, a letter or digit first")
    return SetKey(
        kind=kind, weights=made.weights, inputs=made.preprocess if kind == "images" else made.tokenizer,
        computed="-".join(_of_kind(made.computed, kind)), stored=stored, data=DATA + name, split=CUT if truncate else "",
    )  # fmt: skip


def computed_by(computed: str) -> tuple[str, str]:
    """Engine and precision of a collection's rows, from what its key says of how they were computed."""
    parts = _of_kind(computed, "images")
    return (parts[0], parts[1]) if len(parts) == 2 else ("torch", parts[0])


def _of_kind(computed: str, kind: Kind) -> list[str]:
    """What of "openvino-bfloat16 (images), torch-float32 (texts)" is about pictures, or texts; of torch the precision alone."""
    each = computed.split(", ")
    own = next((one for one in each if one.endswith(f" ({kind})")), each[0])
    parts = own.removesuffix(f" ({kind})").split("-", 1)
    return parts[1:] if parts[0] == "torch" else parts


def name_of(key: SetKey) -> str:
    """The name of the collection that a key is of."""
    return key.data.removeprefix(DATA)


@contextlib.contextmanager
def grown(store: Store, key: SetKey, source: Source, model: str = "") -> Iterator[tuple[Writer, int]]:
    """A writer of the collection of a key, which is made if it is not there, and the number of a source in it.

    Args:
        model: where the model lies, to be found again.

    Raises:
        DataError: if the collection of that name is another model's, another transform's, of another precision or another
            type of numbers; if another process writes it.
    """
    with contextlib.ExitStack() as stack:
        name = name_of(key)
        with waiting_lock(store.path, LOCK_WAIT_S):  # two that begin one collection with two models
            there = collection_names(store).get(name)
            if there is not None:
                check_key(EmbeddingSet(store.path / there).key, key, store.path / there)
            writer = stack.enter_context(store.writer(key, shard_rows=None))
        number = _note(writer.folder, name, source, model)
        yield writer, number


def check_key(theirs: SetKey, ours: SetKey, folder: Path) -> None:
    """Refuse to add rows of one key to a collection of another.

    Raises:
        DataError: that says in what they differ.
    """
    if theirs.kind != ours.kind:
        raise DataError(
            f"a collection of {theirs.kind}, and these are {ours.kind}", source=folder, fix="give it another --name"
        )
    made = ModelKey(weights=ours.weights, preprocess=ours.inputs, tokenizer=ours.inputs, computed=ours.computed)
    made.check(theirs, folder)
    if (theirs.split == CUT) != (ours.split == CUT):
        what = "texts that are too long were " + ("cut" if theirs.split == CUT else "left out") + " here"
        raise DataError(what, source=folder, fix=f"{'add' if theirs.split == CUT else 'leave out'} --truncate")
    for what, one, other in (("computed in", theirs.computed, ours.computed), ("kept as", theirs.stored, ours.stored)):
        if one != other:
            raise DataError(f"its embeddings are {what} {one}, and these would be {other}", source=folder, fix=f"use {one}")
    if theirs.sha256() != ours.sha256():
        what, expected = f"holds embeddings of the key {theirs.sha256()[:16]}", ours.sha256()[:16]
        raise DataError(what, source=folder, expected=expected)


def _note(folder: Path, name: str, source: Source, model: str) -> int:
    """Write down a source, and where the model lies; gives the source's number."""
    known, at = _read_facts(folder)
    number = next((number for number, one in enumerate(known) if one.name == source.name), len(known))
    after = [*known[:number], source, *known[number + 1 :]]
    if (after, model or at) != (known, at):
        tree = {"format": FORMAT, "name": name, "model": model or at, "sources": [dataclasses.asdict(one) for one in after]}
        try:
            write_json(folder / FACTS, tree)
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=folder / FACTS, fix="make room") from None
    return number


def _read_facts(folder: Path) -> tuple[list[Source], str]:
    path = folder / FACTS
    if not path.is_file():
        return [], ""
    tree: Any = read_json(path)
    try:
        if tree["format"] != FORMAT:
            raise DataError(f"of the format {tree['format']!r}", source=path, expected=repr(FORMAT))
        return [Source(**source) for source in tree["sources"]], str(tree["model"])
    except (KeyError, TypeError) as error:
        raise DataError(f"damaged ({error})", source=path, expected="what ostension wrote") from None


def _store(store: Store | str | Path) -> Store:
    return store if isinstance(store, Store) else Store(store)
