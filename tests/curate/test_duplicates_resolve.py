"""Which of a group stays, chains, groups that are too large, why one goes: on tables that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.curate.duplicates_groups import Edges, Forest
from ostension.curate.duplicates_resolve import Choice, read_members, resolve
from ostension.curate.duplicates_search import RULES, Reach, find_pairs
from ostension.curate.duplicates_table import COLUMNS, Table

REACH = Reach(("bytes", "hash"), 8, 1.0, False, False)


def table_of(folder, count, **columns):
    """A table of pictures that are all different but for what is given."""
    folder.mkdir()
    known = {
        "id": np.arange(count) * 10, "seen": np.full(count, 4), "digest": np.arange(count) + 1000, "pixels": np.arange(count),
        "hash": np.arange(count), "caption": np.arange(count) + 1, "address": np.zeros(count), "area": np.ones(count),
        "length": np.ones(count), "score": np.zeros(count),
    }  # fmt: skip
    for name, kind in COLUMNS.items():
        np.asarray(columns.get(name, known[name])).astype(kind).tofile(folder / name)
    return Table(folder)


def choice(bits=2, keep="largest", most=100, direct=False):
    return Choice(bits, 1.0, keep, most, direct)


def members_of(tmp_path, table, made, reach=REACH, pairs=None):
    found = {rule: edges for rule, edges, _ in find_pairs(table, reach)} if pairs is None else pairs
    facts = resolve(table, found, reach, made, None, tmp_path / "members")
    members = read_members(tmp_path / "members")
    return facts, {int(one): int(kept) for one, kept in zip(members["member"], members["kept"], strict=True)}, members


def chain(length):
    """Hashes of which each differs from the one before in two bits, and from all others in more."""
    return np.array([(1 << 2 * number) - 1 for number in range(length)], dtype=np.uint64)


def test_the_largest_stays_then_the_highest_score_then_the_longest_captions_then_the_first(tmp_path):
    same = np.zeros(4)
    for number, (columns, best) in enumerate([
        ({"area": [1, 5, 5, 2], "score": [9, 0, 1, 0]}, 2), ({"area": [5, 5, 5, 5], "length": [1, 3, 3, 2]}, 1), ({}, 0),
        ({"area": [5, 5, 5, 5], "score": [np.nan, -1.0, -2.0, np.nan]}, 1),
    ]):  # fmt: skip
        table = table_of(tmp_path / f"table{number}", 4, digest=same, **columns)
        assert set(members_of(tmp_path, table, choice())[1].values()) == {best}


def test_by_score_the_score_comes_before_the_size_and_by_order_nothing_does(tmp_path):
    table = table_of(tmp_path / "table", 3, digest=np.zeros(3), area=[1, 9, 1], score=[1.0, 2.0, 3.0])
    assert set(members_of(tmp_path, table, choice(keep="score"))[1].values()) == {2}
    assert set(members_of(tmp_path, table, choice(keep="first"))[1].values()) == {0}


def test_a_chain_is_one_group_and_directly_only_neighbours_of_one_that_stays_go(tmp_path):
    table = table_of(tmp_path / "table", 5, hash=chain(5), area=[1, 1, 9, 1, 1])
    facts, kept, _ = members_of(tmp_path, table, choice())
    assert kept == dict.fromkeys(range(5), 2) and facts["groups"] == 1 and facts["largest"] == 5
    _, kept, _ = members_of(tmp_path, table, choice(direct=True))
    assert kept == {0: 0, 1: 2, 2: 2, 3: 2, 4: 4}
    assert all(one == other or np.bitwise_count(chain(5)[one] ^ chain(5)[other]) <= 2 for one, other in kept.items())


def test_a_group_that_is_too_large_is_cut_at_stricter_thresholds_but_not_where_hashes_are_equal(tmp_path):
    far = chain(4) << np.uint64(40)
    hashes = np.concatenate([np.array([0, 1, 3, 7, 15], np.uint64), np.zeros(5, np.uint64), far[1:]])
    table = table_of(tmp_path / "table", len(hashes), hash=hashes)
    facts, kept, _ = members_of(tmp_path, table, choice(bits=2, most=4), REACH)
    assert facts["too_large"]["hash"] == {"2": 1, "1": 1, "0": 1}
    assert {one for one, other in kept.items() if one != other} == {5, 6, 7, 8, 9}


def test_the_reason_is_the_surest_rule_by_which_one_is_with_the_one_that_stays(tmp_path):
    # 0 and 1 have the same bytes; 2 is near to 1; 3 has the bytes of 2, and 2 is what stays.
    table = table_of(tmp_path / "table", 4, digest=[7, 7, 8, 8], hash=[0, 0, 1, 1], area=[1, 1, 9, 1])
    _, _, members = members_of(tmp_path, table, choice())
    reasons = [RULES[rule] for rule in members["rule"]]
    assert reasons == ["hash", "hash", "bytes", "bytes"]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_pairs_are_found_changes_nothing(tmp_path, seed):
    draw = np.random.default_rng(seed)
    table = table_of(tmp_path / "table", 60, area=draw.integers(3, size=60))
    pairs = draw.integers(60, size=(70, 2))
    pairs, distance = pairs[pairs[:, 0] != pairs[:, 1]], draw.integers(0, 4, size=70).astype(float)

    def found(order):
        forest = Forest(buffer=7)
        for number in order.tolist():
            forest.add(pairs[number : number + 1, 0], pairs[number : number + 1, 1], distance[number : number + 1])
        nothing = np.zeros(0, np.int64)
        by = {"bytes": Edges(nothing, nothing, np.zeros(0)), "hash": forest.edges()}
        facts, kept, _ = members_of(tmp_path, table, choice(most=5), pairs=by)
        return facts, kept

    assert found(np.arange(len(pairs))) == found(draw.permutation(len(pairs)))
