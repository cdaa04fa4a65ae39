"""Requests that are refused by how they begin, and bodies that are parsed within bounds."""

from __future__ import annotations

import asyncio
import json

import pytest
from service_making import ask, png, served, tiny_model, until, uri

from ostension.serve.batcher import Overloaded
from ostension.serve.parsing import LARGE, MAX_VALUES, TooManyValues, parse

PICTURE = {"image": uri(png())}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def full(app, *lanes):
    """Let the lanes refuse everything."""
    batcher = app.state.service.batcher
    plain = batcher.hold

    def hold(lane, cost):
        if lane in lanes:
            raise Overloaded(lane, 2.5)
        return plain(lane, cost)

    batcher.hold = hold


def sent(body, *, size):
    """A client that sends a body in parts; gives `receive` and what was taken of it."""
    data = json.dumps(body).encode()
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    taken = []

    async def receive():
        if len(taken) == len(parts):
            return await asyncio.Future()
        taken.append(parts[len(taken)])
        return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(parts)}

    return receive, taken, len(parts)


def test_pictures_are_refused_by_the_beginning_of_their_body(model, monkeypatch):
    async def work(app, backend):
        full(app, "image")
        parsed = []
        monkeypatch.setattr("ostension.serve.parsing.parse", parsed.append)
        bodies = {
            "/v1/embeddings": [{"input": [PICTURE] * 20}, {"modality": "image", "input": [PICTURE["image"]] * 20}],
            "/v1/classify": [{"images": [PICTURE] * 20, "labels": ["a", "b"]}],
            "/v1/similarity": [{"texts": ["a"], "images": [PICTURE] * 20}],
        }
        found = []
        for path, given in bodies.items():
            for body in given:
                receive, taken, count = sent(body, size=2_000)
                found.append((await ask(app, "POST", path, receive=receive), len(taken), count))
        return found, parsed, app.state.gate.room.used

    found, parsed, used = served(model, work)
    assert not parsed and used == 0
    for answer, taken, count in found:
        assert answer.status == 429 and answer.error["code"] == "queue_full" and answer.headers["retry-after"] == "3"
        assert answer.headers["connection"] == "close"  # before all of it was there
        assert taken == count  # it is read on and thrown away, so that the client gets to read the answer


def test_a_body_that_was_read_whole_keeps_its_connection_when_it_is_refused(model):
    async def work(app, backend):
        full(app, "image", "text")
        return [await ask(app, "POST", "/v1/embeddings", {"input": given}) for given in ("a", [PICTURE])]

    for answer in served(model, work):
        assert answer.status == 429 and answer.headers["retry-after"] == "3" and "connection" not in answer.headers


def test_what_may_be_answered_is_not_refused_early(model):
    async def work(app, backend):
        service = app.state.service
        known = {"input": ["a kept text", "another"]}
        before = await ask(app, "POST", "/v1/embeddings", known)
        full(app, "text")
        kept = await ask(app, "POST", "/v1/embeddings", known)
        tricky = await ask(app, "POST", "/v1/embeddings", b'{"input": [{"im\\u0061ge": "' + PICTURE["image"].encode() + b'"}]}')
        quoted = await ask(app, "POST", "/v1/embeddings", {"input": ['"image": "x"', "image", '"modality": "image"']})
        pictures = await ask(app, "POST", "/v1/embeddings", {"input": [PICTURE]})
        wrong = await ask(app, "POST", "/v1/nothing", {"input": [PICTURE]})
        assert len(service.cache) == 2
        return before, kept, tricky, pictures, quoted, wrong

    before, kept, tricky, pictures, quoted, wrong = served(model, work, cache_bytes=100_000)
    assert before.status == kept.status == tricky.status == pictures.status == 200 and wrong.status == 404
    assert quoted.status == 429


def test_a_large_request_that_may_wait_longer_is_not_refused_for_a_small_one(model):
    async def work(app, backend):
        batcher = app.state.service.batcher
        plain = batcher.hold

        def hold(lane, cost):
            if cost < 20:
                raise Overloaded(lane, 1.0)
            return plain(lane, cost)

        batcher.hold = hold
        return (
            batcher.full(["image"], 128),
            batcher.full(["image"], 10),
            await ask(app, "POST", "/v1/embeddings", {"input": [PICTURE] * 20}),
        )

    large, small, answer = served(model, work)
    assert large is None and small is not None and answer.status == 200


def test_large_bodies_are_parsed_as_small_ones_are():
    tree = {"input": [{"image": "A" * LARGE, "n": [1, -2.5, 1e300, True, None, 'ä\n"\\u0041', {}, []]}], "x": {"y": {"z": []}}}
    for body in (json.dumps(tree).encode(), json.dumps(tree, ensure_ascii=False).encode(), json.dumps(tree).encode("utf-16")):
        assert parse(body) == json.loads(body) == tree
    long = b" " * LARGE
    for wrong in (b"[" + long, long, b'{"a": ' + b"[" * LARGE, b'"' + b"\xff" * LARGE, b"1" * LARGE, b"[1]" + long + b"x"):
        with pytest.raises((ValueError, RecursionError)):
            parse(wrong)


@pytest.mark.parametrize("part", [b"1,", b"null,", b"[],", b"{},", b'"",', b"[1],", b'{"a":1},'])
def test_a_body_of_more_values_than_any_request_needs_is_given_up(part):
    with pytest.raises(TooManyValues):
        parse(b'{"input": [' + part * (MAX_VALUES + 1) + b"1]}")


def test_what_is_wrong_with_a_long_list_is_told_once(model):
    async def work(app, backend):
        few = await ask(app, "POST", "/v1/embeddings", b'{"input": [' + b"1," * 90_000 + b"1]}")
        many = await ask(app, "POST", "/v1/embeddings", b'{"input": [' + b"1," * 200_000 + b"1]}")
        labels = await ask(app, "POST", "/v1/classify", {"images": [PICTURE], "labels": [1] * 50_000})
        return few, many, labels, await ask(app, "GET", "/health/live")

    few, many, labels, live = served(model, work)
    assert few.status == many.status == labels.status == 400 and live.status == 200
    assert few.error["param"] == "input[0]" and f"{MAX_VALUES:,} values" in many.error["message"]
    assert labels.error["param"] == "labels[0]"


def test_others_are_answered_while_a_large_body_is_parsed(model):
    async def work(app, backend):
        body = b'{"input": [' + b'"a",' * 99_990 + b'"a"]}'
        large = asyncio.create_task(ask(app, "POST", "/v1/embeddings", body))
        count = 0
        await until(lambda: app.state.gate.room.used > 0)
        while not large.done():
            assert (await ask(app, "GET", "/health/live")).status == 200
            count += 1
        return await large, count

    large, count = served(model, work)
    assert large.status == 400 and large.error["code"] == "item_count" and count > 1
