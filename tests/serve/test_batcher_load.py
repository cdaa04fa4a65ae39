"""The queue at twice what can be done, in a time of its own: the clock stands while something is done and jumps while all wait.

What a batch takes is that of ViT-B-32 on one thread of an AMD EPYC (benchmarks/serve_load.py measures the whole service).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors

import numpy as np
import pytest

from ostension.serve.batcher import Batcher, Computed, Overloaded

SHAPES = {"image": (0.055, 0.083), "text": (0.037, 0.0007)}  # seconds of a batch: fixed, and for each picture or token
COSTS = {"image": 1, "text": 10}
SECONDS = {"image": 60, "text": 20}
GROUPS = ({"image": 256}, {"text": 100_000})


class Jumping(selectors.DefaultSelector):
    """Waits no time at all, and counts what it would have waited."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0.0
        return super().select(0)


@contextlib.contextmanager
def own_time():
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield runner


def simulate(lane, work, *, noise=0.0, **settings):
    """Run a coroutine function of (ask, loop): `ask(client)` gives the seconds of a request, or None if it is refused."""
    rng = random.Random(0)

    async def compute(name, payloads):
        fixed, slope = SHAPES[name]
        seconds = (fixed + slope * COSTS[name] * len(payloads)) * (1 + noise * rng.random())
        await asyncio.sleep(seconds)
        return Computed(payloads, seconds)

    async def main():
        loop = asyncio.get_running_loop()
        batcher = Batcher(compute, GROUPS, clock=loop.time, **settings)
        for name, shape in SHAPES.items():
            batcher.lanes[name].pace.shape(*shape)
        await batcher.start()

        async def ask(client):
            began = loop.time()
            try:
                with batcher.hold(lane, COSTS[lane]):
                    await batcher.run(lane, ["item"], [COSTS[lane]], client)
            except Overloaded as error:
                await asyncio.sleep(max(1.0, error.retry_after_s))
                return None
            return loop.time() - began

        try:
            return await work(ask, loop)
        finally:
            await batcher.stop()

    with own_time() as runner:
        return runner.run(main())


async def closed(ask, loop, clients, seconds):
    """Clients that ask again when they are answered, or when they were told to: answers a second."""
    taken = []

    async def client(number):
        while loop.time() < seconds:
            taken.append(await ask(number))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return sum(one is not None for one in taken) / loop.time()


async def at_rate(ask, loop, rate, seconds):
    """Requests at random times, each of another client: the seconds of those that are accepted."""
    rng, tasks = random.Random(1), []
    end = loop.time() + seconds
    while loop.time() < end:
        await asyncio.sleep(rng.expovariate(rate))
        tasks.append(asyncio.create_task(ask(len(tasks))))
    return [one for one in await asyncio.gather(*tasks) if one is not None]


@pytest.mark.parametrize("lane", SHAPES)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_at_twice_the_capacity_the_accepted_take_less_than_thrice_as_long_as_alone(lane, noise):
    async def work(ask, loop):
        alone = [await ask("one") for _ in range(30)]
        capacity = await closed(ask, loop, 64, loop.time() + 6)
        return alone, capacity, await at_rate(ask, loop, 2 * capacity, SECONDS[lane])

    alone, capacity, over = simulate(lane, work, noise=noise, max_slowdown=3.0)
    assert np.percentile(over, 99) < 3 * np.percentile(alone, 99)
    assert len(over) / SECONDS[lane] > 0.9 * capacity


def test_without_that_bound_more_is_done_and_nobody_waits_longer_than_the_queue_may_be():
    async def work(ask, loop):
        return await at_rate(ask, loop, 20, SECONDS["image"])

    bounded, over = simulate("image", work, max_slowdown=3.0), simulate("image", work, max_queue_s=2.0)
    assert len(over) > len(bounded) and max(over) < 3.0
