"""From pairs and thresholds to what is dropped: groups, the one of each that stays, and by which rule another went.

Groups are what the pairs of all rules connect. Of a group one stays (`Choice.keep`). Another's reason is the surest rule by
which it belongs to it: the first one, going from bytes to the detector, at which the pairs of the rules so far put the two into
one group. A group with a member that is in an evaluation set goes whole: its members are one picture.

Chains. A like B and B like C make A, B, C one group, where A and C need not be alike. So

- a group of one wide rule (hash, detector) with more than `most` members falls apart at stricter thresholds, in steps down to
  equality, until its parts have no more; what is larger still has equal hashes, is left whole, and is counted;
- with `direct`, a member goes only if it is itself a pair with one that stays: the best of a group stays and takes with it what
  is near to it; of the rest the best stays, and so on.

Letters: M candidates that are in a group.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ostension.curate.duplicates_groups import Edges, capped_groups, components
from ostension.curate.duplicates_search import COLUMN_OF, EXACT, FAR, NEAREST, RULES, Reach, distance_of, takes_part
from ostension.curate.duplicates_table import Table, mapped

REASONS = {
    "bytes": "same bytes", "pixels": "same pixels", "url": "same address", "caption": "same caption",
    "hash": "near picture (hash)", "detector": "near picture (detector)",
}  # fmt: skip
IN_EVALUATION, UNREADABLE = "in evaluation set", "picture cannot be read"
STEPS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the threshold of a detector, for groups that are too large
MEMBERS: dict[str, np.dtype] = {
    "member": np.dtype("<i8"), "group": np.dtype("<i8"), "kept": np.dtype("<i8"), "rule": np.dtype("u1"),
    "size": np.dtype("<i8"), "evaluation": np.dtype("<i4"),
}  # fmt: skip


class Choice(NamedTuple):
    """What decides between pairs that were found.

    Attributes:
        bits, cosine: the thresholds.
        keep: "largest" (the largest picture, then the highest score, then the longest captions), "score" (the highest score,
            then as before), "first"; between equals the first.
        most: members of a group of a wide rule.
        direct: drop only what is itself a pair with one that stays.
    """

    bits: int
    cosine: float
    keep: str
    most: int
    direct: bool


def resolve(
    table: Table, pairs: Mapping[str, Edges], reach: Reach, choice: Choice, evaluation: Path | None, folder: Path
) -> dict[str, Any]:
    """Write what becomes of every candidate that is in a group (`MEMBERS`), and say what was found.

    Args:
        evaluation: the folder with the nearest evaluation pictures, if there are any.
        folder: for the files, which are made anew.
    """
    taken, large = _taken(pairs, choice)
    joined = [(edges.a, edges.b) for edges in taken.values()]
    members, groups = components(joined)
    kept = _best(table, members, groups, choice.keep)
    if choice.direct:
        kept = _direct(table, members, groups, kept, reach, choice)
    rule = _rules(taken, members, groups, kept)
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    hits = np.full(len(members), -1, np.int32)
    if evaluation is not None:
        own = in_evaluation(evaluation, members, choice)
        first = np.full(len(sizes), len(members), np.int64)
        touched = np.flatnonzero(own >= 0)
        np.minimum.at(first, place[touched], touched)
        some = first[place] < len(members)
        hits[some] = np.where(own[some] >= 0, own[some], own[first[place[some]]])
    found = {"member": members, "group": groups, "kept": kept, "rule": rule, "size": sizes[place], "evaluation": hits}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, kind in MEMBERS.items():
        found[name].astype(kind).tofile(folder / name)
    dropped = kept != members
    sizes_by = np.unique(sizes, return_counts=True)
    return {
        "groups": len(sizes), "members": len(members), "largest": int(sizes.max(initial=0)),
        "sizes": {str(size): int(count) for size, count in zip(*(part.tolist() for part in sizes_by), strict=True)},
        "rules": {name: _alone(edges) for name, edges in taken.items()},
        "dropped": int(dropped.sum()),
        "too_large": {name: {f"{step:g}": count for step, count in steps.items()} for name, steps in large.items()},
    }  # fmt: skip


def read_members(folder: Path) -> dict[str, np.ndarray]:
    """What `resolve` wrote, mapped into memory."""
    return {name: mapped(folder / name, kind) for name, kind in MEMBERS.items()}


def in_evaluation(folder: Path, places: np.ndarray | slice, choice: Choice) -> np.ndarray:
    """The evaluation picture that a candidate is a copy of, by the surest rule, or -1."""
    nearest = {name: mapped(folder / name, kind)[places] for name, kind in NEAREST.items()}
    found = np.where((nearest["nearest"] >= 0) & (nearest["cosine"] >= choice.cosine), nearest["nearest"], -1)
    found = np.where((nearest["alike"] >= 0) & (nearest["bits"] <= choice.bits), nearest["alike"], found)
    return np.where(nearest["same"] >= 0, nearest["same"], found).astype(np.int32)


def _taken(pairs: Mapping[str, Edges], choice: Choice) -> tuple[dict[str, Edges], dict[str, dict[float, int]]]:
    """The pairs within the thresholds, rule by rule, and how many groups were too large."""
    taken, large = {}, {}
    for rule, edges in pairs.items():
        if rule in EXACT:
            taken[rule] = edges
            continue
        far = float(distance_of(choice.cosine))
        steps = [float(bits) for bits in range(choice.bits, -1, -1)] if rule == "hash" else [far * step for step in STEPS]
        taken[rule], counted = capped_groups(edges, choice.most, steps)
        if counted:
            large[rule] = counted
    return taken, large


def _alone(edges: Edges) -> dict[str, int]:
    """What a rule by itself would join: groups, and candidates that would go."""
    _, groups = components([(edges.a, edges.b)])
    return {"groups": len(np.unique(groups)), "dropped": len(edges.a)}


def _best(table: Table, members: np.ndarray, groups: np.ndarray, keep: str) -> np.ndarray:
    """(M,) the member of each one's group that stays."""
    order = _ranked(table, members, groups, keep)
    lead = np.append(True, groups[order][1:] != groups[order][:-1])[: len(order)]
    kept = np.empty_like(members)
    kept[order] = members[order][np.flatnonzero(lead)[np.cumsum(lead) - 1]] if len(order) else members
    return kept


def _ranked(table: Table, members: np.ndarray, groups: np.ndarray, keep: str) -> np.ndarray:
    """The order of the members: group by group, the best first."""
    if keep == "first":
        return np.lexsort((members, groups))
    area, score, length = (
        -np.nan_to_num(table[name][members].astype(np.float64), nan=-np.inf) for name in ("area", "score", "length")
    )
    first = (area, score) if keep == "largest" else (score, area)
    return np.lexsort((members, length, first[1], first[0], groups))


def _direct(
    table: Table, members: np.ndarray, groups: np.ndarray, kept: np.ndarray, reach: Reach, choice: Choice
) -> np.ndarray:
    """(M,) for each member the one that stays and is a pair with it, which may be itself."""
    kept, order = kept.copy(), _ranked(table, members, groups, choice.keep)
    starts = np.flatnonzero(np.append(True, groups[order][1:] != groups[order][:-1])[: len(order)])
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        if stop - start == 2:
            continue  # two are a group because they are a pair
        left = order[start:stop]
        while len(left):
            near = _near(table, members[left[0]], members[left], reach, choice)
            near[0] = True
            kept[left[near]] = members[left[0]]
            left = left[~near]
    return kept


def _near(table: Table, one: int, others: np.ndarray, reach: Reach, choice: Choice) -> np.ndarray:
    """Which candidates are a pair with one of them, by any rule."""
    found = np.zeros(len(others), bool)
    for rule in RULES:
        if rule not in reach.rules or not takes_part(table, rule, reach, slice(one, one + 1))[0]:
            continue
        if rule == "hash":
            near = np.bitwise_count(table["hash"][others] ^ table["hash"][one]) <= choice.bits
        elif rule == "detector":
            near = cosines(table, np.full(len(others), one), others) >= choice.cosine
        else:
            column = table[COLUMN_OF[rule]]
            near = column[others] == column[one]
        if reach.same_caption:
            near &= table["caption"][others] == table["caption"][one]
        found |= near & takes_part(table, rule, reach, others)
    return found


def cosines(table: Table, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosines of candidates' rows, pair by pair; NaN where there is no row."""
    opened = table.rows()
    found = np.full(len(one), np.nan)
    if opened is None or not len(opened) or not len(one):
        return found
    places = np.asarray(opened.column("place"), dtype=np.int64)
    rows = [np.minimum(np.searchsorted(places, side), len(places) - 1) for side in (one, other)]
    there = (places[rows[0]] == one) & (places[rows[1]] == other)
    left, right = (opened.rows[side[there]].astype(np.float64) for side in rows)
    found[there] = np.minimum((left * right).sum(axis=1), 1.0)
    return found


def bits_between(table: Table, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """In how many bits candidates' hashes differ, pair by pair; `FAR` where there is none."""
    from ostension.curate.duplicates_pictures import Seen

    seen = np.minimum(table["seen"][one], table["seen"][other])
    return np.where(seen >= Seen.BLANK, np.bitwise_count(table["hash"][one] ^ table["hash"][other]), FAR)


def _rules(taken: Mapping[str, Edges], members: np.ndarray, groups: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(M,) the place in `RULES` of the surest rule by which a member is in one group with the one that stays."""
    rule = np.full(len(members), len(RULES), np.uint8)
    standing = np.searchsorted(members, kept)
    for count, name in enumerate(taken, 1):
        nodes, labels = components([(edges.a, edges.b) for edges in list(taken.values())[:count]])
        label = members.copy()  # who is in no pair yet is a group alone
        label[np.searchsorted(members, nodes)] = labels
        rule[(label == label[standing]) & (rule == len(RULES))] = RULES.index(name)
    return rule
