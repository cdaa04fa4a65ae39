"""What becomes of the samples of a part: the columns that `dedup` ends in.

| column | |
|---|---|
| dropped | the reason: the surest rule by which the sample belongs to the one that stays |
| group, size | the smallest id in the group, and how many members it has; null for a sample that is in none |
| kept | the id of the one that stays, part times part size plus row |
| bits, cosine | how far it is from the one that stays: past the thresholds where it is reached through others |
| evaluation | the evaluation picture that it, or another of its group, is a copy of: "SET: KEY" |
| unreadable | why its picture cannot be read |

Letters: n samples, M candidates that are in a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ostension.curate.base import DROPPED, TEXTS, Columns, Part
from ostension.curate.duplicates_captions import new_captions
from ostension.curate.duplicates_resolve import (
    IN_EVALUATION,
    REASONS,
    UNREADABLE,
    Choice,
    bits_between,
    cosines,
    in_evaluation,
    read_members,
)
from ostension.curate.duplicates_search import FAR, RULES
from ostension.curate.duplicates_table import Table
from ostension.files import read_json

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = "names.json"


class Rest(NamedTuple):
    """What else decides.

    Attributes:
        evaluation: the folder with the nearest evaluation pictures, if there are any.
        hashes: whether there are hashes.
        drop_unreadable: drop what cannot be read.
        merge_captions: most captions of one that stays, with those of its copies; 0 leaves captions as they are.
        exclude: keys of samples that stay in any case.
    """

    evaluation: Path | None
    hashes: bool
    drop_unreadable: bool
    merge_captions: int
    exclude: frozenset[str]


def outcome(part: Part, mapped: Any, table: Table, folder: Path, choice: Choice, rest: Rest) -> Columns:
    """The columns of a part.

    Args:
        mapped: what was found of its samples, for "bad".
        folder: of the members (`duplicates_resolve.resolve`).
    """
    members, places = read_members(folder), np.searchsorted(table["id"], part.ids())
    grouped, inside = _found(members["member"], places)
    count, hits = len(part), np.full(len(part), -1, np.int64)
    group, kept, size = (np.full(count, -1, np.int64) for _ in range(3))
    rule = np.full(count, len(RULES))
    group[grouped], kept[grouped] = table["id"][members["group"][inside]], members["kept"][inside]
    rule[grouped], size[grouped] = members["rule"][inside], members["size"][inside]
    if rest.evaluation is not None:
        hits = in_evaluation(rest.evaluation, places, choice).astype(np.int64)
        hits[grouped] = members["evaluation"][inside]
    away = grouped & (kept != places)
    bad = mapped["bad"].to_pylist()
    dropped: list[str | None] = [None] * count
    for index in range(count):
        if rest.exclude and part.keys[index] in rest.exclude:
            continue
        if hits[index] >= 0:
            dropped[index] = IN_EVALUATION
        elif away[index]:
            dropped[index] = REASONS[RULES[rule[index]]]
        elif bad[index] is not None and rest.drop_unreadable:
            dropped[index] = UNREADABLE
    bits, cosine, stays = np.full(count, FAR), np.full(count, np.nan), np.full(count, -1, np.int64)
    stays[grouped] = table["id"][kept[grouped]]
    if rest.hashes:
        bits[away] = bits_between(table, places[away], kept[away])
    cosine[away] = cosines(table, places[away], kept[away])
    names = read_json(rest.evaluation / NAMES) if rest.evaluation is not None else []
    columns: dict[str, Any] = {
        DROPPED: dropped, "group": _or_null(group, group < 0), "kept": _or_null(stays, stays < 0),
        "size": _or_null(size, size < 0), "bits": _or_null(bits.astype(np.int16), bits == FAR),
        "cosine": _or_null(cosine.astype(np.float32), np.isnan(cosine)),
        "evaluation": _words([names[hit] if hit >= 0 else None for hit in hits.tolist()]), "unreadable": _words(bad),
    }  # fmt: skip
    if rest.merge_captions:
        columns[TEXTS] = _merged(part, table, members, places, dropped, rest.merge_captions)
    return columns


def _found(members: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) which candidates are in a group, and where those are among its M members."""
    at = np.searchsorted(members, places)
    grouped = at < len(members)
    grouped[grouped] = members[at[grouped]] == places[grouped]
    return grouped, at[grouped]


def _merged(
    part: Part, table: Table, members: Mapping[str, np.ndarray], places: np.ndarray, dropped: list[str | None], most: int
) -> list[list[str]]:
    """The captions; those of a sample that stays with what its copies' captions add, the first copies first."""
    order = np.argsort(members["kept"], kind="stable")
    kept = members["kept"][order]
    found = []
    for index, texts in enumerate(part.texts):
        if dropped[index] is not None:
            found.append(list(texts))
            continue
        first, last = np.searchsorted(kept, [places[index], places[index] + 1])
        copies = members["member"][np.sort(order[first:last])]
        others = table.captions(copies[copies != places[index]].tolist())
        found.append(new_captions(texts, [caption for captions in others for caption in captions], max(most, len(texts))))
    return found


def _or_null(values: np.ndarray, null: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, mask=null)


def _words(values: list[str | None]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, type=pa.string())
