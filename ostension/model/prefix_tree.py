"""The distinct prefixes of a batch of prompts, and a causal transformer run over them.

Under a causal mask the state at a position depends on the keys up to it and on nothing after, so prompts that begin alike
have the same states there. A node is one position of one row that is computed; a row owns the nodes from position `start`
on and borrows those before from other rows. Linear maps, norms and MLPs run over the nodes alone, without padding;
attention runs over groups of rows with equal `start` and `length`, whose nodes lie side by side, so that queries are views.

Rows are grouped by giving up a little: a row may borrow less than it could and may be longer than it is, because a
position after a row's end is seen by nothing that is read. Both cost nodes and neither changes the result.

Letters: R rows, T positions, n nodes, r rows of a group, s nodes that a row of a group owns, W width.
"""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ostension.model.layers import Block, Transformer
from ostension.shapes import Bool, Float, Int

# Nodes that a group of its own is worth: the fixed cost of one more attention call, in tokens through a block (measured at
# width 512: 0.1 to 0.2 ms a call against 0.03 to 0.06 ms a token; at width 32 a step is fastest with 16 to 48).
GROUP_COST, AT_WIDTH = 8, 512
PLANS = 4  # the latest plans that are kept: training asks for the same one in every step
# Borrowing costs a gather and a copy of keys and values; below this share of the tokens it does not pay.
WORTH_SHARING = 0.15


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that own the positions `start` to `length - 1`.

    Attributes:
        first: the number of the group's first node; the rows follow each other with s = length - start nodes each.
        borrowed: (r, start) the nodes before.
        ends: (r,) the position that is read.
    """

    first: int
    start: int
    length: int
    borrowed: Int[Tensor, "r start"]
    ends: Int[Tensor, " r"]

    @property
    def rows(self) -> int:
        return len(self.ends)

    @property
    def nodes(self) -> slice:
        return slice(self.first, self.first + self.rows * (self.length - self.start))

    @functools.cached_property
    def common(self) -> slice | None:
        """The nodes before, if all rows borrow the same ones and they lie side by side."""
        if self.borrowed.numel() == 0:
            return None
        first = self.borrowed[0]
        steps = torch.arange(self.start, device=first.device) + first[0]
        return slice(int(first[0]), int(first[0]) + self.start) if bool((self.borrowed == steps).all()) else None

    @functools.cached_property
    def end_nodes(self) -> Int[Tensor, " r"]:
        """The nodes that are read."""
        rows = torch.arange(self.rows, device=self.ends.device)
        return self.first + rows * (self.length - self.start) + self.ends - self.start

    @functools.cached_property
    def seen(self) -> Bool[Tensor, "s length"]:
        """Which positions each own node of a row sees."""
        own = self.length - self.start
        return torch.ones(own, self.length, dtype=torch.bool, device=self.ends.device).tril(self.start)

    @functools.cached_property
    def seen_at_ends(self) -> Bool[Tensor, "r length"]:
        """Which positions the ends see."""
        return torch.arange(self.length, device=self.ends.device) <= self.ends[:, None]


@dataclasses.dataclass(frozen=True)
class PrefixTree:
    """The nodes of some rows.

    Attributes:
        keys: (n,) what stands at each node.
        positions: (n,) where it stands.
        groups: the rows, in the order of their nodes.
        rows: (R,) for each row of the batch that the tree covers, in the batch's order, its place in the groups' order.
    """

    keys: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    groups: tuple[Group, ...]
    rows: Int[Tensor, " R"]

    @functools.cached_property
    def end_nodes(self) -> Int[Tensor, " R2"]:
        """The nodes that are read, in the groups' order."""
        return torch.cat([group.end_nodes for group in self.groups])

    @functools.cached_property
    def sizes(self) -> tuple[list[int], list[int]]:
        """How many nodes each group owns, and how many rows it has."""
        nodes = [group.nodes for group in self.groups]
        return [part.stop - part.start for part in nodes], [group.rows for group in self.groups]

    def lender(self, group: Group) -> tuple[int, slice] | None:
        """The group, and the nodes in it, that all rows of a group borrow, where they are of one group."""
        if (common := group.common) is None:
            return None
        for place, other in enumerate(self.groups):
            if other.nodes.start <= common.start and common.stop <= other.nodes.stop:
                return place, slice(common.start - other.first, common.stop - other.first)
        return None


Plan = tuple[tuple[PrefixTree, Tensor], ...]


def plan(keys: Int[Tensor, "R T"], ends: Int[Tensor, " R"], max_nodes: int | None = None, *, width: int = 512) -> Plan:
    """Trees that cover all rows, each with the rows that it covers.

    Args:
        keys: what stands at each position; equal keys at a position after equal prefixes are computed once.
        ends: the position of each row that is read; nothing after it matters.
        max_nodes: about the most nodes of one tree, which bounds the memory; None makes one tree.
        width: of the transformer; the narrower, the cheaper a node beside a group of its own.
    """
    lengths = ends.cpu().numpy().astype(np.int64) + 1
    table = np.ascontiguousarray(keys[:, : int(lengths.max())].cpu().numpy(), dtype=np.int64)
    group_cost = round(GROUP_COST * (AT_WIDTH / width) ** 0.5)
    return _plan(table.tobytes(), lengths.tobytes(), table.shape, max_nodes, group_cost, keys.device)


@functools.lru_cache(maxsize=PLANS)
def _plan(
    keys: bytes, ends: bytes, shape: tuple[int, int], max_nodes: int | None, group_cost: int, device: torch.device
) -> Plan:
    table, lengths = np.frombuffer(keys, np.int64).reshape(shape), np.frombuffer(ends, np.int64)
    outside = np.arange(table.shape[1]) >= lengths[:, None]
    table = np.where(outside, np.iinfo(np.int64).min, table)  # sorts before every key: a prefix comes before what it begins
    order = np.lexsort(table.T[::-1])
    table, lengths = table[order], lengths[order]
    shared = np.zeros(len(table), np.int64)  # positions that a row has in common with the row before
    shared[1:] = np.minimum.accumulate(table[1:] == table[:-1], axis=1).sum(axis=1)
    shared = np.minimum(shared, lengths)
    trees = []
    for part in _cuts(lengths - shared, max_nodes):
        tree = _tree(table[part], lengths[part], shared[part], group_cost, device)
        trees.append((tree, torch.from_numpy(order[part]).to(device)))
    return tuple(trees)


def _cuts(own: np.ndarray, max_nodes: int | None) -> list[slice]:
    """Runs of rows that own about `max_nodes` nodes together."""
    if max_nodes is None:
        return [slice(0, len(own))]
    run = (np.cumsum(own) - own) // max_nodes
    edges = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(own)]
    return [slice(first, last) for first, last in pairwise(edges)]


def _tree(
    table: np.ndarray, lengths: np.ndarray, shared: np.ndarray, group_cost: int, device: torch.device
) -> PrefixTree:  # fmt: skip
    """The tree of sorted rows."""
    shared = shared.copy()
    shared[0] = 0
    copies = shared == lengths  # rows equal to the one before
    sources = np.maximum.accumulate(np.where(copies, 0, np.arange(len(table))))  # the row that stands for each
    kept = np.flatnonzero(~copies)
    table, lengths, shared = table[kept], lengths[kept], shared[kept]
    starts, stops = _groups(shared, lengths, group_cost)
    by_group = np.lexsort((np.arange(len(kept)), stops, starts))
    counts = (stops - starts)[by_group]
    base = np.empty(len(kept), np.int64)  # the first node of each row
    base[by_group] = np.cumsum(counts) - counts
    positions = np.arange(int(stops.max()))
    # Row i borrows position p from the last row up to i that owns p: rows between share the prefix.
    owner = np.maximum.accumulate(np.where(positions >= starts[:, None], np.arange(len(kept))[:, None], 0), axis=0)
    node = base[owner] + positions - starts[owner]
    owned = (positions >= starts[:, None]) & (positions < stops[:, None])
    row_of, position_of = np.nonzero(owned[by_group])
    padded = np.where(positions < lengths[:, None], table[:, : len(positions)], 0)  # any key will do after a row's end
    groups, first = [], 0
    edges = np.flatnonzero(np.diff(starts[by_group]) | np.diff(stops[by_group])) + 1
    for members in np.split(by_group, edges):
        start, stop = int(starts[members[0]]), int(stops[members[0]])
        groups.append(Group(first, start, stop, _tensor(node[members, :start], device), _tensor(lengths[members] - 1, device)))
        first += len(members) * (stop - start)
    place = np.empty(len(kept), np.int64)
    place[by_group] = np.arange(len(kept))
    rows = place[np.searchsorted(kept, sources)]
    node_keys = padded[by_group][row_of, position_of]
    return PrefixTree(_tensor(node_keys, device), _tensor(position_of, device), tuple(groups), _tensor(rows, device))


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _groups(shared: np.ndarray, lengths: np.ndarray, group_cost: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row the position from which it owns its nodes and the length that it is computed to."""
    starts = shared if shared.sum() >= WORTH_SHARING * lengths.sum() else np.zeros_like(shared)
    starts = -_merge(-starts, group_cost)
    stops = np.empty_like(lengths)
    for start in np.unique(starts):
        rows = starts == start
        stops[rows] = _merge(lengths[rows], group_cost)
    return starts, stops


def _merge(values: np.ndarray, group_cost: int) -> np.ndarray:
    """Raise values to a larger one that occurs, wherever that costs less than keeping a group for them."""
    levels, counts = np.unique(values, return_counts=True)
    target = levels.copy()
    rows, cost = 0, 0  # of the run of levels that is being raised
    run = 0
    for i in range(len(levels) - 1):
        rows += counts[i]
        cost += rows * (levels[i + 1] - levels[i])
        if cost > group_cost * (i + 1 - run):
            rows, cost, run = 0, 0, i + 1
        else:
            target[run : i + 1] = levels[i + 1]
    return target[np.searchsorted(levels, values)]


def run_tree(transformer: Transformer, x: Float[Tensor, "n W"], tree: PrefixTree, replace=None) -> Float[Tensor, "R W"]:
    """The last block's output at the end of each row.

    Args:
        x: what enters the first block at each node.
        replace: called with a block's number and its input, gives the input to use.
    """
    blocks = transformer.blocks()
    for index, block in enumerate(blocks):
        if replace is not None:
            x = replace(index, x)
        x = transformer.run(block.through, _ends if index == len(blocks) - 1 else _all, x, tree)
    return x[tree.rows]


def _all(block: Block, x: Tensor, tree: PrefixTree) -> Tensor:
    """A block's output at every node (n, W)."""
    attn = block.attn
    q, kv = attn.queries_keys_values(block.ln_1(x)).split((attn.width, 2 * attn.width), dim=-1)
    read = []
    for group, queries, seen in zip(tree.groups, q.split(tree.sizes[0]), _keys_values(kv, tree), strict=True):
        mask = {"causal": True} if group.start == 0 else {"mask": group.seen}
        read.append(attn.read(queries.view(group.rows, -1, attn.width), seen, **mask).flatten(0, 1))
    return block.mix(x + attn.project(torch.cat(read)))


def _ends(block: Block, x: Tensor, tree: PrefixTree) -> Tensor:
    """A block's output at the ends of the rows alone, in the groups' order."""
    attn, normed = block.attn, block.ln_1(x)
    ends = tree.end_nodes
    queries, kv = attn.queries(normed[ends]).split(tree.sizes[1]), attn.keys_values(normed)
    read = [
        attn.read(q[:, None], seen, mask=group.seen_at_ends[:, None, None])[:, 0]
        for group, q, seen in zip(tree.groups, queries, _keys_values(kv, tree), strict=True)
    ]
    return block.mix(x[ends] + attn.project(torch.cat(read)))


def _keys_values(kv: Float[Tensor, "n W2"], tree: PrefixTree) -> list[Float[Tensor, "r length W2"]]:
    """The keys and values that the rows of each group see.

    They are cut once for all groups: the gradient of a slice alone would be written into zeros of the whole size.
    """
    parts, found = kv.split(tree.sizes[0]), []
    for group, part in zip(tree.groups, parts, strict=True):
        own = part.view(group.rows, -1, kv.shape[-1])
        if group.start == 0:
            found.append(own)
            continue
        # Of nodes that all rows share a view will do, whose gradient is a sum; that of a gather is written number by number.
        lent = tree.lender(group)
        shared = kv[group.borrowed] if lent is None else parts[lent[0]][lent[1]].expand(group.rows, -1, -1)
        found.append(torch.cat([shared, own], dim=1))
    return found
