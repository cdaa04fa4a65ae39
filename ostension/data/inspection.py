"""What is in a source of pairs: counts, sizes, text lengths, what cannot be used, and a few samples."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ostension.data.pairs import Joined, PairSource
from ostension.errors import DataError, LimitError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One of several sources with weights.

    Attributes:
        share: its part of every batch.
        epochs: how often it is passed while as many samples are taken as all sources have.
    """

    name: str
    num_pairs: int
    share: float
    epochs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """A source as a JSON tree can hold it.

    Attributes:
        num_pairs, num_bytes, rejects, notes: see `Summary`.
        fingerprint: of the source.
        num_identical_images: images whose bytes occur earlier in the source; None where that was not looked at.
        num_checked: pairs that were read and decoded, spread evenly over the source.
        num_unusable: those that could not be used, with `reasons`, and the first few in `unusable` (key and why).
        image_bytes, image_width, image_height, text_letters, text_words: smallest, median and largest.
        captions: mean number of captions an image.
        formats: checked images by format and mode.
        traits: checked images by what is unusual about them (see `image.decode.TRAITS`).
        samples: the first few pairs: key, captions, metadata.
        sources: the parts of a mixture; empty for one source.
    """

    num_pairs: int
    num_bytes: int
    fingerprint: str
    rejects: dict[str, int]
    notes: tuple[str, ...]
    num_identical_images: int | None
    num_checked: int
    num_unusable: int
    reasons: dict[str, int]
    unusable: tuple[tuple[str, str], ...]
    image_bytes: tuple[float, ...]
    image_width: tuple[float, ...]
    image_height: tuple[float, ...]
    text_letters: tuple[float, ...]
    text_words: tuple[float, ...]
    captions: float
    formats: dict[str, int]
    traits: dict[str, int]
    samples: tuple[dict[str, Any], ...]
    sources: tuple[Share, ...] = ()


def inspect_pairs(
    source: PairSource,
    *,
    num_checked: int = 1000,
    num_samples: int = 3,
    progress: Callable[[Sequence[int]], Iterator[int]] = iter,
) -> Inspection:
    """Read and decode up to `num_checked` pairs of a source, spread evenly over it, and say what is there.

    Args:
        progress: wraps the list of pairs, to show how far the work is.
    """
    from ostension.image.decode import read_picture

    count = min(num_checked, len(source))
    measured: dict[str, list[int]] = {name: [] for name in ("bytes", "width", "height", "letters", "words", "captions")}
    reasons: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    traits: Counter[str] = Counter()
    unusable: list[tuple[str, str]] = []
    samples: list[dict[str, Any]] = []
    for index in progress([at * len(source) // count for at in range(count)]):
        try:
            pair = source.read(index)
            picture = read_picture(pair.image, name=pair.key)
        except (DataError, LimitError) as error:
            reasons[error.what] += 1
            unusable.append((source.key(index), error.what))
            continue
        measured["bytes"].append(len(pair.image))
        measured["width"].append(picture.image.width)
        measured["height"].append(picture.image.height)
        measured["captions"].append(len(pair.texts))
        measured["letters"] += map(len, pair.texts)
        measured["words"] += (len(text.split()) for text in pair.texts)
        formats[f"{picture.format} {picture.image.mode}"] += 1
        traits.update(sorted(picture.traits))
        if len(samples) < num_samples:
            samples.append({"key": pair.key, "texts": list(pair.texts), "meta": pair.meta})
    summary = source.summary()
    return Inspection(
        num_pairs=len(source),
        num_bytes=summary.num_bytes,
        fingerprint=source.fingerprint(),
        rejects=summary.rejects,
        notes=summary.notes,
        num_identical_images=_identical(source),
        num_checked=count,
        num_unusable=sum(reasons.values()),
        reasons=dict(reasons.most_common(20)),
        unusable=tuple(unusable[:10]),
        image_bytes=_spread(measured["bytes"]),
        image_width=_spread(measured["width"]),
        image_height=_spread(measured["height"]),
        text_letters=_spread(measured["letters"]),
        text_words=_spread(measured["words"]),
        captions=float(np.mean(measured["captions"])) if measured["captions"] else 0.0,
        formats=dict(formats.most_common()),
        traits=dict(traits.most_common()),
        samples=tuple(samples),
    )


def inspect_mixture(sources: Mapping[str, PairSource], weights: Sequence[float], **options: Any) -> Inspection:
    """The same of several sources with weights (see `mixture`); `options` are those of `inspect_pairs`."""
    total, num_pairs = sum(weights), sum(map(len, sources.values()))
    parts = tuple(
        Share(name=name, num_pairs=len(source), share=weight / total, epochs=weight / total * num_pairs / len(source))
        for (name, source), weight in zip(sources.items(), weights, strict=True)
    )
    return dataclasses.replace(inspect_pairs(Joined(list(sources.values())), **options), sources=parts)


def _identical(source: PairSource) -> int | None:
    # Only shards have the hashes at hand; elsewhere every image would have to be read.
    from ostension.data.tar_shards import TarShards

    parts = source.sources if isinstance(source, Joined) else [source]
    if not all(isinstance(part, TarShards) for part in parts):
        return None
    return len(source) - len(np.unique(source.image_digests()))


def _spread(values: list[int]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, (0, 50, 100))) if values else ()
