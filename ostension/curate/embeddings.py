"""Rows of the pictures and captions of a part by a model, computed once where a store keeps them.

What is kept is found by content: 128 bits of a picture's bytes or of a caption's. So it does not matter which rows of a part an
earlier stage has left, and a threshold that is tried anew costs reading and no tower. Each part has sets of its own in the
store, in memory only while the part is: 20 MB for 10,000 rows of 512 numbers.

A store that `store.embed` filled from the same source is used where it lies: its rows are found by their number in the source,
and their ids must be the keys of the part's rows. Then pictures are not even read.

The tower computes with one thread, whatever the process has: the bits are the same in one process and in many, and `workers`
use the cores. Rows of one picture in batches of other sizes may differ in their last bits.

Letters: n rows of a part, E embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ostension.curate.base import Part
from ostension.errors import DataError, LimitError
from ostension.image.decode import read_picture
from ostension.store.folder import Store
from ostension.store.key import ModelKey, SetKey
from ostension.store.manifest import NAME
from ostension.store.sets import EmbeddingSet

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

_Waiting = tuple[int, bytes, torch.Tensor]  # row, hash of the picture, its pixels
OWN = "curation part"
WAIT_S = 600.0  # another run may be writing the same set


@dataclasses.dataclass
class Embedder:
    """Gives rows of parts.

    Attributes:
        model: in evaluation mode.
        made: its key.
        store: where rows are kept and looked for; None computes them each time.
        batch_size: pictures that pass the tower together; captions are sixteen times as many.
    """

    model: CLIP
    made: ModelKey
    store: Store | None
    batch_size: int

    def pictures(self, part: Part) -> tuple[np.ndarray, dict[int, str]]:
        """(n, E) float32 unit rows of a part's pictures, zeros where there is none, and why, by row."""
        rows = np.zeros((len(part), self.model.config.embed_dim), np.float32)
        ready = self._ready(part, rows)
        bad: dict[int, str] = {}
        kept = _Kept(self.store, self._key("images", part), rows.shape[1])
        waiting: list[_Waiting] = []
        for row in np.flatnonzero(~ready).tolist():
            try:
                data = part.image(row)
                digest = hashlib.blake2b(data, digest_size=16).digest()
                if kept.find(digest, rows[row]):
                    continue
                config = self.model.transform.config
                picture = read_picture(data, max_pixels=config.max_pixels, max_bytes=config.max_bytes, name=part.keys[row])
                waiting.append((row, digest, self.model.transform.pixels(picture.image, name=part.keys[row])))
            except (DataError, LimitError) as error:
                bad[row] = error.what
                continue
            if len(waiting) == self.batch_size:
                self._pass(waiting, rows, kept)
        self._pass(waiting, rows, kept)
        kept.close(rows)
        return rows, bad

    def captions(self, part: Part, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), E) float32 unit rows of captions; those longer than the model reads are cut."""
        rows = np.zeros((len(texts), self.model.config.embed_dim), np.float32)
        kept = _Kept(self.store, self._key("texts", part), rows.shape[1])
        places: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text, []).append(place)
        # Captions of about the same length together: the tower computes as many positions as the longest has.
        new: list[tuple[str, bytes]] = []
        for text in sorted(places, key=lambda text: (len(text), text)):
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if not kept.find(digest, rows[places[text][0]]):
                new.append((text, digest))
        size = self.batch_size * 16
        with one_thread():
            for start in range(0, len(new), size):
                batch = new[start : start + size]
                found = self.model.embed_texts([text for text, _ in batch], batch_size=size, truncate=True).cpu().numpy()
                for (text, digest), row in zip(batch, found, strict=True):
                    rows[places[text][0]] = row
                    kept.add(digest, places[text][0])
        kept.close(rows)
        for owners in places.values():
            rows[owners[1:]] = rows[owners[0]]
        return rows

    def _pass(self, waiting: list[_Waiting], rows: np.ndarray, kept: _Kept) -> None:
        """The pictures that wait, through the tower."""
        if not waiting:
            return
        with one_thread():
            pixels = self.model.transform.normalize(torch.stack([planes for _, _, planes in waiting]))
            found = self.model.embed_images(pixels, batch_size=len(waiting)).cpu().numpy()
        for (row, digest, _), values in zip(waiting, found, strict=True):
            rows[row] = values
            kept.add(digest, row)
        waiting.clear()

    def _key(self, kind: Any, part: Part) -> SetKey:
        inputs: Mapping[str, Any] = self.made.preprocess if kind == "images" else self.made.tokenizer
        return SetKey(
            kind=kind, weights=self.made.weights, inputs=inputs, computed=self.made.computed, stored="float32",
            data=f"{OWN} {part.number}",
        )  # fmt: skip

    def _ready(self, part: Part, rows: np.ndarray) -> np.ndarray:
        """Fill rows from a set of the whole source, if the store has one; (n,) which are filled."""
        filled = np.zeros(len(part), bool)
        for found, samples in self._sets():
            places = np.array(part.column("place"), np.int64)
            numbers = np.searchsorted(samples, places)
            hit = numbers < len(samples)
            hit[hit] = samples[numbers[hit]] == places[hit]
            # Equal numbers are not enough: the set may be of another source.
            names = found.column("id", numbers[hit])
            same = np.array([name == part.keys[row] for name, row in zip(names, np.flatnonzero(hit), strict=True)], bool)
            hit[hit] = same
            hit &= ~filled
            rows[hit] = found.rows[numbers[hit]].astype(np.float32)
            filled |= hit
        return filled

    def _sets(self) -> Iterator[tuple[EmbeddingSet, np.ndarray]]:
        if self.store is None:
            return
        if not hasattr(self, "_opened"):
            self._opened = [
                (opened, np.asarray(opened.column("sample"), np.int64))
                for name, key in self.store.keys().items()
                if key.kind == "images" and key.level == "post" and key.view is None and key.weights == self.made.weights
                and dict(key.inputs) == dict(self.made.preprocess) and key.computed == self.made.computed
                and not key.data.startswith(OWN) and "sample" in (opened := EmbeddingSet(self.store.path / name)).columns
            ]  # fmt: skip
        yield from self._opened


def embedder_of(model: str, store: str, batch_size: int, device: str, dtype: str) -> Embedder:
    """An embedder as stages' settings describe it."""
    from ostension.formats.load import load

    made = load(model, device=device, dtype=dtype)
    return Embedder(made, ModelKey.of(made), Store(store) if store else None, batch_size)


class _Kept:
    """The rows of a part that a set of the store has, by the hashes of their contents; without a store, none."""

    def __init__(self, store: Store | None, key: SetKey, width: int):
        self._store, self._key = store, key
        self._new: dict[bytes, list[int]] = {}
        self._rows = np.zeros((0, width), np.float32)
        self._known: dict[bytes, int] = {}
        if store is not None and (store.folder(key) / NAME).is_file():
            self._open(store.folder(key))

    def find(self, digest: bytes, out: np.ndarray) -> bool:
        """Whether there is a row of this content; it is written into `out`."""
        place = self._known.get(digest)
        if place is None:
            return False
        out[:] = self._rows[place]
        return True

    def add(self, digest: bytes, row: int) -> None:
        """A row that was computed, by its place in the part."""
        self._new.setdefault(digest, []).append(row)

    def close(self, rows: np.ndarray) -> None:
        """Keep what was added, and give rows as they are kept."""
        if self._store is None or not self._new:
            return
        with self._store.writer(self._key, merge=True, wait_s=WAIT_S) as writer:
            self._open(self._store.folder(self._key))  # another run may have been faster
            added = {digest: of[0] for digest, of in self._new.items() if digest not in self._known}
            if added:
                hashes = np.frombuffer(b"".join(added), "<u8").reshape(-1, 2)
                names = [digest.hex() for digest in added]
                writer.append(rows[list(added.values())], id=names, hash=hashes[:, 0].copy(), hash_2=hashes[:, 1].copy())
        self._open(self._store.folder(self._key))
        for digest, of in self._new.items():
            rows[of] = self._rows[self._known[digest]]

    def _open(self, folder: Path) -> None:
        opened = EmbeddingSet(folder)
        if len(opened):
            hashes = np.stack([np.asarray(opened.column(name), "<u8") for name in ("hash", "hash_2")], axis=1)
            self._known = {pair.tobytes(): place for place, pair in enumerate(hashes)}
            self._rows = np.asarray(opened.rows[:], np.float32)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
