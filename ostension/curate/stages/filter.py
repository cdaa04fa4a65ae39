"""Drop pairs by rules for captions and pictures: language, length, titles, repetition, size, damage, hooks.

Each caption of a pair is judged alone, and the pair goes when none is left, or when its picture goes. Pictures of pairs whose
captions went are not looked at. Cheap rules come first, and the first one that applies is the reason.

Columns: `language` and `language_p` (for each caption), `format`, `width`, `height`, `frames` and `bytes` of the picture,
`unsafe_caption` (for each caption) and `unsafe_picture` (scores), those of the rules that are on; `shared` where captions are
counted over all pairs, the hash of each caption that was left to count.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.curate.base import Columns, Part, Stage
from ostension.curate.captions_repetition import caption_hash, count_shared
from ostension.curate.captions_rules import Captions, Judge
from ostension.curate.captions_unsafe import Hook
from ostension.curate.filter_presets import over, read_preset
from ostension.curate.images_rules import Judged, Pictures, judge
from ostension.errors import ConfigError, DataError, LimitError, require_extra

EXTRA = "curate"
HOOK_BATCH = 64  # pictures that the hook for unsafe ones is given together
SHARED = "shared.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsafe:
    """Hooks for unsafe content. None comes with the library, and none proves that what is left is safe.

    Attributes:
        words: a file of words and phrases, one a line: a caption that has one of them goes.
        captions: a function that gives captions scores, as package.module:function; it takes a list of strings.
        caption_score: captions with this score or a higher one go.
        pictures: a function that gives pictures scores, likewise; it takes a list of encoded pictures.
        picture_score: pairs whose picture has this score or a higher one go.
    """

    words: str = ""
    captions: str = ""
    caption_score: float = 0.5
    pictures: str = ""
    picture_score: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        preset: named rules, which those that are given override (`ostension/curate/filter_presets`): datacomp-basic,
            datacomp-captions, laion, align, yfcc, tidy.
        captions: rules for captions.
        pictures: rules for pictures.
        unsafe: hooks for unsafe content.
    """

    preset: str = ""
    captions: Captions = dataclasses.field(default_factory=Captions)
    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    unsafe: Unsafe = dataclasses.field(default_factory=Unsafe)

    def __post_init__(self):
        for name in ("caption_score", "picture_score"):
            value = getattr(self.unsafe, name)
            require(np.isfinite(value), f"unsafe.{name}", value, "a number")
        captions, pictures = self.rules()
        hooks = self.unsafe.words or self.unsafe.captions or self.unsafe.pictures
        if not (captions.active or pictures.active or hooks):
            raise ConfigError("no rule is on", source="filter", expected="a preset, or rules for captions or pictures")

    def rules(self) -> tuple[Captions, Pictures]:
        """What holds: the preset's rules under those that are given."""
        if not self.preset:
            return self.captions, self.pictures
        record = read_preset(self.preset)
        source = f"preset {self.preset}"
        return over(record.get("captions", {}), self.captions, source), over(record.get("pictures", {}), self.pictures, source)


class Filter(Stage):
    """Captions and pictures by rules."""

    name, config_type = "filter", Config

    def __init__(self, config: Config):
        super().__init__(config)
        self.captions, self.pictures = config.rules()

    def looks_at_whole(self) -> bool:
        """Only where captions are counted over all pairs."""
        return bool(self.captions.max_pairs)

    def check(self) -> None:
        """Open every file and find every function that the settings point to."""
        self.judge.check()
        if self.picture_hook is not None:
            self.picture_hook.check()

    def inputs(self) -> dict[str, Any]:
        """The rules in force, and the hashes of files and hooks."""
        hook = {} if self.picture_hook is None else {"unsafe_pictures": self.picture_hook.sha256()}
        return {"captions": to_tree(self.captions), "pictures": to_tree(self.pictures), **self.judge.inputs(), **hook}

    @functools.cached_property
    def judge(self) -> Judge:
        unsafe = self.config.unsafe
        hook = (Hook(unsafe.captions, "unsafe.captions"), unsafe.caption_score) if unsafe.captions else None
        return Judge(self.captions, unsafe.words, hook)

    @functools.cached_property
    def picture_hook(self) -> Hook | None:
        unsafe = self.config.unsafe
        return Hook(unsafe.pictures, "unsafe.pictures") if unsafe.pictures else None

    def map(self, part: Part) -> Columns:
        columns = self._captions(part)
        kept = np.array([reason is None for reason in columns["dropped"]], bool)
        if self.pictures.active or self.picture_hook is not None:
            columns.update(self._pictures(part, np.flatnonzero(kept), columns["dropped"]))
        if self.looks_at_whole():
            arrow = require_extra("pyarrow", EXTRA)
            hashes = [
                [caption_hash(text) for text in texts] if reason is None else []
                for texts, reason in zip(columns["texts"], columns["dropped"], strict=True)
            ]
            columns["shared"] = arrow.array(hashes, arrow.list_(arrow.uint64()))
        return columns

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        from ostension.curate.filter_figures import filter_figures

        unsafe = self.config.unsafe
        limits = {
            "words": self.captions.min_words, "characters": self.captions.min_characters,
            "language_p": self.captions.min_language,
            "shorter_side": self.pictures.min_side, "aspect": self.pictures.max_aspect,
            "unsafe_caption": unsafe.caption_score, "unsafe_picture": unsafe.picture_score,
        }  # fmt: skip
        return filter_figures(facts, {name: limit for name, limit in limits.items() if limit})

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """Histograms of what was measured; and, where captions are counted, those that too many pairs have."""
        from ostension.curate.filter_figures import Seen

        seen = Seen()

        def hashes() -> Iterator[np.ndarray]:
            for part, mapped in parts:
                seen.add(part.texts, mapped)
                if self.looks_at_whole():
                    # A pair counts a caption once, however often it has it.
                    yield np.array([one for row in mapped["shared"].to_pylist() for one in set(row)], np.uint64)

        if not self.looks_at_whole():
            for _ in hashes():
                pass
            return seen.facts()
        assert self.captions.max_pairs
        found = count_shared(hashes(), self.captions.max_pairs, folder)
        np.save(folder / SHARED, found)
        return {**seen.facts(), "shared_captions": len(found)}

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        shared = np.load(folder / SHARED)
        columns: dict[str, Any] = {name: mapped[name].combine_chunks() for name in mapped.column_names if name != "row"}
        hashes = mapped["shared"].combine_chunks()
        counts = np.diff(hashes.offsets.to_numpy())
        gone = np.isin(hashes.flatten().to_numpy(), shared)
        if not gone.any():
            return columns
        dropped, texts, reasons = (columns[name].to_pylist() for name in ("dropped", "texts", "text_reasons"))
        ends = np.cumsum(counts)
        for row in np.unique(np.repeat(np.arange(len(counts)), counts)[gone]):
            marks = gone[ends[row] - counts[row] : ends[row]].tolist()
            left = [place for place, reason in enumerate(reasons[row]) if reason is None]
            for place, mark in zip(left, marks, strict=True):
                if mark:
                    reasons[row][place] = "shared caption"
            texts[row] = [text for text, mark in zip(texts[row], marks, strict=True) if not mark]
            dropped[row] = None if texts[row] else reason_of(reasons[row])
        return {**columns, "dropped": dropped, "texts": texts, "text_reasons": reasons}

    def _captions(self, part: Part) -> dict[str, Any]:
        """The columns of the captions, judged all together."""
        counts = [len(texts) for texts in part.texts]
        flat = [text for texts in part.texts for text in texts]
        names = [key for key, count in zip(part.keys, counts, strict=True) for _ in range(count)]
        reasons, found = self.judge(flat, names)
        arrow = require_extra("pyarrow", EXTRA)
        rows = list(_split(reasons, counts))
        columns: dict[str, Any] = {
            "dropped": [reason_of(row) for row in rows],
            "texts": [
                [text for text, reason in zip(texts, row, strict=True) if reason is None]
                for texts, row in zip(part.texts, rows, strict=True)
            ],
            "text_reasons": rows,
        }
        kinds = {"language": arrow.string(), "language_p": arrow.float32(), "unsafe_caption": arrow.float32()}
        for name, values in found.items():
            columns[name] = arrow.array(list(_split(values, counts)), arrow.list_(kinds[name]))
        return columns

    def _pictures(self, part: Part, rows: np.ndarray, dropped: list[str | None]) -> dict[str, Any]:
        """The columns of the pictures of these rows; `dropped` takes the reasons in."""
        reads = self.pictures.reads or self.picture_hook is not None
        if reads and not part.has_pictures:
            raise DataError(
                "rules for pictures, and the source holds captions alone", source=part.name,
                fix="pictures.check=off leaves pictures out, pictures.sizes=meta takes sizes from the source's fields",
            )  # fmt: skip
        judged: dict[int, Judged] = {}
        scores: dict[int, float] = {}
        waiting: list[tuple[int, bytes]] = []
        for row in rows.tolist():
            data = None
            if reads:
                try:
                    data = part.image(row)
                except (DataError, LimitError):
                    dropped[row] = "unreadable"
                    continue
            if self.pictures.active:
                meta = part.meta[row] if self.pictures.from_meta else {}
                judged[row] = judge(data if self.pictures.reads else None, meta, self.pictures)
                dropped[row] = judged[row].reason
            if self.picture_hook is not None and dropped[row] is None:
                assert data is not None
                waiting.append((row, data))
                if len(waiting) == HOOK_BATCH:
                    self._score(part, waiting, scores, dropped)
        self._score(part, waiting, scores, dropped)
        return _picture_columns(len(part), judged if self.pictures.active else None, scores if self.picture_hook else None)

    def _score(self, part: Part, waiting: list[tuple[int, bytes]], scores: dict[int, float], dropped: list[str | None]) -> None:
        """Give the pictures that wait to the hook."""
        if not waiting or self.picture_hook is None:
            return
        found = self.picture_hook([data for _, data in waiting], [part.keys[row] for row, _ in waiting])
        for (row, _), score in zip(waiting, found.tolist(), strict=True):
            scores[row] = score
            if score >= self.config.unsafe.picture_score:
                dropped[row] = "unsafe picture"
        waiting.clear()


def reason_of(reasons: Sequence[str | None]) -> str | None:
    """Why a pair goes, from its captions' reasons: None while one is left, their reason if they share it."""
    if not reasons:
        return "no text"
    if None in reasons:
        return None
    return reasons[0] if len(set(reasons)) == 1 else "no caption left"


def _split(values: Sequence[Any], counts: Sequence[int]) -> Iterator[list[Any]]:
    place = 0
    for count in counts:
        yield list(values[place : place + count])
        place += count


def _picture_columns(rows: int, judged: dict[int, Judged] | None, scores: dict[int, float] | None) -> dict[str, Any]:
    """Columns of typed values, null where a picture was not looked at."""
    arrow = require_extra("pyarrow", EXTRA)
    columns: dict[str, Any] = {}
    if judged is not None:
        headers = [judged[row].header if row in judged else None for row in range(rows)]
        columns["format"] = arrow.array([None if one is None else one.format or None for one in headers], arrow.string())
        for name in ("width", "height", "frames"):
            values = [None if one is None else getattr(one, name) or None for one in headers]
            columns[name] = arrow.array(values, arrow.int32())
        counts = [judged[row].bytes or None if row in judged else None for row in range(rows)]
        columns["bytes"] = arrow.array(counts, arrow.int64())
    if scores is not None:
        columns["unsafe_picture"] = arrow.array([scores.get(row) for row in range(rows)], arrow.float32())
    return columns
