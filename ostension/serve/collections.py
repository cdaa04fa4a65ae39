"""The store's collections, open as they are now: looked at again when they may have changed, never written to."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from ostension.errors import ConfigError, DataError, OstensionError
from ostension.serve.problems import Problem, of_input, unknown

LOOK_S = 1.0  # between looks whether a collection has changed
PREPARED = 100_000  # rows whose codes are made in memory, in half a second; of larger ones `ostension index build` makes them


class Collections:
    """The collections below a folder. Threads may share it.

    Args:
        store: the folder, or None for none.

    Raises:
        DataError: if the folder does not exist.
    """

    def __init__(self, store: str | None):
        self.store = None if store is None else Path(store)
        if self.store is not None and not self.store.is_dir():
            raise DataError(
                "no such folder", source=store, expected="a store", fix="fill one: ostension embed PICTURES -o STORE"
            )
        self._open: dict[str, tuple[Any, float]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What the collections are called."""
        from ostension.store.collection import collection_names

        return [] if self.store is None else list(collection_names(self.store))

    def searcher(self, name: str, model_key: dict[str, Any]) -> Any:
        """A searcher of a collection as it is now.

        Args:
            model_key: of the service's model.

        Raises:
            Problem: 404 if there is none, 409 if another model made it.
        """
        from ostension.store.collection import open_collection
        from ostension.store.key import ModelKey
        from ostension.store.searcher import Searcher

        with self._lock:  # opening twice would cost memory for nothing
            searcher, looked = self._open.get(name, (None, 0.0))
            if searcher is not None and time.monotonic() - looked < LOOK_S:
                return searcher
            names = self.names()
            if name not in names:
                self._open.pop(name, None)
                raise unknown("collection", name, names, "collection")
            try:
                if searcher is None or not searcher.fresh:
                    opened = open_collection(self.store, name)  # type: ignore[arg-type]
                    searcher = Searcher(opened)
                    if len(opened) <= PREPARED:
                        searcher.prepare()
                searcher.check(ModelKey(**model_key))
            except DataError as error:
                self._open.pop(name, None)
                raise Problem(409, of_input(error, None).message, "collection_not_usable", param="collection") from None
            self._open[name] = (searcher, time.monotonic())
            return searcher

    def cards(self, *, previews: bool) -> list[dict[str, Any]]:
        """What is known of each collection."""
        from ostension.store.collection import open_collection

        found = []
        for name in self.names():
            try:
                opened = open_collection(self.store, name)  # type: ignore[arg-type]
            except (DataError, ConfigError):
                continue  # it went between the look and the opening
            found.append({
                "name": name, "object": "collection", "rows": len(opened), "embed_dim": opened.width,
                "columns": list(opened.columns), "sha256": opened.key.weights, "previews": previews,
            })  # fmt: skip
        return found


def preview(searcher: Any, name: str, *, max_pixels: int, side: int) -> bytes:
    """A JPEG of a row's picture, at most `side` pixels a side, upright.

    The picture's bytes are those that were embedded, by their digest, from below the source's root (`store.origins`).

    Raises:
        Problem: 404 if there is no such row, or its picture cannot be shown.
    """
    import io

    from ostension.image.decode import open_image
    from ostension.store.origins import original

    try:
        row = int(searcher.numbers([name])[0])
    except ConfigError:
        raise Problem(404, "there is no row with this id", "item_not_found", param="id") from None
    try:
        image = open_image(original(searcher.opened, row), max_pixels=max_pixels, exif=True, name="the picture")
    except OstensionError as error:
        raise Problem(404, of_input(error, None).message, "no_preview", param="id") from None
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
