"""Logs: what is in them when things go well, when they go wrong, and what never is."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from service_making import ask, served, tiny_model

from ostension.serve.logs import Log, request_id, without_folders

KEY = "a-key-of-some-length-0001"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_defect_of_ours_is_500_without_its_words(model):
    async def work(app, backend):
        service = app.state.service
        stream = io.StringIO()
        app.state.gate.log = Log(stream)

        async def broken(*_, **__):
            raise KeyError("/etc/secret of the request")

        service.embed_texts = broken
        return await ask(app, "POST", "/v1/embeddings", {"input": "my words"}), stream.getvalue()

    answer, log = served(model, work)
    assert answer.status == 500 and answer.error["code"] == "internal_error" and "secret" not in answer.body.decode()
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["event"] for event in events] == ["request_failed", "request"]
    assert events[0]["error"] == "KeyError" and "broken" in events[0]["trace"][-1] and events[0]["id"] == events[1]["id"]
    assert "my words" not in log and "secret" not in log


def test_what_libraries_log_of_an_error_shows_where_it_was_and_nothing_that_was_sent():
    def inner():
        raise KeyError("my words")

    def outer():
        try:
            inner()
        except KeyError as error:
            raise ValueError(f"cannot use {__file__}: my words") from error

    stream, logger = io.StringIO(), logging.getLogger("asyncio")
    kept = logger.handlers, logger.propagate, logger.level
    try:
        Log(stream).take_over()
        try:
            outer()
        except ValueError as error:
            logger.error(f"Task of {__file__} failed\nfuture: <Task my words>", exc_info=error)
    finally:
        logger.handlers, logger.propagate, level = kept
        logger.setLevel(level)
    event = json.loads(stream.getvalue())
    assert event["message"] == "Task of test_service_logs.py failed" and event["error"] == "ValueError"
    first, then, last = event["trace"][-4:-2], event["trace"][-3], event["trace"][-1]
    assert "inner" in first[0] and then == "KeyError, and then" and last.startswith("serve/test_service_logs.py:")
    assert "my words" not in stream.getvalue() and str(Path(__file__).parent) not in stream.getvalue()


def test_paths_in_messages_become_names():
    assert without_folders("cannot read '/a/b/d.txt', ~/a/model: no") == "cannot read 'd.txt', model: no"
    for same in ("http://host.example/a/b", "and/or, 3/4", "hf-hub:a/b", "/etc"):
        assert without_folders(same) == same


def bearer(key):
    return b"authorization", b"Bearer " + key.encode()


def test_logs_are_lines_of_json_without_bodies_keys_or_queries(model):
    async def work(app, backend):
        stream = io.StringIO()
        app.state.gate.log = Log(stream, clock=lambda: 12.3456)
        await ask(app, "POST", "/v1/embeddings", {"input": "my words"}, headers=[bearer(KEY)], query=b"token=hidden")
        await ask(app, "GET", "/some/odd\npath", headers=[bearer("wrong-key-of-length-0009")])
        return stream.getvalue()

    log = served(model, work, keys=(KEY,))
    first, second = map(json.loads, log.splitlines())
    assert first["route"] == "/v1/embeddings" and first["status"] == 200 and first["key"] == 0 and first["time"] == 12.346
    assert first["bytes_in"] > 0 and first["bytes_out"] > 0 and first["seconds"] >= 0
    assert second["route"] == "other" and second["code"] == "invalid_key" and second["key"] is None
    for hidden in (KEY, "my words", "hidden", "wrong-key", "odd"):
        assert hidden not in log


def test_ids_of_clients_are_kept_if_they_are_sane():
    assert request_id(b"abc-1.2:3_x") == "abc-1.2:3_x"
    for bad in (None, b"", b"a b", b"x" * 129, b"\xc3\xa9", b"a\nb", b'"'):
        assert request_id(bad) not in ("", (bad or b"").decode("latin-1"))


def test_a_log_that_cannot_be_written_stops_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("no space")

    Log(Full())("event")
