"""`embed`: all pictures of a source through a model's image tower, into a store, once.

Decoding runs in workers, or decoding and the tower in several processes. The order, the batches and so the bits do not
depend on how many there are, nor on where an earlier run was stopped: shards end at fixed samples of the source, and a batch
never crosses one's end. Evaluation never drops a sample, so the first one that cannot be used ends the run with its name; for
an index to search in, bad files may be listed instead. Every level and view that is asked for comes from one pass.

Columns: `id` (the sample's key), `labels` and `texts` (JSON lists), `fields` (a JSON object: groups, split and all else that
the source says), `sample` (its number in the source), `digest` (64 bits of the encoded picture's BLAKE2b) and `perceptual`
(see `perceptual`).

Letters: B batch, V views, S pixels a side, E embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ostension.config import require, to_tree
from ostension.data.loader import InOrder
from ostension.data.pairs import Pair, PairSource, image_digest
from ostension.errors import DataError, LimitError
from ostension.image.augment import CropConfig, RandomView
from ostension.image.decode import read_picture
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.modes import evaluating
from ostension.runtime import numpy_generator
from ostension.store.folder import Store
from ostension.store.key import Level, ModelKey, SetKey, Stored
from ostension.store.manifest import NAME, read_manifest
from ostension.store.passes import Passed, Reading, passed_here, passed_in_processes
from ostension.store.perceptual import perceptual_hash
from ostension.store.sets import EmbeddingSet
from ostension.store.writer import Writer

SHARD_BATCHES = 64  # batches in a shard: 4,096 samples of 64 each
TAPS = {"pre": "pooled", "post": "embedding"}


class Progress(NamedTuple):
    """How far a run is: samples done of all, samples a second in this sitting, seconds left."""

    done: int
    total: int
    rate: float
    left_s: float

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} ({self.rate:,.1f} a second, {self.left_s:,.0f} s left)"


def image_key(
    model: CLIP | ModelKey, source: PairSource, *, split: str = "", level: Level = "post", stored: Stored = "float16",
    view: int = 0, crop: CropConfig | None = None, seed: int = 0,
) -> SetKey:  # fmt: skip
    """The key of a source's pictures; `crop` and `seed` count for random views, numbers from 1, only."""
    made = model if isinstance(model, ModelKey) else ModelKey.of(model)
    drawn = {"number": view, "crop": _crop_tree(crop or CropConfig()), "seed": seed} if view else None
    return SetKey(
        kind="images", weights=made.weights, inputs=made.preprocess, computed=made.computed, stored=stored,
        data=source.fingerprint(), split=split, level=level, view=drawn,
    )  # fmt: skip


def _crop_tree(crop: CropConfig) -> dict[str, Any]:
    """The settings of a crop in a key; mirroring, which is younger than stores that are kept, where there is some."""
    tree = to_tree(crop)
    if not crop.mirror:
        del tree["mirror"]
    return tree


def embed(
    store: Store,
    model: CLIP,
    source: PairSource,
    *,
    split: str = "",
    levels: Sequence[Level] = ("post",),
    views: Sequence[int] = (0,),
    crop: CropConfig | None = None,
    seed: int = 0,
    stored: Stored = "float16",
    batch_size: int = 64,
    shard_batches: int = SHARD_BATCHES,
    workers: int = 0,
    processes: int = 1,
    bad: Literal["stop", "list"] = "stop",
    transform: Transform | None = None,
    made: ModelKey | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[tuple[Level, int], EmbeddingSet]:
    """The complete sets of a source's pictures by (level, view), computed as far as they are not there.

    Args:
        split: its name, for the key.
        levels: "pre" (before the projection), "post" (unit rows in the joint space), or both.
        views: 0 for the model's own preprocessing, 1 and up for random views (`crop`, `seed`).
        stored: the numbers on the disk.
        batch_size: views that pass the tower together, at most: pictures, where each has one; with 64 views one picture's.
        shard_batches: batches of a shard with one view a picture; others have as many samples. A kill loses at most one.
        workers: processes that decode for the one that computes.
        processes: processes that decode and compute, each whole batches with one thread; one of them all writes.
        bad: what to do with a sample that cannot be used: stop, or list it in the sets' `rejects()`.
        transform: the preprocessing, if not the model's own; it stands in the key.
        made: the model's key, if it is known; else its weights are hashed.
        progress: told after each batch.

    Raises:
        DataError, LimitError: naming the sample that cannot be used; if another process writes a set.
        ConfigError: for levels or views that are none.
    """
    require(bool(levels) and set(levels) <= set(TAPS), "levels", levels, "'pre', 'post' or both")
    require(bool(views) and min(views) >= 0 and len(set(views)) == len(views), "views", views, "different numbers from 0")
    require(batch_size >= 1 and shard_batches >= 1, "batch_size", batch_size, "1 or more")
    require(processes >= 1, "processes", processes, "1 or more")
    require(processes == 1 or workers == 0, "workers", workers, "0, as each of several processes decodes for itself")
    transform = transform or model.transform
    made = dataclasses.replace(made or ModelKey.of(model), preprocess=to_tree(transform.config))
    options: dict[str, Any] = {"split": split, "stored": stored, "crop": crop, "seed": seed}
    keys = {(level, view): image_key(made, source, level=level, view=view, **options) for level in levels for view in views}
    missing = {place: key for place, key in keys.items() if not _complete(store, key)}
    if missing:
        pictures = _pictures_at_once(batch_size, len(views))
        order = InOrder(len(source), pictures)
        reading = Reading(
            source=Tolerant(source) if bad == "list" else source,
            order=order,
            decode=Decoding(transform, tuple(views), crop or CropConfig(), seed),
            transform=transform,
            seed=seed,
            workers=workers,
        )
        with evaluating(model), contextlib.ExitStack() as stack:
            writers = {place: stack.enter_context(store.writer(key, shard_rows=None)) for place, key in missing.items()}

            def passed(start: int, stop: int) -> Iterator[Passed]:
                if processes > 1:
                    return passed_in_processes(model, reading, start, stop, min(processes, max(1, stop - start)))
                return passed_here(model, reading, start, stop)

            _fill(passed, order, writers, tuple(views), batch_size * shard_batches, progress)
    return {place: store.open(key) for place, key in keys.items()}


def _pictures_at_once(batch_size: int, views: int) -> int:
    """Pictures of a batch: their views are at most `batch_size`, and its shards end where a batch does."""
    return next(count for count in range(max(1, batch_size // views), 0, -1) if batch_size % count == 0)


def _complete(store: Store, key: SetKey) -> bool:
    """Whether there is nothing to do; then no lock is taken, and any number of processes may find it so."""
    folder = store.folder(key)
    return (folder / NAME).is_file() and read_manifest(folder).complete


def _fill(
    passed: Callable[[int, int], Iterator[Passed]],
    order: InOrder,
    writers: dict[tuple[Level, int], Writer],
    views: tuple[int, ...],
    shard_samples: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    batch_size, total = order.batch_size, order.num_samples
    first = min(writer.manifest.position for writer in writers.values())
    if first % batch_size and first < total:
        folder = next(iter(writers.values())).folder
        what, expected = f"{first:,} samples are done, by another batch size", f"a number that {batch_size} divides"
        raise DataError(what, source=folder, expected=expected, fix="use the same batch size")
    steps, began = -(-total // batch_size), time.monotonic()
    rejects: list[tuple[int, str, str]] = []
    for step, batch in enumerate(passed(first // batch_size, steps), first // batch_size):
        position = min((step + 1) * batch_size, total)
        samples = zip(batch.ids.tolist(), batch.keys, batch.facts, strict=True)
        rejects += [(sample, key, fact["bad"]) for sample, key, fact in samples if "bad" in fact]
        for (level, view), writer in writers.items():
            done = writer.manifest.position
            # A run that was killed between two sets' shards left one of them ahead.
            new = np.flatnonzero(batch.ids[batch.good] >= done)
            if len(new):
                writer.append(batch.rows[level][new, views.index(view)], **_columns(batch, batch.good[new]))
            if position > done and (position % shard_samples == 0 or position == total):
                listed = [(key, reason) for sample, key, reason in rejects if sample >= done]
                writer.commit(position=position, complete=position == total, rejects=listed)
        if progress is not None:
            rate = (position - first) / max(time.monotonic() - began, 1e-9)
            progress(Progress(position, total, rate, (total - position) / rate))
    for writer in writers.values():
        writer.commit(position=total, complete=True)


def _columns(batch: Passed, places: np.ndarray) -> dict[str, Any]:
    chosen = [batch.facts[place] for place in places]
    return {
        "id": [batch.keys[place] for place in places],
        **{name: [fact[name] for fact in chosen] for name in ("labels", "texts", "fields")},
        "sample": batch.ids[places],
        **{name: np.array([fact[name] for fact in chosen], dtype=np.uint64) for name in ("digest", "perceptual")},
    }


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A sample's picture as every view wants it, and its sidecar entries as JSON.

    One view of the model's own travels as bytes, which is a quarter; what normalisation makes of them is the same.
    """

    transform: Transform
    views: tuple[int, ...]
    crop: CropConfig
    seed: int

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        if (reason := pair.meta.get(_BAD)) is not None:
            return self._nothing(), json.dumps({"bad": reason})
        try:
            config = self.transform.config
            most = config.max_bytes
            picture = read_picture(pair.image, max_pixels=config.max_pixels, max_bytes=most, name=pair.key).image
            seeds = generator.integers(2**62, size=max(self.views) + 1)  # a view is the same whatever others there are
            if self.views == (0,):
                pixels = self.transform.pixels(picture, name=pair.key).numpy()[None]
            else:
                pixels = np.stack([self._view(picture, view, int(seeds[view]), pair.key) for view in self.views])
        except (DataError, LimitError) as error:
            if TOLERANT not in pair.meta:
                raise
            return self._nothing(), json.dumps({"bad": error.what, "digest": image_digest(pair.image)})
        size = {"width": picture.width, "height": picture.height}
        return pixels, json.dumps({**known_of(pair), **size, "perceptual": perceptual_hash(picture)})

    def _view(self, picture: Any, view: int, seed: int, name: str) -> np.ndarray:
        if view == 0:
            return self.transform(picture, name=name).numpy()
        return RandomView(self.transform.config, self.crop)(picture, numpy_generator(seed, "view"), name=name).numpy()

    def _nothing(self) -> np.ndarray:
        side = self.transform.config.image_size
        kind = np.uint8 if self.views == (0,) else np.float32
        return np.zeros((len(self.views), 3, side, side), dtype=kind)


_BAD: Any = ("bad",)  # no texts, so that nothing that a source says can be taken for them
TOLERANT: Any = ("tolerant",)


def known_of(pair: Pair) -> dict[str, Any]:
    """What the source says of a sample, as the columns have it, and which bytes its picture is."""
    meta = {name: value for name, value in pair.meta.items() if name not in ("label", "labels", TOLERANT)}
    labels = pair.meta.get("labels")
    if labels is None:
        labels = pair.meta.get("label")
    if not isinstance(labels, (list, tuple, np.ndarray)):
        labels = [] if labels is None else [labels]
    return {
        "labels": json.dumps([_utf8(str(label)) for label in labels], ensure_ascii=False),
        "texts": json.dumps([_utf8(text) for text in pair.texts], ensure_ascii=False),
        "fields": json.dumps(plain(meta), ensure_ascii=False, sort_keys=True, default=lambda value: _utf8(str(value))),
        "digest": image_digest(pair.image),
        "bytes": len(pair.image),
    }


def plain(value: Any) -> Any:
    """What JSON has a form for: numbers that are not finite are nothing, half signs are replaced, names are texts."""
    if isinstance(value, dict):
        return {_utf8(str(name)): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _utf8(value) if isinstance(value, str) else value


def _utf8(text: str) -> str:
    """A text that can be written: halves of signs, which JSON can name, become the sign for what is unknown."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Tolerant:
    """A source whose bad samples are read as such instead of raising."""

    def __init__(self, source: PairSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, index: int) -> Pair:
        try:
            pair = self.source.read(index)
        except (DataError, LimitError) as error:
            return Pair(key=self.source.key(index), image=b"", texts=(), meta={_BAD: error.what})
        return dataclasses.replace(pair, meta={**pair.meta, TOLERANT: True})
