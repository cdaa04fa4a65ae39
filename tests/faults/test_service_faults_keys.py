"""A service with keys and little patience: who may ask, what is never said, and what is left when the time is over."""

from __future__ import annotations

import json
import sys

import pytest
from service_harness import GOOD_TEXTS, head, make_model, running, stopped, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc"),
    pytest.mark.timeout(600),
]
KEY = "a-key-of-these-tests-0123456789"
OTHER_KEY = "another-key-of-these-tests-98765"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def guarded(model, tmp_path_factory):
    """With keys, without fetching, and with no patience."""
    settings = {"model": str(model), "keys": [KEY, OTHER_KEY], "deadline_s": 0.05,
                "limits": {"max_body_bytes": 2 * MEGABYTE, "body_seconds": 3.0}}
    with running(tmp_path_factory.mktemp("guarded"), settings) as found:
        yield found


def test_addresses_are_refused_where_the_service_does_not_fetch(guarded):
    for url in ("http://127.0.0.1/a.png", "https://example.org/a.png"):
        body = {"input": [{"image": url}]}
        until(lambda body=body: guarded.ask("POST", "/v1/embeddings", body, bearer(KEY)).status == 400, guarded)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_only_the_right_key_opens(guarded):
    ask = [("POST", "/v1/embeddings", {"input": "a"}), ("GET", "/v1/models", None), ("GET", "/metrics", None),
           ("GET", "/v1/collections", None), ("POST", "/v1/classify", {})]
    keys = ["", "x" * 31, KEY[:-1], KEY + "x", KEY.upper(), f"{KEY}, {OTHER_KEY}", KEY[:10] + "\t" + KEY[10:]]
    wrong = [{}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY}, {"Cookie": f"key={KEY}"}]
    wrong += map(bearer, keys)
    for method, path, body in ask:
        for headers in wrong:
            answer = guarded.ask(method, path, body, headers)
            assert answer.status == 401 and answer.error["code"], (path, headers, answer)
        two = head("Content-Length: 2", f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}", path) + b"{}"
        assert guarded.raw(two).status in (401, 405)
        assert guarded.ask(method, f"{path}?key={KEY}", body).status == 401
    for key in (KEY, OTHER_KEY):
        until(lambda key=key: guarded.ask("GET", "/v1/models", None, bearer(key)).status == 200, guarded)
    assert guarded.ask("GET", "/metrics", None, {"authorization": f"bearer {KEY}"}).status == 200
    assert guarded.ask("GET", "/health/live").status == 200


def test_who_has_no_key_is_refused_before_the_body_is_read(guarded):
    before = guarded.memory()
    for extra in ("", "Authorization: Bearer wrong"):
        assert guarded.raw(head("Content-Length: 10000000000", extra)).status == 401
        assert guarded.raw(head("Transfer-Encoding: chunked", extra) + b"186A0\r\n" + b"x" * 100_000 + b"\r\n").status == 401
    assert guarded.memory() - before < 20 * MEGABYTE


def test_no_key_no_body_and_no_path_is_in_the_log_or_in_an_error(guarded, model):
    secret = "a text that nobody else should read"
    for body in ({"input": secret}, {"input": secret, "unknown": secret}, {"input": [{"image": f"http://u:{secret[:6]}@h/?{KEY}"}]},
                 {"input": [{"image": "data:image/png;base64," + secret}]}, {"model": secret, "input": "a"}):
        for headers in (bearer(KEY), {**bearer(KEY), "X-Request-Id": f"{secret}\x01"}):
            answer = guarded.ask("POST", "/v1/embeddings", body, headers)
            assert "input" not in body or secret not in str(body["input"]) or secret not in answer.body.decode()
            assert str(model) not in answer.body.decode() and KEY not in answer.body.decode()
    guarded.ask("GET", f"/v1/models/{KEY}?key={OTHER_KEY}", None, bearer("wrong-key-wrong-key"))
    guarded.ask("GET", "/v1/models", None, bearer(KEY))
    log = guarded.log()
    assert guarded.events("request")
    for text in (KEY, OTHER_KEY, secret, secret[:12], "wrong-key-wrong-key", "Bearer"):
        assert text not in log, text
    assert str(model.parent) not in log
    # Which key it was may be logged, by its number.
    assert all(KEY not in json.dumps(event) for event in guarded.events("request"))


def test_a_deadline_of_50_ms_is_504_and_leaves_no_work_behind(guarded):
    with stopped(guarded.worker()):
        asks = [lambda text=text: guarded.ask("POST", "/v1/embeddings", {"input": text}, bearer(KEY)) for text in GOOD_TEXTS]
        answers = guarded.at_once(asks)
        assert {answer.status for answer in answers} == {504} and "0.05 s" in answers[0].error["message"]

        def drained():
            text = guarded.ask("GET", "/metrics", None, bearer(KEY)).body.decode()
            found = [line for line in text.splitlines() if line.startswith("ostension_queue_cost{") or "queue_depth{" in line]
            return found and all(line.endswith(" 0.0") for line in found)

        until(drained, guarded)
    until(lambda: guarded.ask("POST", "/v1/embeddings", {"input": "a"}, bearer(KEY)).status == 200, guarded)
