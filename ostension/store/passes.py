"""Batches of a source through the image tower: in this process, or in several that each do whole batches.

The batches are the same, whoever computes them, and come back in order; one process writes. So the files do not depend on
the number of processes, as long as each computes with as many threads (those started here have one each).

Letters: B batch, G good samples of it, V views, S pixels a side, E embedding.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ostension.data.loader import Loaded, Loader, Order
from ostension.data.pairs import PairSource
from ostension.data.workers import Note, in_processes
from ostension.errors import DataError, LimitError
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.store.key import Level

# Only a process that hangs is caught by this: one that ends is noticed at once. A batch of a large tower takes minutes at most.
TIMEOUT_S = 3600.0


class Passed(NamedTuple):
    """A batch after the tower.

    Attributes:
        ids: (B,) numbers of the samples in the source.
        keys: their keys.
        facts: what is known of each, as the decoder says.
        good: (G,) the places of those that could be used.
        rows: (G, V, E) by level.
    """

    ids: np.ndarray
    keys: tuple[str, ...]
    facts: list[dict[str, Any]]
    good: np.ndarray
    rows: dict[Level, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the pictures of a source are read: what a `Loader` needs."""

    source: PairSource
    order: Order
    decode: Any
    transform: Transform
    seed: int
    workers: int = 0
    kind: Literal["processes", "threads"] = "processes"

    def loader(self) -> Loader:
        return Loader(
            self.source, self.order, self.decode, seed=self.seed, workers=self.workers, kind=self.kind, strict=True
        )  # fmt: skip


def passed_here(model: CLIP, reading: Reading, start: int, stop: int) -> Iterator[Passed]:
    """The batches of the steps from `start` up to `stop`, through the model in this process; it must be in eval mode."""
    for loaded in reading.loader().batches(start, stop):
        yield _passed(model, reading.transform, loaded)


def passed_in_processes(model: CLIP, reading: Reading, start: int, stop: int, processes: int) -> Iterator[Passed]:
    """The same, each batch decoded and computed by one of several processes, which load the model from a temporary folder.

    They end when this one does, however that ends.

    Raises:
        DataError: for a bad sample, or a process that ended, naming the samples that it was at.
        ConfigError: for a source that cannot be sent to another process.
    """
    from ostension.formats.load import save

    with tempfile.TemporaryDirectory(prefix="ostension-embed-") as folder:
        save(model, folder)
        dtype = str(model.dtype).removeprefix("torch.")
        work = _Pass(reading=reading, folder=folder, device=str(model.device), dtype=dtype)
        yield from in_processes(work, range(start, stop), processes, TIMEOUT_S)


def passed_texts(
    model: CLIP, source: PairSource, batches: Iterable[np.ndarray], *, truncate: bool = False
) -> Iterator[Passed]:  # fmt: skip
    """Batches of a source's texts, each of which has one, through the text tower; too long ones are not good."""
    from ostension.store.fill import known_of

    for ids in batches:
        pairs = [source.read(int(index)) for index in ids]
        facts = [known_of(pair) for pair in pairs]
        good = []
        for place, pair in enumerate(pairs):
            try:
                model.tokenizer.ragged(list(pair.texts), truncate=truncate)
                good.append(place)
            except (DataError, LimitError) as error:
                facts[place] = {"bad": error.what, "digest": facts[place]["digest"]}
        rows: dict[Level, np.ndarray] = {}
        if good:
            texts = [pairs[place].texts[0] for place in good]
            embedded = model.embed_texts(texts, batch_size=len(texts), truncate=truncate)
            rows["post"] = embedded.detach().float().cpu().numpy()[:, None]
        yield Passed(ids, tuple(pair.key for pair in pairs), facts, np.array(good, np.int64), rows)


class _Pass:
    """What a process does: one batch from reading to rows. It loads the model when it is asked for the first one."""

    def __init__(self, *, reading: Reading, folder: str, device: str, dtype: str):
        self.reading, self.folder, self.device, self.dtype = reading, folder, device, dtype
        self._made: tuple[CLIP, Loader] | None = None

    def __call__(self, task: int, note: Note) -> Passed:
        step = task
        order = self.reading.order
        samples = order.part(step, 0, order.batch_size)
        note(f"samples {samples[0]:,} to {samples[-1] + 1:,}")
        if self._made is None:
            from ostension.formats.load import load

            torch.set_num_threads(1)
            self._made = load(self.folder, device=self.device, dtype=self.dtype, verify=False), self.reading.loader()
        model, loader = self._made
        return _passed(model, self.reading.transform, loader.load(step))


def _passed(model: CLIP, transform: Transform, loaded: Loaded) -> Passed:
    facts = [json.loads(text) for text in loaded.texts]
    good = np.array([place for place, fact in enumerate(facts) if "bad" not in fact], dtype=np.int64)
    rows = _rows(model, transform, loaded.images[good]) if len(good) else {}
    return Passed(loaded.ids, loaded.keys, facts, good, rows)


@torch.no_grad()
def _rows(model: CLIP, transform: Transform, images: np.ndarray) -> dict[Level, np.ndarray]:
    """(B, V, E) of pictures (B, V, 3, S, S) by level."""
    stacked = torch.from_numpy(images)
    pixels = stacked.flatten(0, 1)
    if pixels.dtype == torch.uint8:
        pixels = transform.normalize(pixels)
    taps = model.image_features(pixels, ("pooled", "embedding"))
    shape = tuple(stacked.shape[:2])
    post = F.normalize(taps["embedding"].float(), dim=-1).cpu()
    return {"pre": taps["pooled"].float().cpu().unflatten(0, shape).numpy(), "post": post.unflatten(0, shape).numpy()}
