"""Dynamic batches: items of many requests are computed together, fairly, within bounds, and none at the expense of another.

- Items of one lane (pictures, texts, a predictor's) share batches. A group of lanes computes one batch at a time and its lanes
  take turns by the time that they have used. Groups go on side by side, so that short work never waits for long work to end.
- Within a lane the clients take turns, and within a client its requests, one item each. A request of 32 pictures therefore
  does not stand before one of a single picture.
- A batch ends at `max_batch` items, or where it would take longer than `slice_s` by what items took before; some items share a
  batch even so, because one alone wastes what the processor can do.
- Nothing waits while nobody else can come: an item is held back for companions, for `max_wait_s` at most, only while other
  requests are being prepared.
- Waiting items are bounded by cost for each lane, and by time: a request that would wait longer than `max_queue_s`, and longer
  than it takes itself, is refused at once with the time until there is room. So those who are accepted are answered soon. A few
  requests are always accepted.
- With `max_slowdown`, a request that would take more than so many times what it takes on an idle service is refused, however
  few there are, and batches end where somebody who comes just after their beginning could not be answered within that.
- An item whose request has gone is dropped. A batch that fails is computed once more item by item, so that only the item at
  fault fails. If the computing process dies, everything fails at once and nothing hangs.

Nothing here knows what is computed: `compute(lane, payloads)` gives one result for each payload.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from ostension.serve.pace import Pace

MAX_RETRY_AFTER_S = 60.0
MIN_REQUESTS = 8  # are accepted however slow the machine is, so that there is something to make batches of
SURE = 0.8  # of the time that a request may take is given away: batches form and take a little otherwise than is foreseen
MIN_BATCH = 4  # ViT-B-32 on one thread: 137 ms a picture alone, 97 of four, 92 of 32


class Overloaded(Exception):
    """The queue is full; `retry_after_s` is when it will have room by what items took before."""

    def __init__(self, lane: str, retry_after_s: float):
        super().__init__(f"the queue of the lane {lane!r} is full")
        self.lane, self.retry_after_s = lane, retry_after_s


class TooLarge(Exception):
    """A request that would not fit into an empty queue."""


class ItemFailed(Exception):
    """The item could not be computed, alone as well as in company."""


class BackendLost(Exception):
    """The computing process died, hung or is not there yet."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """What a batch gave: a row for each item, and the seconds that it took without any waiting."""

    rows: Any
    seconds: float


Compute = Callable[[str, list[Any]], Awaitable[Computed]]


class Watcher(Protocol):
    """Somebody who counts."""

    def batch(self, lane: str, size: int, seconds: float) -> None:
        """A batch was computed."""

    def waited(self, lane: str, seconds: float) -> None:
        """An item left the queue for a batch."""

    def retried(self, lane: str) -> None:
        """A batch failed and is computed item by item."""


@dataclasses.dataclass(eq=False)
class _Item:
    payload: Any
    cost: int
    future: asyncio.Future[Any]
    since: float


@dataclasses.dataclass(eq=False)
class _Request:
    client: Hashable
    items: collections.deque[_Item]


@dataclasses.dataclass(frozen=True)
class _Flight:
    """A batch that is being computed."""

    lane: Lane
    cost: int
    ends: float  # by what batches took before


class Lane:
    """The waiting items of one lane, by client and request.

    Args:
        bound: the most cost that may wait or be computed.
    """

    def __init__(self, name: str, bound: int):
        self.name, self.bound = name, bound
        self.held = 0  # cost of everything that was admitted and is not done
        self.holds: set[Hold] = set()
        self.used_s = 0.0  # time that the lane has had, by which lanes take turns
        self.pace = Pace()
        self.unit = 1.0  # cost of an item, by the last batch
        self._clients: collections.OrderedDict[Hashable, collections.OrderedDict[int, _Request]] = collections.OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def __len__(self) -> int:
        return sum(len(request.items) for requests in self._clients.values() for request in requests.values())

    def oldest(self) -> float:
        """When the item that has waited longest came."""
        return min(request.items[0].since for requests in self._clients.values() for request in requests.values())

    def add(self, request: _Request) -> None:
        """Let a request's items wait."""
        self._clients.setdefault(request.client, collections.OrderedDict())[id(request)] = request

    def remove(self, request: _Request) -> None:
        """Drop what of a request still waits."""
        requests = self._clients.get(request.client)
        if requests is not None and requests.pop(id(request), None) is not None and not requests:
            del self._clients[request.client]

    def take(self, max_items: int, max_cost: float) -> list[_Item]:
        """The next batch: one item of each client in turn, and for a client one of each of its requests in turn."""
        taken: list[_Item] = []
        cost = 0
        while self._clients and len(taken) < max_items:
            client, requests = next(iter(self._clients.items()))
            place, request = next(iter(requests.items()))
            item = request.items[0]
            if len(taken) >= MIN_BATCH and cost + item.cost > max_cost:
                break
            request.items.popleft()
            if item.future.done():  # its request has gone
                pass
            else:
                taken.append(item)
                cost += item.cost
            if request.items:
                requests.move_to_end(place)
            else:
                del requests[place]
            if requests:
                self._clients.move_to_end(client)
            else:
                del self._clients[client]
        return taken

    def drain(self) -> list[_Item]:
        """Everything that waits, which then waits no more."""
        waiting = [item for requests in self._clients.values() for request in requests.values() for item in request.items]
        self._clients.clear()
        return waiting

    def measured(self, cost: int, count: int, seconds: float) -> None:
        """Learn from a batch."""
        self.used_s += seconds
        self.unit = cost / count
        self.pace.add(cost, seconds)


class Group:
    """Lanes that compute one batch at a time."""

    def __init__(self, lanes: list[Lane]):
        self.lanes = lanes
        self.came = asyncio.Event()
        self.turn_s = 0.0  # what the lane whose turn came last had used until then
        self.flying: _Flight | None = None

    def wait_s(self, own: Lane, cost: int, max_batch: int) -> float:
        """How long a request of that cost waits for others: all take turns, so for as much of each as it has itself."""
        seconds = cost * own.pace.slope
        batches = sum(lane.pace.fixed * math.ceil(len(lane.holds) / max_batch) for lane in self.lanes)
        return batches + sum(min(seconds, hold.cost * lane.pace.slope) for lane in self.lanes for hold in lane.holds)

    def done_s(self, own: Lane, cost: int, most_items: Callable[[Lane], int], now: float) -> float:
        """When a request of that cost is answered: after the rest of the batch that is computed, and after what waits, all
        taking turns."""
        total = 0.0
        for lane in self.lanes:
            mine = [cost] if lane is own else []
            costs = [min(cost, hold.cost) if mine else hold.cost for hold in lane.holds] + mine
            ahead = sum(costs)
            if self.flying is not None and self.flying.lane is lane:
                ahead = max(ahead - self.flying.cost, *mine, 0)
            batches = math.ceil(ahead / lane.unit / most_items(lane))
            total += lane.pace.fixed * batches + lane.pace.slope * ahead
        return total + (max(0.0, self.flying.ends - now) if self.flying is not None else 0.0)


class Batcher:
    """Collects items into batches and gives each its result.

    Args:
        compute: computes one batch; raises `BackendLost` when nothing more will come, anything else when the batch failed.
        groups: of lanes, each with the most cost that it may hold.
        max_batch, slice_s, max_wait_s, max_queue_s, max_slowdown: see above.
        clock: seconds; another one in tests.
    """

    def __init__(
        self,
        compute: Compute,
        groups: Sequence[Mapping[str, int]],
        *,
        max_batch: int = 32,
        slice_s: float = 0.2,
        max_wait_s: float = 0.008,
        max_queue_s: float = math.inf,
        max_slowdown: float = math.inf,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.compute, self.max_batch, self.slice_s, self.max_wait_s = compute, max_batch, slice_s, max_wait_s
        self._groups = [Group([Lane(name, bound) for name, bound in lanes.items()]) for lanes in groups]
        self._group_of = {lane.name: group for group in self._groups for lane in group.lanes}
        self.max_queue_s, self.max_slowdown = max_queue_s, max_slowdown
        self.lanes = {lane.name: lane for group in self._groups for lane in group.lanes}
        self.preparing = 0  # requests that will put items into the queue soon
        self.watcher, self.clock = watcher, clock
        self._flying: set[_Item] = set()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to compute."""
        self._loops = [asyncio.create_task(self._turn(group), name="batcher") for group in self._groups]

    async def stop(self) -> None:
        """Fail what is left and end."""
        self.fail_all(BackendLost("the service is stopping"))
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def hold(self, lane: str, cost: int) -> Hold:
        """Room for a request's items, kept until the hold is let go.

        Raises:
            TooLarge: if there is never so much room.
            Overloaded: if there is not now.
        """
        found = self.lanes[lane]
        if cost > found.bound:
            raise TooLarge(f"the request costs {cost}, and the queue holds {found.bound}")
        group = self._group_of[lane]
        wait = group.wait_s(found, cost, self.max_batch)
        if found.held + cost > found.bound:
            raise Overloaded(lane, min(MAX_RETRY_AFTER_S, wait))
        most = max(self.max_queue_s, found.pace.seconds(cost))
        if wait > most and sum(len(one.holds) for one in group.lanes) >= MIN_REQUESTS:
            raise Overloaded(lane, min(MAX_RETRY_AFTER_S, wait - most))
        if self.max_slowdown < math.inf and any(one.holds for one in group.lanes):
            late = group.done_s(found, cost, self._most_items, self.clock())
            late -= SURE * self.max_slowdown * found.pace.seconds(cost)
            if late > 0:
                raise Overloaded(lane, min(MAX_RETRY_AFTER_S, late))
        return Hold(found, cost)

    def full(self, lanes: Sequence[str], most: int) -> Overloaded | None:
        """What every request of one of `lanes` would get that costs 1 to `most`; None if some would be accepted.

        Waiting grows with the cost and ever slower, and what may be waited grows evenly, so it is enough to try both ends.
        """
        found: Overloaded | None = None
        for lane in lanes:
            room = self.lanes[lane].bound - self.lanes[lane].held
            for cost in {1, max(1, min(most, room))}:
                try:
                    with self.hold(lane, cost):
                        return None
                except Overloaded as error:
                    if found is None or error.retry_after_s < found.retry_after_s:
                        found = error
        return found

    def _most_items(self, lane: Lane) -> int:
        """Of a batch. Who comes just after the beginning of a batch waits for that one and is answered by the next."""
        if self.max_slowdown == math.inf:
            return self.max_batch
        most = lane.pace.cost_within(self.max_slowdown / 2 * lane.pace.seconds(lane.unit)) / lane.unit
        return int(min(self.max_batch, max(1.0, most)))

    async def run(self, lane: str, payloads: Sequence[Any], costs: Sequence[int], client: Hashable) -> list[Any]:
        """The results of a request's items, in order.

        Cancelling the call removes what of it has not begun.

        Raises:
            ItemFailed: if one of the items cannot be computed.
            BackendLost: if the computing process is gone.
        """
        loop, now = asyncio.get_running_loop(), self.clock()
        items = [_Item(payload, cost, loop.create_future(), now) for payload, cost in zip(payloads, costs, strict=True)]
        if not items:
            return []
        request, found, group = _Request(client, collections.deque(items)), self.lanes[lane], self._group_of[lane]
        if not found:  # a lane that was idle has no claim on the time it did not use
            found.used_s = max(found.used_s, group.turn_s)
        found.add(request)
        group.came.set()
        try:
            return list(await asyncio.gather(*(item.future for item in items)))
        finally:
            found.remove(request)
            for item in items:
                if not item.future.done():
                    item.future.cancel()
                elif not item.future.cancelled():
                    item.future.exception()  # was raised for one item already

    def fail_all(self, error: Exception) -> None:
        """Give `error` to everything that waits or is being computed."""
        waiting = [item for lane in self.lanes.values() for item in lane.drain()]
        for item in [*waiting, *self._flying]:
            _settle(item, error=error)

    @property
    def computing(self) -> int:
        """Items in batches that are being computed."""
        return len(self._flying)

    async def _turn(self, group: Group) -> None:
        while True:
            items, lane = await self._next(group)
            cost = sum(item.cost for item in items)
            group.flying = _Flight(lane, cost, self.clock() + lane.pace.seconds(cost))
            await self._batch(lane, items)
            group.flying = None

    async def _next(self, group: Group) -> tuple[list[_Item], Lane]:
        """The next batch, as late as may be, so that whoever came by then is in it."""
        while True:
            waiting = [lane for lane in group.lanes if lane]
            if not waiting:
                group.came.clear()
                await group.came.wait()
                continue
            lane = min(waiting, key=lambda one: one.used_s)
            left = lane.oldest() + self.max_wait_s - self.clock()
            if self.preparing and left > 0 and len(lane) < self.max_batch:
                group.came.clear()
                try:
                    await asyncio.wait_for(group.came.wait(), min(left, 0.001))
                except TimeoutError:
                    pass
                continue
            most = self.slice_s / lane.pace.ratio if lane.pace.ratio else math.inf
            group.turn_s = lane.used_s
            items = lane.take(self._most_items(lane), most)
            if items:
                return items, lane

    async def _batch(self, lane: Lane, items: list[_Item]) -> None:
        now = self.clock()
        if self.watcher is not None:
            for item in items:
                self.watcher.waited(lane.name, now - item.since)
        self._flying.update(items)
        try:
            await self._compute(lane, items)
        finally:
            self._flying.difference_update(items)
            for item in items:
                _settle(item, error=BackendLost("the service is stopping"))

    async def _compute(self, lane: Lane, items: list[_Item]) -> None:
        try:
            found = await self.compute(lane.name, [item.payload for item in items])
        except BackendLost as error:
            for item in items:
                _settle(item, error=error)
            return
        except Exception:
            if self.watcher is not None:
                self.watcher.retried(lane.name)
            await self._one_by_one(lane, items)
            return
        lane.measured(sum(item.cost for item in items), len(items), found.seconds)
        if self.watcher is not None:
            self.watcher.batch(lane.name, len(items), found.seconds)
        for item, row in zip(items, found.rows, strict=True):
            _settle(item, row)

    async def _one_by_one(self, lane: Lane, items: list[_Item]) -> None:
        for item in items:
            if item.future.done():
                continue
            try:
                _settle(item, (await self.compute(lane.name, [item.payload])).rows[0])
            except BackendLost as error:
                _settle(item, error=error)
            except Exception as error:
                _settle(item, error=ItemFailed(str(error)))


class Hold:
    """Room in a lane; `with` lets it go."""

    def __init__(self, lane: Lane, cost: int):
        self.lane, self.cost = lane, cost
        lane.held += cost
        lane.holds.add(self)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.lane.held -= self.cost
        self.lane.holds.discard(self)


def _settle(item: _Item, row: Any = None, *, error: Exception | None = None) -> None:
    if item.future.done():
        return
    if error is not None:
        item.future.set_exception(error)
    else:
        item.future.set_result(row)
