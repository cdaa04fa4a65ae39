"""What commands that open a collection share: the flags that name it, its model, and how they speak."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ostension.cli.classify import MODEL_VARIABLE, model_name

if TYPE_CHECKING:
    from ostension.store.searcher import Searcher
    from ostension.store.sets import EmbeddingSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCollection:
    """A command on one collection of a store.

    Args:
        store: The folder of the store.
        name: The collection.
    """

    store: Annotated[Path, tyro.conf.Positional]
    name: str = "default"

    def opened(self) -> EmbeddingSet:
        """The collection as it is now."""
        from ostension.store.collection import open_collection

        return open_collection(self.store, self.name)

    def searcher(self) -> Searcher:
        """A searcher of it."""
        from ostension.store.searcher import Searcher

        return Searcher(self.opened())


def load_for(opened: EmbeddingSet, given: str | None, *, device: str = "auto", dtype: str = "auto") -> Any:
    """The model that made a collection: the given one, else the one it remembers, else that of the environment.

    Raises:
        DataError: if it is another model, or none is named.
    """
    from ostension.export.engines import load_encoder
    from ostension.export.folder import is_export
    from ostension.formats.load import load
    from ostension.store.collection import computed_by, model_of
    from ostension.store.key import ModelKey

    name = given or _remembered(model_of(opened)) or model_name(None)
    if is_export(name):  # graphs without weights, which run in an engine: in the one that made the rows
        engine, precision = computed_by(opened.key.computed)
        if engine == "torch":
            engine, precision = "auto", "auto"
        model = load_encoder(name, engine, device=device, dtype=precision if dtype == "auto" else dtype)  # type: ignore[arg-type]
    else:
        model = load(name, device=device, dtype=dtype)
    ModelKey.of(model).check(opened.key, opened.folder)
    return model


def _remembered(name: str) -> str | None:
    """A model that a store remembers, unless its path is gone and the environment names another."""
    if name and (Path(name).exists() or not os.environ.get(MODEL_VARIABLE)):
        return name
    return None


def say(text: str) -> None:
    """A line for people."""
    print(f"ostension: {text}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A text as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def json_line(tree: Any) -> str:
    """A JSON object as one line, with letters of all languages as they are, if that is UTF-8 and one line for everybody."""
    text = json.dumps(tree, ensure_ascii=False)
    try:
        text.encode("utf-8")  # ids of files can be other bytes
    except UnicodeEncodeError:
        return json.dumps(tree)
    return text if len(text.splitlines()) == 1 else json.dumps(tree)


def stdin_lines() -> list[str]:
    """The lines on stdin that are not empty; only a line feed ends one, and file names may be any bytes."""
    lines = [os.fsdecode(line).removesuffix("\r") for line in sys.stdin.buffer.read().split(b"\n")]
    return [line for line in lines if line.strip()]
