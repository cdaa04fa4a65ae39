"""Batches of many requests, with a fake that computes: who shares a batch, who waits, who is dropped, who fails."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ostension.serve.batcher import BackendLost, Batcher, Computed, ItemFailed, Overloaded, TooLarge


class Fake:
    """Gives back what it is given, when it is told to; remembers the batches."""

    def __init__(self, *, held=False, seconds=0.01):
        self.batches: list[tuple[str, list]] = []
        self.gate = asyncio.Event()
        self.seconds = seconds
        self.fails: dict[object, int] = {}  # payload -> how often it fails
        self.lost = False
        if not held:
            self.gate.set()

    async def __call__(self, lane, payloads):
        self.batches.append((lane, list(payloads)))
        await self.gate.wait()
        if self.lost:
            raise BackendLost("gone")
        for payload in payloads:
            if self.fails.get(payload, 0) > 0:
                self.fails[payload] -= 1
                raise ValueError("no")
        return Computed([f"row of {payload}" for payload in payloads], self.seconds * len(payloads))


TOGETHER = ({"image": 100, "text": 1000},)
APART = ({"image": 100}, {"text": 1000})


def run(work, *, held=False, seconds=0.01, groups=TOGETHER, **options):
    """Run a coroutine function of (batcher, fake)."""

    async def main():
        fake = Fake(held=held, seconds=seconds)
        batcher = Batcher(fake, groups, **{"slice_s": 100.0, **options})
        await batcher.start()
        try:
            return await asyncio.wait_for(work(batcher, fake), 30)
        finally:
            await batcher.stop()

    return asyncio.run(main())


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def ask(batcher, payloads, *, lane="image", client="a", cost=1):
    return asyncio.create_task(batcher.run(lane, payloads, [cost] * len(payloads), client))


async def learn(batcher):
    """From batches of one and of many: half a second a picture, where the fake takes that."""
    for size in (1, 30, 1, 30):
        await batcher.run("image", list(range(size)), [1] * size, "a")


async def busy(batcher, fake):
    """Let something be computed, so that whatever comes now waits."""
    first = ask(batcher, ["first"], client="busy")
    await turns()
    assert fake.batches == [("image", ["first"])]
    return first


def test_results_come_in_the_order_of_the_items():
    async def work(batcher, fake):
        assert await batcher.run("image", [3, 1, 2], [1, 1, 1], "a") == ["row of 3", "row of 1", "row of 2"]
        assert await batcher.run("image", [], [], "a") == []

    run(work)


def test_what_came_while_a_batch_was_computed_shares_the_next_one():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        others = [ask(batcher, [number], client=number) for number in range(5)]
        await turns()
        fake.gate.set()
        assert [await one for one in others] == [[f"row of {number}"] for number in range(5)]
        await first
        assert fake.batches[1] == ("image", [0, 1, 2, 3, 4])

    run(work, held=True)


def test_lanes_are_never_mixed_and_take_turns_by_time():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        images = ask(batcher, list(range(40)), client="a")
        texts = [ask(batcher, [f"t{number}"], lane="text", client="b") for number in range(3)]
        await turns()
        fake.gate.set()
        await asyncio.gather(first, images, *texts)
        assert [lane for lane, _ in fake.batches] == ["image", "text", "image", "image", "image", "image"]

    run(work, held=True, max_batch=10)


def test_groups_of_lanes_go_on_side_by_side():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        text = ask(batcher, ["t"], lane="text")
        await turns()
        assert [lane for lane, _ in fake.batches] == ["image", "text"]
        fake.gate.set()
        await asyncio.gather(first, text)

    run(work, held=True, groups=APART)


def test_a_request_of_many_items_does_not_stand_before_a_request_of_one():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        many = ask(batcher, [f"many{number}" for number in range(32)], client="greedy")
        await turns()
        same, other = ask(batcher, ["same client"], client="greedy"), ask(batcher, ["other client"], client="modest")
        await turns()
        fake.gate.set()
        await asyncio.gather(first, many, same, other)
        assert {"same client", "other client"} <= set(fake.batches[1][1])

    run(work, held=True, max_batch=8)


def test_clients_share_a_batch_evenly_however_many_requests_each_has():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        greedy = [ask(batcher, [f"g{number}"], client="greedy") for number in range(20)]
        modest = ask(batcher, [f"m{number}" for number in range(4)], client="modest")
        await turns()
        fake.gate.set()
        await asyncio.gather(first, modest, *greedy)
        assert sum(str(payload).startswith("m") for payload in fake.batches[1][1]) == 4

    run(work, held=True, max_batch=8)


def test_a_batch_ends_where_it_would_take_too_long():
    async def work(batcher, fake):
        await batcher.run("image", [0], [1], "a")  # from which it learns that an item takes 10 ms
        await batcher.run("image", list(range(20)), [1] * 20, "a")
        assert [len(payloads) for _, payloads in fake.batches] == [1, 5, 5, 5, 5]

    run(work, seconds=0.01, slice_s=0.0501)


def test_a_few_items_share_a_batch_however_long_they_take():
    async def work(batcher, fake):
        await batcher.run("image", [0, 1, 2], [1, 1, 1], "a")
        await batcher.run("image", list(range(10)), [1] * 10, "a")
        assert [len(payloads) for _, payloads in fake.batches] == [3, 4, 4, 2]

    run(work, seconds=1.0, slice_s=0.05)


def test_nothing_waits_when_nobody_else_is_coming():
    async def work(batcher, fake):
        one = ask(batcher, ["alone"])
        await turns(6)
        assert fake.batches == [("image", ["alone"])]
        await one

    run(work, max_wait_s=1000.0)


def test_an_item_waits_for_those_who_are_being_prepared():
    async def work(batcher, fake):
        batcher.preparing = 1
        one = ask(batcher, ["early"])
        await asyncio.sleep(0.02)
        assert fake.batches == []
        other = ask(batcher, ["late"], client="b")
        batcher.preparing = 0
        await asyncio.gather(one, other)
        assert [sorted(payloads) for _, payloads in fake.batches] == [["early", "late"]]

    run(work, max_wait_s=1000.0)


def test_it_does_not_wait_longer_than_it_was_told():
    async def work(batcher, fake):
        batcher.preparing = 1
        assert await batcher.run("image", ["early"], [1], "a") == ["row of early"]

    run(work, max_wait_s=0.005)


def test_a_full_queue_refuses_with_the_time_that_it_needs():
    async def work(batcher, fake):
        await learn(batcher)
        with batcher.hold("image", 60):
            with batcher.hold("image", 40):
                with pytest.raises(Overloaded) as caught:
                    batcher.hold("image", 1)
                assert 0.9 < caught.value.retry_after_s < 2  # one item of each of the two before it, and a batch's own time
            with batcher.hold("image", 40):
                pass
        with pytest.raises(TooLarge):
            batcher.hold("image", 101)
        assert batcher.lanes["image"].held == 0

    run(work, seconds=0.5)


def test_who_would_wait_too_long_is_refused_and_who_takes_long_may_wait_as_long():
    async def work(batcher, fake):
        await learn(batcher)
        with contextlib.ExitStack() as held:
            held.enter_context(batcher.hold("image", 30))
            for _ in range(7):  # 4 s for all of these; but so few are accepted in any case
                held.enter_context(batcher.hold("image", 1))
            with pytest.raises(Overloaded) as caught:
                batcher.hold("image", 1)  # half a second for one picture of each of the eight
            assert caught.value.retry_after_s == pytest.approx(2.5, abs=0.3)
            with pytest.raises(Overloaded):
                batcher.hold("image", 10)  # 3.5 s and 5 s, and takes 5 s itself
            held.enter_context(batcher.hold("image", 40))  # 3.5 s and 15 s, and takes 20 s

    run(work, seconds=0.5, max_queue_s=1.5)


def test_who_has_gone_is_dropped_from_the_queue():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        gone, stays = ask(batcher, ["gone"] * 3, client="a"), ask(batcher, ["stays"], client="b")
        await turns()
        gone.cancel()
        await turns()
        assert len(batcher.lanes["image"]) == 1
        fake.gate.set()
        assert await stays == ["row of stays"]
        await first
        assert [payloads for _, payloads in fake.batches] == [["first"], ["stays"]]
        assert gone.cancelled()

    run(work, held=True)


def test_who_goes_while_being_computed_disturbs_nobody():
    async def work(batcher, fake):
        first = await busy(batcher, fake)
        gone, stays = ask(batcher, ["gone"], client="a"), ask(batcher, ["stays"], client="b")
        first.cancel()
        await turns()
        gone.cancel()
        fake.gate.set()
        assert await stays == ["row of stays"]

    run(work, held=True)


def test_a_batch_that_fails_once_costs_nobody_anything():
    async def work(batcher, fake):
        fake.fails["shaky"] = 1
        first = await busy(batcher, fake)
        tasks = [ask(batcher, [name], client=name) for name in ("good", "shaky", "fine")]
        await turns()
        fake.gate.set()
        assert [await task for task in tasks] == [["row of good"], ["row of shaky"], ["row of fine"]]
        await first

    run(work, held=True)


def test_only_the_culprit_of_a_failing_batch_fails():
    async def work(batcher, fake):
        fake.fails["bad"] = 2
        first = await busy(batcher, fake)
        tasks = [ask(batcher, [name], client=name) for name in ("good", "bad", "fine")]
        await turns()
        fake.gate.set()
        assert await tasks[0] == ["row of good"] and await tasks[2] == ["row of fine"]
        with pytest.raises(ItemFailed):
            await tasks[1]
        await first
        assert await batcher.run("image", ["after"], [1], "a") == ["row of after"]

    run(work, held=True)


def test_a_single_item_is_tried_twice():
    async def work(batcher, fake):
        fake.fails["bad"] = 1
        assert await batcher.run("image", ["bad"], [1], "a") == ["row of bad"]
        fake.fails["bad"] = 2
        with pytest.raises(ItemFailed):
            await batcher.run("image", ["bad"], [1], "a")

    run(work)


def test_when_the_computing_process_is_lost_everything_fails_and_nothing_hangs():
    async def work(batcher, fake):
        flying = await busy(batcher, fake)
        waiting = ask(batcher, ["waits"], client="b")
        await turns()
        batcher.fail_all(BackendLost("gone"))
        for task in (flying, waiting):
            with pytest.raises(BackendLost):
                await task
        fake.gate.set()
        await turns()
        assert await batcher.run("image", ["after"], [1], "a") == ["row of after"]

    run(work, held=True)


def test_a_batch_whose_process_is_lost_is_not_tried_again():
    async def work(batcher, fake):
        fake.lost = True
        with pytest.raises(BackendLost):
            await batcher.run("image", ["one", "two"], [1, 1], "a")
        assert len(fake.batches) == 1

    run(work)


def test_a_lane_that_was_idle_has_no_claim_on_the_time_it_did_not_use():
    async def work(batcher, fake):
        await batcher.run("image", list(range(50)), [1] * 50, "a")
        fake.gate.clear()
        first = ask(batcher, ["x"])
        await turns()
        texts = ask(batcher, list(range(40)), lane="text", client="b")
        images = ask(batcher, list(range(40)), client="a")
        await turns()
        fake.gate.set()
        await asyncio.gather(first, texts, images)
        lanes = [lane for lane, _ in fake.batches[-8:]]
        assert lanes.count("image") == 4 and lanes[:4].count("image") == 2

    run(work, max_batch=10)


def test_stopping_fails_what_waits():
    async def main():
        fake = Fake(held=True)
        batcher = Batcher(fake, ({"image": 10},))
        await batcher.start()
        tasks = [ask(batcher, ["a"]), ask(batcher, ["b"])]
        await turns()
        await batcher.stop()
        for task in tasks:
            with pytest.raises(BackendLost):
                await task

    asyncio.run(main())
