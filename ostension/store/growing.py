"""`add`: the pictures of a source into a collection, as far as they are new or others than before.

The source is read once to see what there is to do (see `scan` and `plan`); then what is to be encoded is decoded by threads
and passes the tower, here, or whole batches in several processes, here or on several machines under `torchrun`. One process
writes, a shard at a time, in the order of the source. So the files do not depend on how many there are, nor on where an
earlier run was stopped, and a kill loses one shard at most.

Letters: B batch, E embedding.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ostension import world
from ostension.config import require, to_tree
from ostension.data.pairs import PairSource, image_digest
from ostension.errors import DataError, LimitError
from ostension.image.augment import CropConfig
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.modes import evaluating
from ostension.store.collection import (
    CUT,
    DEFAULT,
    Source,
    check_key,
    collection_key,
    collection_names,
    grown,
    name_of,
    sources,
)
from ostension.store.fill import SHARD_BATCHES, Decoding, Progress, Tolerant, known_of
from ostension.store.folder import Store
from ostension.store.key import Kind, ModelKey, SetKey, Stored
from ostension.store.passes import Passed, Reading, passed_here, passed_in_processes, passed_texts
from ostension.store.plan import BAD, ENCODE, LIST, ROW, SAME, SAMPLE, Held, Plan, Shard, plan
from ostension.store.scan import Scanned, described, scan
from ostension.store.sets import EmbeddingSet
from ostension.store.writer import SHARD_ROWS, Writer

CHANGED = "changed while it was being read"
TEXTS = ("labels", "texts", "fields")
# Columns that follow from the bytes alone.
KNOWN: dict[Kind, tuple[str, ...]] = {
    "images": ("digest", "perceptual", "width", "height", "bytes"),
    "texts": ("digest", "bytes"),
}
UNSIGNED = ("digest", "perceptual", "described")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added:
    """What an `add` did, or would do.

    Attributes:
        name: of the collection.
        samples: in the source.
        rows: in the collection afterwards.
        unchanged: samples that were there already.
        new: samples that had no row and have one now.
        changed: samples with another picture than before.
        described: samples whose captions, labels or fields alone are others than before.
        encoded: pictures that passed the tower.
        copied: samples whose picture is that of another one, whose row they got.
        failed: samples that could not be used in this run.
        known_bad: samples that could not be used in an earlier run and are as they were.
        removed: rows of samples that the source no longer has.
        seconds: that it took.
        problems: the ids of what could not be used, in this run or before, with the reasons.
    """

    name: str
    samples: int
    rows: int
    unchanged: int
    new: int
    changed: int
    described: int
    encoded: int
    copied: int
    failed: int
    known_bad: int
    removed: int
    seconds: float
    problems: tuple[tuple[str, str], ...]


def add(
    store: Store,
    model: CLIP,
    source: PairSource,
    *,
    name: str = DEFAULT,
    origin: Source | None = None,
    stored: Stored = "float16",
    batch_size: int = 64,
    shard_batches: int = SHARD_BATCHES,
    workers: int | None = None,
    processes: int = 1,
    retry: bool = False,
    prune: bool = False,
    dry_run: bool = False,
    transform: Transform | None = None,
    made: ModelKey | None = None,
    model_at: str = "",
    truncate: bool = False,
    progress: Callable[[Progress], None] | None = None,
    scanned: Callable[[int, int], None] | None = None,
) -> Added:
    """Add the pictures of a source, or the captions of one of the kind "texts", to a collection, which is made with the first.

    Under `torchrun`, inside `world.joined()`, every process calls this and encodes its part; the first one writes.

    Args:
        name: of the collection.
        origin: what the source is called and where it lies; by default it is known by its fingerprint.
        stored: the numbers on the disk.
        batch_size: pictures that pass the tower together.
        shard_batches: batches of a shard, of which a kill loses at most one.
        workers: threads that decode for the one that computes; by default as many as there are processors.
        processes: processes that decode and compute, each whole batches with one thread.
        retry: try again what could not be used before.
        prune: remove the rows of this source's samples that it no longer has.
        dry_run: only say what would be done.
        transform: the preprocessing, if not the model's own; it stands in the key.
        made: the model's key, if it is known; else its weights are hashed.
        model_at: where the model lies, for whoever searches.
        truncate: cut texts that are too long for the model instead of listing them as ones that cannot be used.
        progress: told after each batch.
        scanned: told how many samples of the source were looked at, of how many.

    Raises:
        DataError: if the collection is another model's or transform's, or of another precision; if another process writes it;
            if ids clash with another source's; if the disk is full, which loses the last shard.
    """
    require(batch_size >= 1 and shard_batches >= 1, "batch_size", batch_size, "1 or more")
    require(processes >= 1, "processes", processes, "1 or more")
    require(processes == 1 or not workers, "workers", workers, "0, as each of several processes decodes for itself")
    here = world.current()
    require(here.size == 1 or processes == 1, "processes", processes, "1 under torchrun, which starts the processes")
    kind: Kind = getattr(source, "kind", "images")
    require(kind == "images" or processes == 1, "processes", processes, "1 for texts, of which one encodes thousands a second")
    require(kind == "texts" or not truncate, "truncate", truncate, "False for pictures")
    began = time.monotonic()
    transform = transform or model.transform
    made = dataclasses.replace(made or ModelKey.of(model), preprocess=to_tree(transform.config))
    key = collection_key(made, name, stored, kind=kind, truncate=truncate)
    there = collection_names(store).get(name)
    if there is not None:
        check_key(EmbeddingSet(store.path / there).key, key, store.path / there)  # before all of the source is read
    origin = origin or Source(name=source.fingerprint())
    known_by_id = bool(getattr(source, "known_by_id", False))
    found = scan(source, origin.prefix, scanned)
    planned = functools.partial(plan, found, known_by_id=known_by_id, retry=retry)
    if dry_run:
        rows, held, number = _as_it_is(store, key, origin)
        outcome = _Outcome(found, planned(held, source=number), {})
        gone = _gone(found, held, number) if prune else []
        return outcome.told(name, rows + outcome.num_new - len(gone), len(gone), time.monotonic() - began)
    reading = Reading(
        source=Tolerant(source), order=_Order(len(source), batch_size, []), transform=transform, seed=0, kind="threads",
        decode=Decoding(transform, (0,), CropConfig(), 0), workers=(os.cpu_count() or 1) if workers is None else workers,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        # Only the first process holds the lock and writes; the others read what it found.
        entered = here.together(lambda: stack.enter_context(grown(store, key, origin, model_at)) if here.first else None)
        number = here.all_facts(entered[1] if entered else 0)[0]
        writer = entered[0] if entered else None
        opened = here.together(lambda: EmbeddingSet(store.folder(key)))
        held = Held.of(opened)
        todo = here.together(lambda: planned(held, source=number))
        work = _Work(todo, found, source, opened, number, writer, kind)
        work.run(model, reading, list(todo.shards(batch_size, shard_batches, SHARD_ROWS)), processes, progress)
        gone = _gone(found, held, number) if prune else []
        here.together(lambda: _finish(writer, gone))
        rows = len(EmbeddingSet(store.folder(key)))
        here.agree()  # all have looked before the lock is given back
    return _Outcome(found, todo, work.failed).told(name, rows, len(gone), time.monotonic() - began)


def _as_it_is(store: Store, key: SetKey, origin: Source) -> tuple[int, Held, int]:
    """The number of rows of a collection, what it holds, and a source's number in it; nothing is made."""
    there = collection_names(store).get(name_of(key))
    if there is None:
        return 0, Held.nothing(), 0
    opened = EmbeddingSet(store.path / there)
    check_key(opened.key, key, opened.folder)
    known = [source.name for source in sources(opened)]
    return len(opened), Held.of(opened), known.index(origin.name) if origin.name in known else len(known)


def _finish(writer: Writer | None, gone: list[str]) -> None:
    if writer is not None:
        writer.delete(EmbeddingSet(writer.folder).numbers(gone))
        writer.commit(complete=True)


def _gone(found: Scanned, held: Held, source: int) -> list[str]:
    """The ids of rows of a source that it no longer has."""
    now = set(found.ids)
    return [name for name, row in held.rows.items() if held.sources[row] == source and name not in now]


@dataclasses.dataclass(frozen=True)
class _Order:
    """Chosen samples in given batches, as a `Loader` wants them."""

    num_samples: int
    batch_size: int
    batches: list[np.ndarray]

    def part(self, step: int, start: int, stop: int) -> np.ndarray:
        return self.batches[step][start:stop]

    def visits(self, step: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(len(self.part(step, start, stop)), dtype=np.int64)

    def pool(self, sample: int) -> tuple[int, int]:
        return 0, self.num_samples


class _Done(NamedTuple):
    """A picture that passed the tower: its row (E,) and what is known of it; or no row and why there is none."""

    row: np.ndarray | None
    fact: dict[str, Any]


class _Work:
    """Carries out a plan. Every process keeps the books; the one with the writer writes."""

    def __init__(
        self,
        plan: Plan,
        found: Scanned,
        source: PairSource,
        opened: EmbeddingSet,
        number: int,
        writer: Writer | None,
        kind: Kind,
    ):
        self.kind, self.known = kind, KNOWN[kind]
        self.plan, self.found, self.source, self.opened = plan, found, source, opened
        self.number, self.writer = number, writer
        self.failed: dict[int, str] = {}  # what could not be used although the plan thought so
        self._kept: dict[int, _Done] = {}  # what later samples copy, until the last of them has it
        self._uses = collections.Counter(plan.of[plan.actions == SAMPLE].tolist())

    def run(
        self,
        model: CLIP,
        reading: Reading,
        shards: list[Shard],
        processes: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        here = world.current()
        # Of the batches of each shard every process has its part, in turn.
        mine = [batch for shard in shards for batch in shard.batches[here.rank :: here.size]]
        reading = dataclasses.replace(reading, order=_Order(reading.order.num_samples, reading.order.batch_size, mine))
        if self.kind == "texts":
            stream = passed_texts(model, reading.source, mine, truncate=self.opened.key.split == CUT)
        elif processes > 1 and mine:
            stream = passed_in_processes(model, reading, 0, len(mine), min(processes, len(mine)))
        else:
            stream = passed_here(model, reading, 0, len(mine))
        total, before, began = self.plan.count(ENCODE), 0, time.monotonic()

        def encoded(shard: Shard) -> dict[int, _Done]:
            outcomes: dict[int, _Done] = {}
            for position in range(here.rank, len(shard.batches), here.size):
                outcomes |= _outcomes(next(stream))
                if progress is not None:
                    done = before + sum(map(len, shard.batches[: position + here.size]))
                    rate = done / max(time.monotonic() - began, 1e-9)
                    progress(Progress(done, total, rate, (total - done) / rate))
            return outcomes

        with contextlib.closing(stream):  # type: ignore[type-var]  # both are generators; this ends their workers
            for shard in shards:
                outcomes = _from_all(here.together(functools.partial(encoded, shard)))
                here.together(functools.partial(self._commit, shard, outcomes))
                before += sum(map(len, shard.batches))

    def _commit(self, shard: Shard, outcomes: dict[int, _Done]) -> None:
        """Settle what a shard's samples come to, and write it."""
        plan, found = self.plan, self.found
        rows: list[np.ndarray] = []
        facts: list[dict[str, Any]] = []
        samples: list[int] = []
        rejects: list[tuple[str, str, int]] = []
        replaced: list[int] = []
        copies = self._facts_of_rows(shard)
        for sample in shard.samples.tolist():
            action, of = int(plan.actions[sample]), int(plan.of[sample])
            done = outcomes.get(sample)
            if action == ROW:
                done = self._copied(sample, copies[of])
            elif action == SAMPLE:
                done = self._copied(sample, self._kept[of])
                self._uses[of] -= 1
                if not self._uses[of]:
                    del self._kept[of]
            elif action == LIST:
                done = _Done(None, {"bad": plan.reasons[sample], "digest": int(found.digests[sample])})
            assert done is not None
            if sample in plan.kept:
                self._kept[sample] = done
            if plan.replaces[sample] >= 0:
                replaced.append(plan.replaces[sample])
            if done.row is None:
                if action != LIST:
                    self.failed[sample] = done.fact["bad"]
                rejects.append((found.ids[sample], done.fact["bad"], int(done.fact.get("digest", 0))))
            else:
                rows.append(done.row)
                facts.append(done.fact)
                samples.append(sample)
        if self.writer is not None:
            if rows:
                self.writer.append(np.stack(rows), **self._columns(samples, facts))
            gone = self.opened.rows.stored(np.array(replaced, np.int64))
            self.writer.commit(complete=False, rejects=rejects, replaced=gone)

    def _facts_of_rows(self, shard: Shard) -> dict[int, _Done]:
        """The rows of the collection that a shard copies, by number."""
        copied = shard.samples[self.plan.actions[shard.samples] == ROW]
        numbers = np.unique(self.plan.of[copied])
        if not len(numbers):
            return {}
        rows = self.opened.rows[numbers]
        columns = {name: self.opened.column(name, numbers) for name in self.known}
        facts = [{name: int(values[place]) for name, values in columns.items()} for place in range(len(numbers))]
        return {int(row): _Done(rows[place], facts[place]) for place, row in enumerate(numbers)}

    def _copied(self, sample: int, original: _Done) -> _Done:
        """The row of the same picture, with what is said of this sample."""
        if original.row is None:
            return original
        try:
            pair = self.source.read(sample)
        except (DataError, LimitError) as error:
            return _Done(None, {"bad": error.what})
        if image_digest(pair.image) != original.fact["digest"]:
            return _Done(None, {"bad": CHANGED})
        return _Done(original.row, {**original.fact, **{name: known_of(pair)[name] for name in TEXTS}})

    def _columns(self, samples: list[int], facts: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = {name: [fact[name] for fact in facts] for name in self.known}
        numbers["described"] = [described(fact) for fact in facts]
        numbers["source"] = [self.number] * len(samples)
        numbers["sample"] = samples
        kinds = {name: np.uint64 if name in UNSIGNED else np.int64 for name in numbers}
        return {
            "id": [self.found.ids[sample] for sample in samples],
            **{name: [fact[name] for fact in facts] for name in TEXTS},
            **{name: np.array(values, dtype=kinds[name]) for name, values in numbers.items()},
        }


def _outcomes(batch: Passed) -> dict[int, _Done]:
    """What became of the samples of a batch."""
    rows = {int(place): batch.rows["post"][at, 0] for at, place in enumerate(batch.good)}
    return {int(sample): _Done(rows.get(place), batch.facts[place]) for place, sample in enumerate(batch.ids)}


def _from_all(mine: dict[int, _Done]) -> dict[int, _Done]:
    """What became of the samples of all processes."""
    here = world.current()
    if here.size == 1:
        return mine
    import torch

    told: list[list[Any]] = here.all_facts([[sample, done.row is not None, done.fact] for sample, done in mine.items()])
    counts = [sum(good for _, good, _ in each) for each in told]
    rows = [done.row for done in mine.values() if done.row is not None]
    width = max(here.all_facts(len(rows[0]) if rows else 0))
    padded = torch.zeros((max(counts), width))  # all send as many
    if rows:
        padded[: len(rows)] = torch.from_numpy(np.stack(rows))
    everything = here.rows(padded.to(here.device)).cpu().numpy().reshape(here.size, max(counts), width)
    found: dict[int, _Done] = {}
    for each, theirs in zip(told, everything, strict=True):
        row = iter(theirs)
        found |= {sample: _Done(next(row) if good else None, fact) for sample, good, fact in each}
    return found


class _Outcome:
    """What came of a plan, counted."""

    def __init__(self, found: Scanned, plan: Plan, failed: dict[int, str]):
        self.found, self.plan, self.failed = found, plan, failed
        good = np.ones(len(found.ids), bool)
        good[list(failed)] = False
        self._written = np.isin(plan.actions, (ENCODE, ROW, SAMPLE)) & good
        self._again = self._written & (plan.actions == ROW) & (plan.of == plan.replaces)

    @property
    def num_new(self) -> int:
        """Samples with a row that had none."""
        return int((self._written & (self.plan.replaces < 0)).sum())

    def told(self, name: str, rows: int, removed: int, seconds: float) -> Added:
        plan, found = self.plan, self.found
        reasons = {**plan.reasons, **self.failed}
        known_bad = plan.count(BAD)
        encoded = self._written & (plan.actions == ENCODE)
        return Added(
            name=name,
            samples=len(found.ids),
            rows=rows,
            unchanged=plan.count(SAME),
            new=self.num_new,
            changed=int((self._written & (plan.replaces >= 0) & ~self._again).sum()),
            described=int(self._again.sum()),
            encoded=int(encoded.sum()),
            copied=int((self._written & ~encoded & ~self._again).sum()),
            failed=len(reasons) - known_bad,
            known_bad=known_bad,
            removed=removed,
            seconds=round(seconds, 3),
            problems=tuple((found.ids[sample], reasons[sample]) for sample in sorted(reasons)),
        )
