"""The search for duplicates: for every rule the pairs that matter (`duplicates_groups.Forest`), and what is in evaluation sets.

| rule | a pair |
|---|---|
| bytes | files with the same bytes (64 bits of BLAKE2b) |
| pixels | pictures of one size with the same RGB pixels, whatever their format |
| url | found at one address, scheme and fragment aside |
| caption | the same captions (`duplicates_captions`), whatever the pictures are |
| hash | perceptual hashes that differ in few bits: all pairs, exact (`duplicates_hashes`) |
| detector | rows of a near-duplicate detector with a high cosine: all pairs, exact (`store.pairs_above`) |

Equal ones are joined with the first of them; that gives the same groups as all pairs. Searches go past the thresholds, to what
the review shows. A blank picture has the hash and the row of every blank picture, and takes part in neither by default; a plain
one (`Seen.PLAIN`) takes no part by hash.

An evaluation picture is no candidate: for each candidate the nearest one is noted, and whether it is near enough is decided
later, too.

Memory: the column that is searched and its order, 16 to 32 bytes a candidate, for hashes about 65; 24 bytes a pair that is
kept, which are fewer than candidates; with a detector two blocks of rows. The evaluation sets' facts are held whole.
Letters: N candidates, M evaluation pictures, E numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ostension.curate.duplicates_groups import Edges, Forest
from ostension.curate.duplicates_hashes import distinct, near_pairs
from ostension.curate.duplicates_pictures import PictureFacts, Seen
from ostension.curate.duplicates_table import Table, chunks
from ostension.errors import DataError
from ostension.files import atomic_path

if TYPE_CHECKING:
    from ostension.store.rows import Rows

EXACT = ("bytes", "pixels", "url", "caption")
RULES = (*EXACT, "hash", "detector")  # from the surest to the widest
COLUMN_OF = {"bytes": "digest", "pixels": "pixels", "url": "address", "caption": "caption"}
FAR = 255  # bits, where there is no hash to compare with


class Reach(NamedTuple):
    """How far the searches go.

    Attributes:
        rules: which there are.
        bits: most differing bits of a hash.
        cosine: least cosine of a detector's rows.
        same_caption: pairs must have the same captions as well.
        blank: blank and plain pictures take part.
    """

    rules: tuple[str, ...]
    bits: int
    cosine: float
    same_caption: bool
    blank: bool


def find_pairs(table: Table, reach: Reach) -> Iterator[tuple[str, Edges, int]]:
    """For every rule, from the surest to the widest: its name, the pairs that matter, and how many were found."""
    for rule in RULES:
        if rule in reach.rules:
            forest = Forest()
            if rule == "detector":
                _by_rows(table, reach, forest)
            elif rule == "hash":
                _by_hash(table, reach, forest)
            else:
                _by_equality(table, rule, reach, forest)
            yield rule, forest.edges(), forest.added


def takes_part(table: Table, rule: str, reach: Reach, part: slice | np.ndarray = slice(None)) -> np.ndarray:
    """(N,) whether there is something of a candidate to compare by this rule."""
    if rule in ("url", "caption"):
        found = table[COLUMN_OF[rule]][part] != 0
    else:
        found = table["seen"][part] >= _least(rule, reach)
    return found & (table["caption"][part] != 0) if reach.same_caption else found


def _least(rule: str, reach: Reach) -> int:
    """How much must be known of a picture."""
    if rule in ("bytes", "pixels"):
        return Seen.BYTES if rule == "bytes" else Seen.BLANK
    return Seen.BLANK if reach.blank else Seen.PLAIN if rule == "detector" else Seen.ALL


def _places(table: Table, rule: str, reach: Reach) -> tuple[np.ndarray, np.ndarray | None]:
    """The candidates that take part, and their captions where these must be the same."""
    places = np.flatnonzero(takes_part(table, rule, reach))
    return places, table["caption"][places] if reach.same_caption and rule != "caption" else None


def _by_equality(table: Table, rule: str, reach: Reach, forest: Forest) -> None:
    places, groups = _places(table, rule, reach)
    _, first = distinct(table[COLUMN_OF[rule]][places], groups)
    others = np.flatnonzero(first != np.arange(len(places)))
    forest.add(places[first[others]], places[others], 0.0)


def _by_hash(table: Table, reach: Reach, forest: Forest) -> None:
    places, groups = _places(table, "hash", reach)
    hashes = table["hash"][places]
    heads, first = distinct(hashes, groups)
    others = np.flatnonzero(first != np.arange(len(places)))
    forest.add(places[first[others]], places[others], 0.0)
    del first, others
    own = None if groups is None else np.unique(groups[heads], return_inverse=True)[1]
    for pairs in near_pairs(hashes[heads], reach.bits, own):
        forest.add(places[heads[pairs.a]], places[heads[pairs.b]], pairs.distance)


def _by_rows(table: Table, reach: Reach, forest: Forest) -> None:
    from ostension.store import pairs_above

    opened = table.rows()
    if opened is None or not len(opened):
        return
    places = np.asarray(opened.column("place"), dtype=np.int64)
    chosen = np.flatnonzero(takes_part(table, "detector", reach)[places])
    rows: Rows | _Chosen = opened.rows if len(chosen) == len(places) else _Chosen(opened.rows, chosen)
    places = places[chosen]
    captions = table["caption"][places] if reach.same_caption else None
    for pairs in pairs_above(rows, reach.cosine):  # type: ignore[arg-type]
        a, b, far = places[pairs.a], places[pairs.b], distance_of(pairs.scores)
        if captions is not None:
            same = captions[pairs.a] == captions[pairs.b]
            a, b, far = a[same], b[same], far[same]
        forest.add(a, b, far)


def distance_of(cosines: np.ndarray | float) -> np.ndarray:
    """1 - cosine; rows of float16 are of unit length to a thousandth only, and nothing is nearer than at 0."""
    return np.maximum(1.0 - np.asarray(cosines), 0.0)


class _Chosen:
    """Some rows of a set."""

    def __init__(self, rows: Rows, chosen: np.ndarray):
        self._rows, self._chosen = rows, chosen
        self.shape = (len(chosen), rows.shape[1])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._rows[self._chosen[part]]


class Evaluation(NamedTuple):
    """The evaluation pictures: what they are called, and what is known of them (url: numbers, 0 where there is none)."""

    names: Sequence[str]
    facts: PictureFacts
    url: np.ndarray


NEAREST: dict[str, np.dtype] = {
    "same": np.dtype("<i4"), "alike": np.dtype("<i4"), "bits": np.dtype("u1"), "nearest": np.dtype("<i4"),
    "cosine": np.dtype("<f4"),
}  # fmt: skip


def find_evaluation(table: Table, evaluation: Evaluation, reach: Reach, folder: Path) -> None:
    """Write for every candidate the evaluation picture that is the same, is alike by hash, and is the nearest by rows.

    Files (`NEAREST`): same (-1: none), alike with its bits, nearest with its cosine.
    """
    found = {name: np.full(len(table), FAR if name == "bits" else -1, kind) for name, kind in NEAREST.items()}
    alone = reach._replace(same_caption=False)  # what the evaluation set says of its pictures is another matter
    _same_in_evaluation(table, evaluation, alone, found["same"])
    if "hash" in reach.rules:
        _alike_in_evaluation(table, evaluation, alone, found["alike"], found["bits"])
    if "detector" in reach.rules:
        _nearest_in_evaluation(table, evaluation, alone, found["nearest"], found["cosine"])
    for name, values in found.items():
        with atomic_path(folder / name) as temporary:
            values.tofile(temporary)


def _same_in_evaluation(table: Table, evaluation: Evaluation, reach: Reach, same: np.ndarray) -> None:
    from ostension.evals.overlap_neighbours import first_equal

    for rule in ("url", "pixels", "bytes"):  # the surest is written last
        if rule not in reach.rules:
            continue
        known = evaluation.url if rule == "url" else getattr(evaluation.facts, COLUMN_OF[rule])
        usable = np.flatnonzero(known if rule == "url" else evaluation.facts.seen >= _least(rule, reach))
        if len(usable):
            for part in chunks(len(table)):
                found = first_equal(table[COLUMN_OF[rule]][part], known[usable])
                hit = (found >= 0) & takes_part(table, rule, reach, part)
                same[part] = np.where(hit, usable[found], same[part])


def _alike_in_evaluation(table: Table, evaluation: Evaluation, reach: Reach, alike: np.ndarray, bits: np.ndarray) -> None:
    """The nearest by hash, as far as the search goes: of all near pairs of both sides' hashes, those that go across."""
    places = np.flatnonzero(takes_part(table, "hash", reach))
    usable = np.flatnonzero(evaluation.facts.seen >= _least("hash", reach))
    hashes = np.concatenate([evaluation.facts.hash[usable], table["hash"][places]])
    heads, first = distinct(hashes)  # an evaluation picture leads those that equal it, since these come first
    own = first < len(usable)
    best, distance = np.full(len(hashes), -1, np.int64), np.full(len(hashes), FAR, np.int64)
    best[own], distance[own] = first[own], 0
    for pairs in near_pairs(hashes[heads], reach.bits):
        one, other = heads[pairs.a], heads[pairs.b]
        across = (one < len(usable)) & (other >= len(usable))
        mine, theirs, far = other[across], one[across], pairs.distance[across].astype(np.int64)
        order = np.lexsort((theirs, far, mine))
        mine, theirs, far = mine[order], theirs[order], far[order]
        lead = np.append(True, mine[1:] != mine[:-1])[: len(mine)]
        mine, theirs, far = mine[lead], theirs[lead], far[lead]
        better = (far < distance[mine]) | ((far == distance[mine]) & (theirs < best[mine]))
        best[mine[better]], distance[mine[better]] = theirs[better], far[better]
    lead = first[len(usable) :]
    hit = best[lead] >= 0
    alike[places[hit]], bits[places[hit]] = usable[best[lead[hit]]], distance[lead[hit]]


def _nearest_in_evaluation(table: Table, evaluation: Evaluation, reach: Reach, nearest: np.ndarray, cosine: np.ndarray) -> None:
    from ostension.store import search

    opened, rows = table.rows(), evaluation.facts.rows
    usable = np.flatnonzero(evaluation.facts.seen >= _least("detector", reach))
    if opened is None or rows is None or not len(usable):
        return
    places = np.asarray(opened.column("place"), dtype=np.int64)
    part_of = takes_part(table, "detector", reach)
    for start, block in opened.rows.blocks():
        here = places[start : start + len(block)]
        found = search(rows[usable], np.asarray(block, dtype=np.float32), 1)
        hit = part_of[here]
        nearest[here[hit]], cosine[here[hit]] = usable[found.rows[hit, 0]], np.minimum(found.scores[hit, 0], 1.0)


def save_pairs(folder: Path, pairs: Mapping[str, Edges]) -> None:
    """One file a rule."""
    for rule, edges in pairs.items():
        with atomic_path(folder / f"pairs-{rule}.npz") as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **edges._asdict())


def load_pairs(folder: Path, rules: Sequence[str]) -> dict[str, Edges]:
    """What `save_pairs` wrote, in the order of the rules.

    Raises:
        DataError: if a file is missing or damaged.
    """
    found = {}
    for rule in RULES:
        if rule in rules:
            path = folder / f"pairs-{rule}.npz"
            try:
                with np.load(path, allow_pickle=False) as opened:
                    found[rule] = Edges(*(opened[name] for name in Edges._fields))
            except (OSError, ValueError, KeyError) as error:
                why = str(error).splitlines()[0]
                raise DataError(f"cannot be read: {why}", source=path, fix="run the stage again") from None
    return found
