"""Running stages: part by part, here, in several processes, or on a cluster, with the same bytes.

What a process does for a part is `PartWork`, a function of the work folder and the part's number; executors differ in where
they call it. Parts that are there are not made again, so a run that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ostension.curate.base import DROPPED, TEXT_REASONS, TEXTS, Columns, Part, Stage, load_stage
from ostension.curate.candidates import as_columns, batched, describe, pair_row, read_captions
from ostension.curate.work import (
    CANDIDATES,
    DONE,
    Entry,
    Facts,
    Work,
    read_part,
    schema_names,
    settings_of,
    sweep,
    write_part,
    writing,
)
from ostension.data.img2dataset import failures
from ostension.data.workers import Note, in_line, in_processes
from ostension.data.workers import Work as Doing
from ostension.errors import ConfigError, DataError, UsageError
from ostension.files import folder_lock, read_json, write_json

On = Literal["local", "ray"]
Progress = Callable[[str, int, int], None]  # what is done, parts of it, of how many
REDUCED = "facts.json"
PATIENCE_S = 86_400.0  # a part of pictures before a slow model may take hours


@contextlib.contextmanager
def connected(on: On, workers: int = 0, address: str | None = None) -> Iterator[None]:
    """While entered, all that runs on a cluster shares one connection; nothing is done for what runs here.

    Raises:
        UsageError: for an address beside "local".
        ProcessError: if the cluster cannot be reached.
    """
    if on == "local":
        if address is not None:
            raise UsageError(f"--ray-address is {address}, but all runs here", expected="it with --on ray")
        yield
        return
    from ostension.curate.ray_executor import cluster

    with cluster(workers, address):
        yield


def begin(folder: Path, facts: Facts, *, workers: int = 0, on: On = "local", progress: Progress | None = None) -> Work:
    """The work folder with its candidates, read if they are not there.

    Raises:
        DataError: if the folder is of another source, or in use; if nothing in the source can be used.
    """
    work = Work.create(folder, facts)
    with folder_lock(work.folder):
        entry = work.add(CANDIDATES, {}, {}, 0)
        sweep(work.folder, entry.folder)
        if _whole(entry):
            return _some(work, entry)
        started = time.monotonic()
        if facts.pictures:
            parts = -(-len(work.source) // facts.part_size)
            missing = [number for number in range(parts) if not entry.part(number).is_file()]
            each(PartWork(work.folder, 0, "read"), missing, parts, "read", workers, on, progress)
            rejects = {**work.source.summary().rejects, **failures(work.source)}
        else:
            if (
                describe(facts.source, layout=facts.layout, part_size=facts.part_size, captions_only=not facts.pictures)
                != facts
            ):
                source = " ".join(facts.source)
                raise DataError("has changed since it was first read", source=source, fix="begin a new work folder")
            parts, rejects = 0, {}
            for number, rows in enumerate(batched(read_captions(facts.source, facts.layout), facts.part_size)):
                parts = number + 1
                if not entry.part(number).is_file():
                    write_part(entry.part(number), _numbers(len(rows)), as_columns(rows, None), CANDIDATES)
                if progress is not None:
                    progress(CANDIDATES, parts, 0)
            if not parts:
                raise DataError("nothing in it", source=" ".join(facts.source), expected="captions")
        _end(work, entry, parts, {"rejects": rejects}, started)
        return _some(work, entry)


def _some(work: Work, entry: Entry) -> Work:
    """The same, if any candidate can be used."""
    counts = entry.counts()
    if not counts["kept"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts["reasons"].items())
        what = f"none of {counts['rows']:,} rows can be used ({reasons})"
        fix = "look at one with `ostension data inspect`; --captions-only takes a table's captions alone"
        raise DataError(what, source=" ".join(work.facts.source), fix=fix)
    return work


def run_stage(
    work: Work, name: str, config: Any, *, place: int | None = None, workers: int = 0, on: On = "local",
    progress: Progress | None = None,
) -> Entry:  # fmt: skip
    """Run a stage over all that lives, or go on with one that was stopped; one that is done is left as it is.

    Args:
        place: where in the chain it has to be; by default after all stages that are there.
        workers: processes; 0 computes in this one.
        on: "ray" shares parts out over a Ray cluster whose nodes all see the work folder.

    Raises:
        DataError: if the folder is in use, or a part cannot be read.
    """
    stage = load_stage(name)(config)
    stage.check()
    with folder_lock(work.folder):
        if not work.entries or not work.entries[0].done:
            raise DataError(
                "its candidates have not been read to the end", source=work.folder, fix="run the first command again"
            )
        entry = work.add(name, settings_of(stage), stage.inputs(), place)
        sweep(entry.folder)
        if _whole(entry):
            return entry
        started, numbers = time.monotonic(), range(work.num_parts)
        facts: dict[str, Any] = {}
        if stage.looks_at_whole():
            missing = [number for number in numbers if not entry.part(number, "mapped").is_file()]
            each(PartWork(work.folder, entry.number, "map"), missing, len(numbers), "map", workers, on, progress)
            if not (entry.folder / REDUCED).is_file():
                found = stage.reduce(_Parts(work, entry, "mapped"), entry.folder)
                with writing(entry.folder / REDUCED):
                    write_json(entry.folder / REDUCED, found)
            facts = _facts(entry)
        missing = [number for number in numbers if not entry.part(number).is_file()]
        each(PartWork(work.folder, entry.number, "end"), missing, len(numbers), "end", workers, on, progress)
        if stage.sums_up():
            facts = stage.reduce(_Parts(work, entry, "part"), entry.folder)
        _end(work, entry, len(numbers), {"facts": facts}, started)
    return entry


class PartWork:
    """What is done for one part: the same wherever it is called.

    Args:
        folder: of the work.
        number: of the stage's entry.
        phase: "read" candidates of pairs, "map" for the first pass of a stage that looks at the whole, "end" for the last pass.
    """

    def __init__(self, folder: Path, number: int, phase: Literal["read", "map", "end"]):
        self.folder, self.number, self.phase = folder, number, phase
        self._opened: tuple[Work, Entry, Stage | None, dict[str, Any]] | None = None

    def __call__(self, task: int, note: Note) -> int:
        work, entry, stage, facts = self._open()
        note(f"part {task} of {entry.name}")
        if stage is None:
            first = task * work.facts.part_size
            places = range(first, min(first + work.facts.part_size, len(work.source)))
            rows = [pair_row(work.source, place) for place in places]
            write_part(entry.part(task), _numbers(len(rows)), as_columns(rows, places), entry.name)
            return len(rows)
        part = work.part(task, self.number)
        if self.phase == "map":
            write_part(entry.part(task, "mapped"), part.rows, stage.map(part), entry.name)
        elif stage.looks_at_whole():
            columns = stage.decide(part, read_part(entry.part(task, "mapped")), facts, entry.folder)
            write_part(entry.part(task), part.rows, _sound(columns), entry.name)
        else:
            write_part(entry.part(task), part.rows, _sound(stage.map(part)), entry.name)
        return len(part)

    def _open(self) -> tuple[Work, Entry, Stage | None, dict[str, Any]]:
        if self._opened is None:
            work = Work(self.folder)
            entry = work.entries[self.number]
            stage = None if self.phase == "read" else entry.stage()
            whole = stage is not None and stage.looks_at_whole() and self.phase == "end"
            self._opened = work, entry, stage, _facts(entry) if whole else {}
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def count(entry: Entry, parts: int) -> dict[str, Any]:
    """Rows of a stage, and what it dropped by reason; of single captions too."""
    rows = kept = texts = 0
    reasons: dict[str, int] = {}
    text_reasons: dict[str, int] = {}
    for number in range(parts):
        path = entry.part(number)
        singly = TEXT_REASONS in schema_names(path)
        table = read_part(path, [DROPPED, *([TEXT_REASONS] if singly else [])])
        rows += len(table)
        kept += table[DROPPED].null_count
        _add(reasons, table[DROPPED].combine_chunks())
        if singly:
            flat = table[TEXT_REASONS].combine_chunks().flatten()
            texts += len(flat)
            _add(text_reasons, flat)
    return {"rows": rows, "kept": kept, "parts": parts, "reasons": reasons, "texts": texts, "text_reasons": text_reasons}


def _add(totals: dict[str, int], column: Any) -> None:
    for value in column.drop_null().value_counts().to_pylist():
        totals[value["values"]] = totals.get(value["values"], 0) + value["counts"]


class _Parts:
    """All parts with what a pass made of them, in order, as often as they are gone through."""

    def __init__(self, work: Work, entry: Entry, kind: Literal["mapped", "part"]):
        self.work, self.entry, self.kind = work, entry, kind

    def __iter__(self) -> Iterator[tuple[Part, Any]]:
        for number in range(self.work.num_parts):
            yield self.work.part(number, self.entry.number), read_part(self.entry.part(number, self.kind))


def _end(work: Work, entry: Entry, parts: int, rest: dict[str, Any], started: float) -> None:
    counts = count(entry, parts)
    counts["reasons"] = dict(sorted(counts["reasons"].items()))
    counts["text_reasons"] = dict(sorted(counts["text_reasons"].items()))
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = {"seconds": round(time.monotonic() - started, 3), "peak_mb": round(usage, 1)}
    with writing(entry.folder / DONE):
        write_json(entry.folder / DONE, {**counts, **spent, **rest})


def _facts(entry: Entry) -> dict[str, Any]:
    """What `reduce` found, read back."""
    path = entry.folder / REDUCED
    found = read_json(path)
    if not isinstance(found, dict) or not _finite(found):
        raise DataError("no facts of a stage", source=path, fix="remove the file and run the stage again")
    return found


def _finite(tree: Any) -> bool:
    if isinstance(tree, float):
        return math.isfinite(tree)
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return all(map(_finite, inside))


def _whole(entry: Entry) -> bool:
    """Whether a stage has ended and all its parts are there: one that was found damaged and removed is made again."""
    return entry.done and all(entry.part(number).is_file() for number in range(entry.counts()["parts"]))


def _sound(columns: Columns) -> Columns:
    """The same; a row that lives has a caption if captions are given."""
    if TEXTS in columns:
        dropped = columns.get(DROPPED) or [None] * len(columns[TEXTS])
        for texts, reason in zip(columns[TEXTS], dropped, strict=True):
            assert len(texts) or reason is not None, "a row without captions is not dropped"
    return columns


def _numbers(count: int) -> Any:
    import numpy as np

    return np.arange(count, dtype=np.int32)


def each(
    work: Doing, missing: list[int], total: int, what: str, workers: int, on: On, progress: Progress | None
) -> None:  # fmt: skip
    """Do all missing parts of `total`; `what` is told to `progress`."""
    done = total - len(missing)
    with contextlib.closing(_executed(work, missing, workers, on)) as answers:  # type: ignore[type-var]
        for _ in answers:
            done += 1
            if progress is not None:
                progress(what, done, total)


def _executed(work: Doing, tasks: Iterable[int], workers: int, on: On) -> Iterator[Any]:
    if on == "ray":
        from ostension.curate.ray_executor import in_ray

        return in_ray(work, tasks, workers)
    if workers < 0:
        raise ConfigError(f"{workers} workers", expected="0 or more")
    return in_processes(work, tasks, workers, PATIENCE_S) if workers else in_line(work, tasks)
