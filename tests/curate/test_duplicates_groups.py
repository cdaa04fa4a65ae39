"""Groups from pairs: the forest, its groups at every threshold, and groups that are too large."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate.duplicates_groups import Forest, capped_groups, components
from ostension.runtime import numpy_generator

PAIRS = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 4)).filter(lambda pair: pair[0] != pair[1]), max_size=40
)


def one_by_one(pairs):
    """Groups by joining pairs one after the other: {candidate: the smallest of its group}."""
    group = {}
    for a, b, _ in pairs:
        one, other = group.setdefault(a, {a}), group.setdefault(b, {b})
        if one is not other:
            one |= other
            for member in other:
                group[member] = one
    return {member: min(members) for member, members in group.items()}


def groups_of(edges):
    nodes, labels = components([(edges.a, edges.b)])
    return dict(zip(nodes.tolist(), labels.tolist(), strict=True))


def forest_of(pairs, buffer=2**20, batches=1):
    forest = Forest(buffer)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    for part in np.array_split(table, batches):
        forest.add(part[:, 0], part[:, 1], part[:, 2])
    return forest.edges()


@given(PAIRS)
@settings(deadline=None)
def test_at_every_threshold_the_forest_has_the_groups_of_all_pairs(pairs):
    edges = forest_of(pairs)
    for distance in range(-1, 5):
        assert groups_of(edges.upto(distance)) == one_by_one([pair for pair in pairs if pair[2] <= distance])
    assert len(edges.a) < max(1, len(one_by_one(pairs))) or not pairs


@given(PAIRS, st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_neither_the_order_of_pairs_nor_the_batches_change_the_forest(pairs, buffer, batches, seed):
    draw = numpy_generator("order of pairs", seed)
    turned = [
        pairs[at] if draw.random() < 0.5 else (pairs[at][1], pairs[at][0], pairs[at][2]) for at in draw.permutation(len(pairs))
    ]
    one, other = forest_of(pairs), forest_of(turned, buffer, batches)
    assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def test_groups_of_several_kinds_of_pairs_are_joined_by_what_they_share():
    nodes, labels = components([(np.array([1]), np.array([2])), (np.array([7, 2]), np.array([8, 9]))])
    assert nodes.tolist() == [1, 2, 7, 8, 9] and labels.tolist() == [1, 1, 7, 7, 1]


def test_without_pairs_there_are_no_groups():
    nodes, labels = components([])
    assert len(nodes) == len(labels) == 0


@given(PAIRS, st.integers(2, 6))
@settings(deadline=None)
def test_a_group_that_is_too_large_falls_apart_until_it_is_not_or_thresholds_end(pairs, most):
    edges = forest_of(pairs)
    kept, large = capped_groups(edges, most, [4, 3, 2, 1, 0])
    before, after = groups_of(edges), groups_of(kept)
    strictest = groups_of(edges.upto(0))
    for member, label in before.items():
        size = sum(other == label for other in before.values())
        if size <= most:
            assert after[member] == label  # nothing else is touched
        elif member in after:
            size = sum(other == after[member] for other in after.values())
            assert size <= most or after[member] == strictest.get(member)
    sizes = np.unique(list(before.values()), return_counts=True)[1]
    assert large.get(4, 0) == (sizes > most).sum()


def test_a_chain_of_near_ones_is_cut_where_it_is_weakest():
    chain = [(0, 1, 1), (1, 2, 4), (2, 3, 1)]
    kept, large = capped_groups(forest_of(chain), 3, [4, 2, 0])
    assert groups_of(kept) == {0: 0, 1: 0, 2: 2, 3: 2} and large == {4: 1}
