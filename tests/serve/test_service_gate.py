"""What stands before the routes: keys, lengths, time, clients that go, deadlines, the end; and what every answer carries."""

from __future__ import annotations

import asyncio
import json

import pytest
from service_making import ask, served, tiny_model, until

from ostension.errors import DataError, UsageError
from ostension.serve.auth import Keys
from ostension.serve.batcher import Computed
from ostension.serve.body import ClientGone, Room, read_body
from ostension.serve.keys import read_keys
from ostension.serve.problems import Problem
from ostension.serve.settings import Limits, ServeSettings

KEY, OTHER = "a-key-of-some-length-0001", "another-key-of-length-0002"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def bearer(key):
    return [(b"authorization", b"Bearer " + key.encode())]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_key"),
        (bearer("wrong"), "invalid_key"),
        (bearer(KEY[:-1]), "invalid_key"),
        (bearer(KEY + "1"), "invalid_key"),
        (bearer(KEY.upper()), "invalid_key"),
        (bearer(""), "invalid_key"),
        ([(b"authorization", b"Basic " + KEY.encode())], "invalid_key"),
        ([(b"authorization", KEY.encode())], "invalid_key"),
        (bearer(KEY) * 2, "invalid_key"),
        (bearer(KEY) + bearer("wrong"), "invalid_key"),
        ([(b"authorization", b"Bearer \xff\xfe")], "invalid_key"),
    ],
)
def test_only_a_whole_key_given_once_opens(headers, code):
    with pytest.raises(Problem) as caught:
        Keys([KEY, OTHER]).check("/v1/embeddings", headers)
    assert caught.value.status == 401 and caught.value.code == code
    assert caught.value.headers["WWW-Authenticate"] == "Bearer" and KEY not in caught.value.message


def test_any_of_the_keys_opens_and_says_which_it_was():
    keys = Keys([KEY, OTHER])
    assert keys.check("/v1/models", bearer(KEY)) == 0 and keys.check("/v1/models", bearer(OTHER)) == 1
    assert keys.check("/v1/models", [(b"authorization", b"bearer " + OTHER.encode())]) == 1
    assert Keys([]).check("/v1/models", []) is None


def test_health_and_the_page_need_no_key_and_metrics_follow_the_setting():
    for path in ("/", "/health/live", "/health/ready", "/page/0/app.js", "/docs", "/openapi.json"):
        assert Keys([KEY]).check(path, []) is None
    with pytest.raises(Problem):
        Keys([KEY]).check("/metrics", [])
    assert Keys([KEY], open_metrics=True).check("/metrics", []) is None
    for path in ("/v1/models", "/health/live/", "//", "/health/live/../../v1/models", "/pages/x"):
        with pytest.raises(Problem):
            Keys([KEY]).check(path, [])


def test_keys_come_from_a_file_and_the_environment_and_are_never_shown(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\n{OTHER}\n")
    monkeypatch.setenv("OSTENSION_KEYS", f"{OTHER}, third-key-of-length-0003 ,")
    assert read_keys(path) == (KEY, OTHER, "third-key-of-length-0003")
    monkeypatch.delenv("OSTENSION_KEYS")
    assert read_keys(None) == ()
    for text in ("short\n", "with a space in it 00001\n", "# nothing\n", "kéy-of-some-length-0001\n"):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            read_keys(path)
        assert text.strip() not in str(caught.value)
    with pytest.raises(DataError):
        read_keys(tmp_path / "missing")


def test_settings_never_show_their_keys_and_need_one_for_others():
    assert KEY not in repr(ServeSettings(model="m", keys=(KEY,)))
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(UsageError, match="key"):
            ServeSettings(model="m", host=host)
        ServeSettings(model="m", host=host, keys=(KEY,))
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        ServeSettings(model="m", host=host)


def reading(parts, *, headers=(), then="disconnect", limits=None, room=None):
    """Read a body that comes in parts: bytes, or seconds of silence."""
    given = list(parts)

    async def receive():
        while given:
            part = given.pop(0)
            if isinstance(part, bytes):
                return {"type": "http.request", "body": part, "more_body": bool(given) or then != "end"}
            await asyncio.sleep(part)
        if then == "disconnect":
            return {"type": "http.disconnect"}
        return await asyncio.Future()

    return asyncio.run(read_body(receive, headers, Limits(**(limits or {})), room or Room(10_000)))


def test_a_body_is_read_whole():
    room = Room(10)
    assert reading([b"abc", b"def"], then="end", room=room) == b"abcdef" and room.used == 6


def test_a_length_past_the_limit_is_refused_before_anything_is_read():
    with pytest.raises(Problem) as caught:
        reading([1000.0], headers=[(b"content-length", b"101")], limits={"max_body_bytes": 100})
    assert caught.value.status == 413
    with pytest.raises(Problem) as caught:
        reading([], headers=[(b"content-length", b"9" * 5000)], limits={"max_body_bytes": 100})
    assert caught.value.status == 413
    with pytest.raises(Problem) as caught:
        reading([], headers=[(b"content-length", b"-1")])
    assert caught.value.status == 400


def test_a_body_without_a_length_is_refused_as_soon_as_it_passes_the_limit():
    room = Room(10_000)
    with pytest.raises(Problem) as caught:
        reading([b"x" * 60, b"x" * 60, 1000.0], limits={"max_body_bytes": 100}, room=room)
    assert caught.value.status == 413 and room.used == 0


def test_a_body_that_does_not_come_is_given_up():
    room = Room(10_000)
    with pytest.raises(Problem) as caught:
        reading([b"x", 1000.0], then="wait", limits={"body_seconds": 0.02}, room=room)
    assert caught.value.status == 408 and room.used == 0


def test_a_client_that_goes_in_the_middle_is_no_problem():
    room = Room(10_000)
    with pytest.raises(ClientGone):
        reading([b"x", b"y"], room=room)
    assert room.used == 0


def test_all_bodies_together_have_a_bound():
    room = Room(100)
    room.take(80)
    with pytest.raises(Problem) as caught:
        reading([b"x" * 15, b"x" * 15], then="end", room=room)
    assert caught.value.status == 503 and caught.value.retry_after_s and room.used == 80


def test_the_key_is_asked_for_before_the_body(model):
    async def work(app, backend):
        taken = []

        async def receive():
            taken.append(1)
            return {"type": "http.disconnect"}

        return await ask(app, "POST", "/v1/embeddings", receive=receive), len(taken)

    answer, taken = served(model, work, keys=(KEY,))
    assert answer.status == 401 and answer.headers["connection"] == "close" and answer.error["type"] == "authentication_error"
    assert taken <= 1  # only what is thrown away after the answer


def test_every_answer_has_an_id_and_headers_for_browsers(model):
    async def work(app, backend):
        return [
            await ask(app, "POST", "/v1/embeddings", {"input": "x"}, headers=[(b"x-request-id", b"mine-1")]),
            await ask(app, "POST", "/v1/embeddings", b"{", headers=[(b"x-request-id", b"bad id\x00")]),
            await ask(app, "GET", "/nothing"),
        ]

    first, second, third = served(model, work)
    assert first.headers["x-request-id"] == "mine-1"
    ids = {answer.headers["x-request-id"] for answer in (second, third)}
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)
    for answer in (first, second, third):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_request_past_its_deadline_is_504_and_leaves_nothing_in_the_queue(model):
    async def work(app, backend):
        backend.open.clear()
        first = asyncio.create_task(ask(app, "POST", "/v1/embeddings", {"input": "x"}))
        await until(lambda: len(backend.batches) > 2)
        waiting = asyncio.create_task(ask(app, "POST", "/v1/embeddings", {"input": ["y"] * 3}))
        answers = await asyncio.gather(first, waiting)
        lane = app.state.service.batcher.lanes["text"]
        left = len(lane), lane.held
        backend.open.set()
        return answers, left, await ask(app, "POST", "/v1/embeddings", {"input": "z"})

    answers, left, after = served(model, work, deadline_s=0.3)
    assert [answer.status for answer in answers] == [504, 504] and answers[0].error["code"] == "deadline_exceeded"
    assert left == (0, 0) and after.status == 200


def test_a_client_that_goes_takes_its_work_with_it(model):
    async def work(app, backend):
        backend.open.clear()
        blocker = asyncio.create_task(ask(app, "POST", "/v1/embeddings", {"input": "x"}))
        await until(lambda: len(backend.batches) > 2)
        gone = asyncio.Event()
        parts = [{"type": "http.request", "body": json.dumps({"input": ["a", "b"]}).encode(), "more_body": False}]

        async def receive():
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        leaver = asyncio.create_task(ask(app, "POST", "/v1/embeddings", receive=receive))
        lane = app.state.service.batcher.lanes["text"]
        await until(lambda: len(lane) == 2)
        gone.set()
        await until(lambda: len(lane) == 0)
        backend.open.set()
        return (await leaver).status, (await blocker).status, [size for _, size in backend.batches]

    status, other, sizes = served(model, work)
    assert status == 0 and other == 200 and max(sizes) == 1


def test_a_full_queue_is_429_with_the_time_to_wait(model):
    async def work(app, backend):
        backend.open.clear()
        tasks = [asyncio.create_task(ask(app, "POST", "/v1/embeddings", {"input": "x"})) for _ in range(4)]
        await until(lambda: app.state.service.batcher.lanes["text"].held >= 12)
        refused = await ask(app, "POST", "/v1/embeddings", {"input": "x"})
        backend.open.set()
        never = await ask(app, "POST", "/v1/embeddings", {"input": [f"photo {number}" for number in range(9)]})
        return refused, never, [answer.status for answer in await asyncio.gather(*tasks)]

    refused, never, statuses = served(model, work, queue_tokens=13)
    assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1 and refused.error["type"] == "rate_limit_error"
    assert never.status == 400 and never.error["code"] == "request_too_large"
    assert statuses == [200] * 4


def test_what_does_not_end_in_time_after_a_stop_is_503(model):
    async def work(app, backend):
        backend.open.clear()
        task = asyncio.create_task(ask(app, "POST", "/v1/embeddings", {"input": "x"}))
        await until(lambda: len(backend.batches) > 2)
        app.state.gate.drain()
        ready = await ask(app, "GET", "/health/ready")
        answer = await task
        backend.open.set()
        return ready, answer

    ready, answer = served(model, work, drain_s=0.1)
    assert ready.status == 503 and answer.status == 503 and answer.error["code"] == "stopping"


def test_a_model_that_is_not_there_is_503(model):
    async def work(app, backend):
        backend.ready, backend.reason = False, "the model is being loaded"
        return await ask(app, "POST", "/v1/embeddings", {"input": "x"}), await ask(app, "GET", "/health/ready")

    answer, ready = served(model, work)
    assert answer.status == 503 and answer.headers["retry-after"] and answer.error["code"] == "model_unavailable"
    assert ready.status == 503 and ready.error["message"] == "the model is being loaded"


def test_ready_needs_an_embedding_that_is_as_it_was(model):
    async def work(app, backend):
        canary = app.state.service.canary
        plain = backend.compute

        async def other(lane, payloads):
            found = await plain(lane, payloads)
            return Computed(-found.rows, found.seconds)

        before = await ask(app, "GET", "/health/ready")
        app.state.service.batcher.compute = other
        await canary.round()
        wrong = await ask(app, "GET", "/health/ready")
        app.state.service.batcher.compute = plain
        await canary.round()
        return before, wrong, await ask(app, "GET", "/health/ready")

    before, wrong, after = served(model, work)
    assert (before.status, wrong.status, after.status) == (200, 503, 200) and "differs" in wrong.error["message"]
