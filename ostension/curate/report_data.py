"""What a report tells of a work folder: counts by stage and reason, and for each reason candidates drawn at random.

Letters: n rows of a part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.curate.base import DROPPED, TEXT_REASONS, TEXTS
from ostension.curate.lineage import CAPTIONS, Lineage, plain
from ostension.curate.work import STAGE, Entry, Work, read_part, schema_names
from ostension.files import read_json
from ostension.runtime import numpy_generator

SAMPLES = 12
KEPT = ""  # stands where a reason would
_GENERAL = ("id", "source_key", "place", "url", "meta", "source_texts", CAPTIONS, "dropped_by", DROPPED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A candidate that is shown.

    Attributes:
        id: as in the lineage.
        key: where it lies in the source.
        place: of its picture in the source, -1 without.
        url: of its picture, if that is known.
        texts: its captions, of a dropped one those that the stage was given.
        found: the stages' columns as JSON, by name.
    """

    id: int
    key: str
    place: int
    url: str | None
    texts: tuple[str, ...]
    found: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage did.

    Attributes:
        name: of the stage.
        folder: name of its folder.
        done: whether it has ended; the counts of one that has not are empty.
        rows: that it was given.
        kept: of them.
        reasons: rows dropped by reason, the most frequent first.
        texts: captions that it judged one by one, 0 if it does not.
        text_reasons: captions that went, by reason.
        seconds: of the sitting in which it ended, 0 if not known.
        peak_mb: memory of the process that led it.
        settings, inputs, identity: as in the folder.
        facts: what it found of the whole.
        rejects: what the source held besides candidates, by reason.
        samples: dropped candidates by reason.
    """

    name: str
    folder: str
    done: bool
    rows: int = 0
    kept: int = 0
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    texts: int = 0
    text_reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    identity: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rejects: Mapping[str, int] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, Sequence[Sample]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a work folder holds.

    Attributes:
        source: as typed.
        facts: of the work folder.
        stages: the candidates, then the stages in order.
        kept: candidates drawn from what is left.
    """

    source: tuple[str, ...]
    facts: Mapping[str, Any]
    stages: tuple[StageReport, ...]
    kept: Sequence[Sample]

    def as_json(self) -> dict[str, Any]:
        """As a JSON tree."""
        return plain(json.loads(json.dumps(dataclasses.asdict(self), default=str)))


def collect(work: Work, *, samples: int = SAMPLES, seed: int = 0) -> Report:
    """Read a work folder's counts, and draw candidates; its parts are read once more, a few columns of each.

    Raises:
        DataError: if its candidates have not been read to the end, or a part is damaged.
    """
    entries = work.entries
    ended = [entry for entry in entries if entry.done]
    work.num_parts  # noqa: B018  (refuses a folder without candidates)
    drawn = _drawn(work, ended, samples, seed) if samples else {}
    lineage = Lineage(work, len(ended))
    stages = tuple(_stage(entry, lineage, drawn.get(entry.number, {})) for entry in entries)
    kept = [_sample(lineage, part, row, None) for part, row in drawn.get(ended[-1].number, {}).get(KEPT, [])]
    return Report(source=work.facts.source, facts=to_tree(work.facts), stages=stages, kept=kept)


def _drawn(work: Work, entries: Sequence[Entry], count: int, seed: int) -> dict[int, dict[str, list[tuple[int, int]]]]:
    """For each entry and reason at most `count` (part, row), each row as likely as another; kept ones of the last entry."""
    best: dict[int, dict[str, list[tuple[float, int, int]]]] = {entry.number: {} for entry in entries}
    for number in range(work.num_parts):
        luck = numpy_generator(seed, "report", number).random(work.facts.part_size)
        for entry in entries:
            table = read_part(entry.part(number), ["row", DROPPED])
            if entry is not entries[-1]:
                table = table.filter(table[DROPPED].is_valid())
            rows, reasons = table["row"].to_numpy(), table[DROPPED].fill_null(KEPT).combine_chunks().dictionary_encode()
            order = np.argsort(luck[rows], kind="stable")
            codes = reasons.indices.to_numpy()[order]
            for code, reason in enumerate(reasons.dictionary.to_pylist()):
                here = order[np.flatnonzero(codes == code)[:count]]
                known = best[entry.number].get(reason, [])
                known += zip(luck[rows[here]].tolist(), [number] * len(here), rows[here].tolist(), strict=True)
                best[entry.number][reason] = sorted(known)[:count]
    return {
        number: {reason: sorted((part, row) for _, part, row in chosen) for reason, chosen in found.items()}
        for number, found in best.items()
    }


def _stage(entry: Entry, lineage: Lineage, drawn: Mapping[str, Sequence[tuple[int, int]]]) -> StageReport:
    tree = read_json(entry.folder / STAGE)
    said = {
        "name": entry.name, "folder": entry.folder.name, "settings": entry.settings, "inputs": tree.get("inputs", {}),
        "identity": entry.identity,
    }  # fmt: skip
    if not entry.done:
        return StageReport(done=False, **said)
    counts = entry.counts()
    samples = {
        reason: [_sample(lineage, part, row, entry) for part, row in places] for reason, places in drawn.items() if reason
    }
    return StageReport(
        done=True, **said, rows=counts["rows"], kept=counts["kept"], reasons=_falling(counts["reasons"]),
        texts=counts["texts"], text_reasons=_falling(counts["text_reasons"]), seconds=counts.get("seconds", 0.0),
        peak_mb=counts.get("peak_mb", 0.0), facts=counts.get("facts", {}), rejects=_falling(counts.get("rejects", {})),
        samples={reason: samples[reason] for reason in _falling(counts["reasons"]) if reason in samples},
    )  # fmt: skip


def _falling(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sample(lineage: Lineage, part: int, row: int, dropper: Entry | None) -> Sample:
    """One candidate; `dropper` is what dropped it."""
    (found,) = lineage.rows(part, [row])
    texts = found[CAPTIONS]
    if dropper is not None and dropper.number:  # it may have taken the captions away
        before = [entry for entry in lineage.entries[: dropper.number] if TEXTS in schema_names(entry.part(part))]
        name = f"{lineage.name_of(before[-1])}.{TEXTS}" if before[-1].number else "source_texts"
        texts = found[name]
    columns = {name: plain(value) for name, value in found.items() if name not in _GENERAL and value is not None}
    hidden = (f".{TEXTS}", f".{TEXT_REASONS}")
    return Sample(
        id=found["id"], key=found["source_key"], place=found["place"], url=found["url"], texts=tuple(texts or ()),
        found={name: value for name, value in columns.items() if not name.endswith(hidden)},
    )  # fmt: skip
