"""The nearest training picture of each evaluation picture: by a detector's rows, by content, by perceptual hash.

Three ways, from the surest to the widest: a file with the same bytes; the highest cosine of a near-duplicate detector's rows
(`model.duplicate_detector`), exact over all training rows (`store.exact`); the perceptual hash with the fewest differing bits
(`store.perceptual`), which needs no detector. What counts as a duplicate is decided afterwards (`overlap_review`).

The search goes in blocks of evaluation pictures, and each block is a file in the folder of the result: a search that was
killed goes on with the block that it was at. Blocks do not change the answer.

Letters: N evaluation pictures, M training pictures, E embedding, K neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import require
from ostension.errors import DataError
from ostension.files import atomic_path, folder_lock, read_json, sha256_json, write_json
from ostension.shapes import Int
from ostension.store import EmbeddingSet, Features, search
from ostension.store.rows import Rows

BLOCK = 1024  # evaluation pictures between two files
HASHES = 2**22  # pairs of hashes compared at a time: 32 MB
UNKNOWN = -1
FACTS, RESULT = "neighbours.json", "neighbours.npz"


class SetIds(Sequence):
    """The ids of a set in a store, read as they are asked for: those of a training set would fill the memory."""

    def __init__(self, opened: EmbeddingSet):
        self.opened = opened

    def __len__(self) -> int:
        return len(self.opened)

    def __iter__(self) -> Iterator[str]:
        return iter(self.opened.ids)

    def __getitem__(self, row: Any) -> Any:
        return self.many([row])[0] if isinstance(row, int) else self.many(range(len(self))[row])

    def many(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows."""
        return list(self.opened.column("id", rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """One side of the search.

    Attributes:
        rows: (N, E) unit rows of a detector; None searches by content and hash alone.
        ids: of each row.
        digests: (N,) 64 bits of each file's content, or None.
        hashes: (N,) perceptual hashes, or None.
        samples: (N,) number of each row in its source, or None where it is the row's own.
        key: what the rows are of, as a JSON tree.

    Raises:
        DataError: for lengths that differ.
    """

    rows: np.ndarray | Rows | None
    ids: Sequence[str]
    digests: np.ndarray | None = None
    hashes: np.ndarray | None = None
    samples: np.ndarray | None = None
    key: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("rows", "digests", "hashes", "samples"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.ids):
                raise DataError(f"{len(values)} {name}", expected=f"{len(self.ids)}, one a picture")

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def of_set(opened: EmbeddingSet) -> Pictures:
        """The pictures of a set in a store.

        Raises:
            DataError: for a set that is not complete.
        """
        if not opened.complete:
            raise DataError(f"{opened.position:,} samples are done", source=opened.folder, expected="a set that is complete")

        def column(name: str) -> np.ndarray | None:
            return np.asarray(opened.column(name)) if name in opened.columns else None

        samples = column("sample")
        return Pictures(
            rows=opened.rows, ids=SetIds(opened), digests=_unsigned(column("digest")), hashes=_unsigned(column("perceptual")),
            samples=None if samples is None else samples.astype(np.int64), key=opened.key.tree(),
        )  # fmt: skip

    @staticmethod
    def of_features(features: Features) -> Pictures:
        """The rows of anybody's arrays, scaled to unit length; nothing is known of their files."""
        rows = features.unit()
        return Pictures(rows=rows, ids=features.ids, key={**features.facts, "rows": hashlib.sha256(rows.tobytes()).hexdigest()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What was found for each evaluation picture.

    Attributes:
        ids: of the evaluation pictures.
        nearest: (N, K) training rows, the most similar first; K is 0 without a detector.
        similarity: (N, K) their cosines.
        same_file: (N,) the first training row whose file has the same bytes, or -1.
        alike: (N,) the training row with the nearest perceptual hash, or -1 where hashes are not known.
        bits: (N,) in how many of 64 bits it differs, or -1.
        training_ids: of the training rows that are named above, by row.
        samples, training_samples: numbers of the evaluation pictures, and of the training rows by row, in their sources.
        facts: what was searched, as a JSON tree.
    """

    ids: tuple[str, ...]
    nearest: Int[np.ndarray, "N K"]
    similarity: np.ndarray
    same_file: Int[np.ndarray, " N"]
    alike: Int[np.ndarray, " N"]
    bits: Int[np.ndarray, " N"]
    training_ids: Mapping[int, str]
    samples: Int[np.ndarray, " N"]
    training_samples: Mapping[int, int]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def best(self) -> np.ndarray:
        """(N,) the highest cosine of each picture; -1 without a detector."""
        return self.similarity[:, 0] if self.similarity.shape[1] else np.full(len(self), -1.0)

    def match(self, index: int) -> int:
        """The training row to look at for an evaluation picture: the same file, else the most similar, else the one alike."""
        if self.same_file[index] >= 0:
            return int(self.same_file[index])
        return int(self.nearest[index, 0] if self.nearest.shape[1] else self.alike[index])

    def save(self, folder: Path) -> None:
        """Write the two files of a result."""
        named = np.array(sorted(self.training_ids), dtype=np.int64)
        tables = {
            "ids": np.array(self.ids), "named": named, "names": np.array([self.training_ids[row] for row in named.tolist()]),
            "named_samples": np.array([self.training_samples[row] for row in named.tolist()], dtype=np.int64),
            **{name: getattr(self, name) for name in _ARRAYS},
        }  # fmt: skip
        with atomic_path(folder / RESULT) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **tables)
        write_json(folder / FACTS, dict(self.facts))

    @staticmethod
    def load(folder: str | Path) -> Neighbours:
        """The result in a folder.

        Raises:
            DataError: if there is none, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / RESULT).is_file():
            raise DataError("holds no neighbours", source=folder, fix="run: ostension eval overlap neighbours")
        try:
            with np.load(folder / RESULT, allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
            named = arrays["named"].tolist()
            return Neighbours(
                ids=tuple(arrays["ids"].tolist()), training_ids=dict(zip(named, arrays["names"].tolist(), strict=True)),
                training_samples=dict(zip(named, arrays["named_samples"].tolist(), strict=True)),
                facts=read_json(folder / FACTS), **{name: arrays[name] for name in _ARRAYS},
            )  # fmt: skip
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"is damaged: {str(error).splitlines()[0]}", source=folder / RESULT, fix="search again") from None


_ARRAYS = ("nearest", "similarity", "same_file", "alike", "bits", "samples")


def find_neighbours(
    evaluation: Pictures, training: Pictures, folder: str | Path | None = None, *, k: int = 3,
    facts: Mapping[str, Any] | None = None, block: int = BLOCK, progress: Callable[[int, int], None] | None = None,
) -> Neighbours:  # fmt: skip
    """The neighbours of every evaluation picture, exact.

    Args:
        folder: keeps finished blocks and the result; a search of the same sets goes on there.
        k: neighbours by the detector.
        facts: what else to write down of the search; it does not matter to whether one may go on.
        block: evaluation pictures searched at a time.
        progress: told the pictures done and all.

    Raises:
        DataError: for sets of different detectors, one without rows and one with them, or a folder of another search.
    """
    require(k >= 1 and block >= 1, "k", k, "1 or more")
    _check_sides(evaluation, training)
    key = {"evaluation": side_key(evaluation), "training": side_key(training), "k": k}
    tree = {**key, "counts": {"evaluation": len(evaluation), "training": len(training)}, **(facts or {})}
    place = None if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        if place is not None:
            stack.enter_context(folder_lock(place))
            _claim(place, key, tree)
            if (place / RESULT).is_file():
                return Neighbours.load(place)
        parts = []
        for start in range(0, len(evaluation), block):
            stop = min(start + block, len(evaluation))
            kept = None if place is None else place / f"block-{start:010d}-{stop:010d}.npz"
            found = None if kept is None else _read_block(kept)
            if found is None:
                found = _search_block(evaluation, training, start, stop, k)
                if kept is not None:
                    with atomic_path(kept) as temporary, open(temporary, "wb") as handle:
                        np.savez(handle, **found)  # type: ignore[arg-type]
            parts.append(found)
            if progress is not None:
                progress(stop, len(evaluation))
        result = _joined(parts, evaluation, training, tree)
        if place is not None:
            result.save(place)
            for path in place.glob("block-*.npz"):
                path.unlink()
    return result


def side_key(side: Pictures) -> str:
    """A hash of what a side's rows are of."""
    return sha256_json([dict(side.key), len(side), side.rows is not None])


def _check_sides(evaluation: Pictures, training: Pictures) -> None:
    for name, side in (("evaluation", evaluation), ("training", training)):
        if not len(side):
            raise DataError(f"there are no {name} pictures", expected="one or more")
    if (evaluation.rows is None) != (training.rows is None):
        raise DataError("one side has rows of a detector and the other has none", expected="both, or neither")
    if evaluation.rows is not None and training.rows is not None:
        widths = evaluation.rows.shape[1], training.rows.shape[1]
        made = [side.key.get("weights") for side in (evaluation, training)]
        if widths[0] != widths[1] or (None not in made and made[0] != made[1]):
            what = f"rows of {widths[0]} numbers ({made[0]}) and of {widths[1]} ({made[1]})"
            raise DataError(what, expected="both sides by one detector", fix="embed both with it")
    elif evaluation.digests is None and evaluation.hashes is None:
        raise DataError("there is nothing to compare by", expected="rows of a detector, contents, or perceptual hashes")


def _claim(place: Path, key: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """Write down whose search a folder is of, or refuse one of another."""
    if (place / FACTS).is_file():
        before = read_json(place / FACTS)
        changed = [name for name in key if before.get(name) != key[name]]
        if changed:
            what = f"holds a search of another {' and '.join(changed)}"
            raise DataError(what, source=place, fix="name another folder, or remove this one")
    else:
        write_json(place / FACTS, dict(tree))


def _search_block(evaluation: Pictures, training: Pictures, start: int, stop: int, k: int) -> dict[str, np.ndarray]:
    count = stop - start
    found = {
        "nearest": np.zeros((count, 0), np.int64), "similarity": np.zeros((count, 0)),
        "same_file": np.full(count, UNKNOWN, np.int64), "alike": np.full(count, UNKNOWN, np.int64),
        "bits": np.full(count, UNKNOWN, np.int64),
    }  # fmt: skip
    if evaluation.rows is not None and training.rows is not None:
        best = search(training.rows, np.array(evaluation.rows[start:stop], dtype=np.float32), k)
        # float16 rows are of unit length to a thousandth only; a cosine is at most one.
        found["nearest"], found["similarity"] = best.rows, np.clip(best.scores, -1.0, 1.0)
    if evaluation.digests is not None and training.digests is not None:
        found["same_file"] = first_equal(evaluation.digests[start:stop], training.digests)
    if evaluation.hashes is not None and training.hashes is not None:
        found["alike"], found["bits"] = nearest_hashes(evaluation.hashes[start:stop], training.hashes)
    return found


def first_equal(wanted: np.ndarray, known: np.ndarray) -> Int[np.ndarray, " N"]:
    """For each value the first place in `known` with the same one, or -1."""
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, wanted, sorter=order)
    inside = np.minimum(places, len(known) - 1)
    rows = order[inside].astype(np.int64)
    return np.where((places < len(known)) & (known[rows] == wanted), rows, UNKNOWN)


def nearest_hashes(
    wanted: np.ndarray, known: np.ndarray
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """For each hash the place of the known one with the fewest differing bits, the first of several, and how many differ."""
    rows, bits = np.zeros(len(wanted), np.int64), np.full(len(wanted), 65, np.int64)
    step = max(1, HASHES // max(1, len(wanted)))
    for start in range(0, len(known), step):
        differing = np.bitwise_count(wanted[:, None] ^ known[None, start : start + step])
        best = differing.argmin(axis=1)
        fewest = differing[np.arange(len(wanted)), best].astype(np.int64)
        better = fewest < bits
        rows[better], bits[better] = start + best[better], fewest[better]
    return rows, bits


def _joined(
    parts: Sequence[Mapping[str, np.ndarray]], evaluation: Pictures, training: Pictures, tree: Mapping[str, Any]
) -> Neighbours:
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in _ARRAYS if name != "samples"}
    named = np.unique(np.concatenate([arrays["nearest"].ravel(), arrays["same_file"], arrays["alike"]]))
    named = named[named >= 0].tolist()
    numbers = training.samples
    ids = training.ids.many(named) if isinstance(training.ids, SetIds) else [training.ids[row] for row in named]
    samples = np.arange(len(evaluation)) if evaluation.samples is None else np.asarray(evaluation.samples, dtype=np.int64)
    return Neighbours(
        ids=tuple(evaluation.ids), training_ids=dict(zip(named, ids, strict=True)), samples=samples, facts=dict(tree),
        training_samples={row: row if numbers is None else int(numbers[row]) for row in named}, **arrays,
    )  # fmt: skip


def _read_block(path: Path) -> dict[str, np.ndarray] | None:
    """A finished block; files are whole or absent, so one that cannot be read is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"is damaged: {str(error).splitlines()[0]}", source=path, fix="remove it and search again") from None


def _unsigned(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.astype(np.uint64, copy=False)
