"""What goes wrong around a service that runs: hostile inputs, slow and rude clients, keys, paths. Seen from outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import time

import numpy as np
import pytest
from PIL import Image
from service_harness import (
    GOOD_TEXTS,
    POISON,
    Watching,
    bomb,
    data_uri,
    head,
    jpeg,
    make_model,
    read_answer,
    running,
    stopped,
    until,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc"),
    # A server's start takes what importing torch takes, twice, on a machine that may do much else.
    pytest.mark.timeout(600),
]
MEGABYTE = 1_000_000
# Hosts that the list allows, so that what refuses them is what they resolve to.
HOSTS = [
    "127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "2130706433", "0x7f000001",
    "0177.0.0.1", "127.1", "metadata.example",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def service(model, tmp_path_factory):
    limits = {
        "max_body_bytes": 2 * MEGABYTE, "body_seconds": 3.0, "max_batch_items": 64, "max_text_length": 2_000,
        "max_image_bytes": MEGABYTE, "max_labels": 50,
    }  # fmt: skip
    settings = {"model": str(model), "model_id": "tiny", "allow_url_hosts": HOSTS, "deadline_s": 60.0, "cache_bytes": 0}
    settings["limits"] = limits
    with running(tmp_path_factory.mktemp("service"), settings) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """After every test the service answers, nothing waits, and nothing was written."""
    yield
    if "service" in request.fixturenames:
        found = request.getfixturevalue("service")
        found.wait_ready()
        assert found.embed(GOOD_TEXTS[0]).status == 200
        until(lambda: found.metric("ostension_queue_depth") == 0 and found.metric("ostension_requests_active") <= 1)
        assert not list(found.scratch.iterdir()) and "Traceback" not in found.log()


JPEG = jpeg()
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
BAD_IMAGES = {
    "cut short": (JPEG[: len(JPEG) // 2], "cut short"),
    "a flipped byte": (bomb(64, 64).replace(b"IDAT", b"IDAT\x99", 1), "damaged|cut short"),
    "HTML": (b"<!doctype html><html>", "HTML"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "SVG"),
    "PDF": (b"%PDF-1.7 ...", "PDF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", "PostScript"),
    "noise": (np.random.default_rng(0).bytes(5000), "not a picture|no known|is read|not one"),
    "a head alone": (PNG_HEAD, "damaged|cut short"),
    "a large PNG of few bytes": (bomb(20_000, 9_500), "pixels"),
    "a line of pixels": (bomb(70_000, 1), "pixels"),
    "text": (b"no picture at all", "."),
    "zip": (b"PK\x03\x04" + bytes(100), "zip"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_picture_is_400_with_the_reason_and_the_service_stays_ready(service, name):
    data, reason = BAD_IMAGES[name]
    with Watching(service) as watching:
        answer = service.embed_image(data)
        assert answer.status == 400 and answer.error["param"] == "input[0]", answer
        assert re.search(reason, answer.error["message"]), answer
        assert len(answer.body) < 600 and str(service.folder) not in answer.body.decode()
        for _ in range(8):
            assert service.embed_image(JPEG).status == 200
    assert all(watching.seen) and watching.seen


def test_after_every_bad_picture_a_hundred_good_requests_are_answered(service):
    for data, _ in BAD_IMAGES.values():
        service.embed_image(data)
    good = [lambda seed=seed: service.embed_image(jpeg(seed)) for seed in range(20)]
    for _ in range(5):
        assert [answer.status for answer in service.at_once(good)] == [200] * 20


def test_pictures_that_are_only_odd_are_answered(service):
    kinds = {"L": "PNG", "RGBA": "PNG", "P": "GIF", "CMYK": "JPEG", "I;16": "PNG", "1": "PNG", "LA": "WEBP"}
    for mode, kind in kinds.items():
        out = io.BytesIO()
        Image.new(mode, (1 if mode == "1" else 30, 20)).save(out, kind)
        assert service.embed_image(out.getvalue(), f"image/{kind.lower()}").status == 200, (mode, kind)


def test_one_bad_picture_among_31_good_ones_of_other_clients_fails_alone(service):
    asks = [lambda seed=seed: service.embed_image(jpeg(seed)) for seed in range(31)]
    asks.insert(13, lambda: service.embed_image(JPEG[:300]))
    answers = service.at_once(asks)
    assert [answer.status for answer in answers] == [400 if index == 13 else 200 for index in range(32)]
    alone = service.embed_image(jpeg(30)).rows()
    assert np.abs(answers[31].rows() - alone).max() < 1e-6


def test_an_input_that_breaks_the_model_fails_alone_and_the_service_stays(service):
    """Its forward pass gives numbers that are none, for the whole batch's check; the batch is repeated item by item."""
    pid = service.worker()
    asks = [lambda text=text: service.embed(text) for text in GOOD_TEXTS]
    asks.insert(5, lambda: service.embed(POISON))
    for _ in range(3):
        answers = service.at_once(asks)
        assert [answer.status for answer in answers] == [500 if index == 5 else 200 for index in range(len(asks))]
    assert answers[5].error["code"] and POISON not in answers[5].body.decode()
    rows = np.concatenate([answer.rows() for index, answer in enumerate(answers) if index != 5])
    assert np.abs(rows - service.embed(GOOD_TEXTS).rows()).max() < 1e-6
    assert service.worker() == pid


def test_a_killed_worker_gives_503_and_is_replaced(service):
    before = service.embed([{"text": GOOD_TEXTS[0]}, {"image": data_uri(JPEG)}]).rows()
    pid = service.worker()
    with stopped(pid):
        # While it is stopped, requests are in flight; killing it must answer them.
        asks = [lambda text=text: service.embed(text) for text in GOOD_TEXTS[:4]] + [lambda: service.embed_image(JPEG)]

        def kill():
            until(lambda: service.metric("ostension_queue_cost") > 0, service)
            os.kill(pid, signal.SIGKILL)
            until(lambda: not service.ready(), service)
            return service.embed(GOOD_TEXTS[0])

        answers = service.at_once([*asks, kill])
    assert {answer.status for answer in answers} <= {200, 503} and 503 in [answer.status for answer in answers], answers
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 503)
    service.wait_ready()
    assert service.worker() != pid
    after = service.embed([{"text": GOOD_TEXTS[0]}, {"image": data_uri(JPEG)}]).rows()
    assert np.abs(before - after).max() < 1e-6


def test_a_cold_service_refuses_until_both_towers_are_warm(model, tmp_path):
    with running(tmp_path / "cold", {"model": str(model)}, wait=False) as cold:
        first = {cold.embed("early").status, cold.embed_image(JPEG).status, cold.ask("GET", "/health/ready").status}
        assert first <= {200, 503} and cold.ask("GET", "/health/live").status == 200
        cold.wait_ready()
        began = time.monotonic()
        assert [cold.embed_image(JPEG).status, cold.embed("late").status] == [200, 200]
        assert time.monotonic() - began < 30
        # A second signal would end it at once; the first lets it finish.
        assert cold.stop() == 0
        assert not list(cold.scratch.iterdir())


def test_a_body_past_the_limit_is_refused_whether_its_length_is_said_or_not(service):
    before = service.memory()
    chunk = b"186A0\r\n" + b"x" * 100_000 + b"\r\n"
    answer = service.raw(head("Content-Length: 10000000000"))
    assert answer.status == 413 and "2,000,000" in answer.error["message"]
    # What does come of it is not kept.
    assert service.raw(head("Content-Length: 30000000") + b"x" * 3 * MEGABYTE).status == 413
    assert service.raw(head("Transfer-Encoding: chunked") + chunk * 40).status == 413
    assert service.memory() - before < 40 * MEGABYTE


def test_many_large_bodies_at_once_cost_no_more_than_the_limit_allows(service):
    before = service.memory()
    chunk = b"186A0\r\n" + b"x" * 100_000 + b"\r\n"
    answers = service.at_once([lambda: service.raw(head("Transfer-Encoding: chunked") + chunk * 30) for _ in range(16)])
    assert {answer.status for answer in answers} <= {413, 503}
    assert service.memory() - before < 80 * MEGABYTE


def test_a_body_that_drips_is_408_and_takes_nobodys_place(service):
    with service.connect() as slow:
        slow.sendall(head("Content-Length: 1000"))
        answers = []
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                slow.sendall(b" ")
                answers.append(service.embed(GOOD_TEXTS[0]).status)
                slow.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if slow.recv(1, socket.MSG_PEEK):
                        break
        slow.settimeout(60)
        answer = read_answer(slow)
    assert answer.status == 408 and set(answers) == {200}


def test_a_head_that_never_ends_is_closed(service):
    with service.connect() as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n")
        assert read_answer(slow).status in (400, 408)
    with service.connect() as endless:
        with contextlib.suppress(ConnectionError):
            endless.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 50_000)
        assert read_answer(endless).status in (400, 431)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"GET /\r\n\r\n", b"nonsense\r\n\r\n",
        b"\r\n" * 100 + b"\0",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: a\x00b\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_no_http_is_refused(service, data):
    assert service.raw(data).status in (400, 501)


BAD_BODIES = {
    "no JSON": b"{", "not JSON": b"input=a", "nothing": b"", "a list": b"[]", "null": b"null", "bytes": b"\xff\xfe\x00",
    "NaN": b"NaN",
    "deep": b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "deep objects": b'{"a":' * 50_000,
    "huge number": b'{"input": "a", "dimensions": ' + b"9" * 50_000 + b"}", "float": b'{"input": "a", "dimensions": 1e999}',
    "no input": {}, "no items": {"input": []}, "nested": {"input": [["a"]]}, "tokens": {"input": [[1, 2]]},
    "numbers": {"input": [1]},
    "number": {"input": 5}, "null input": {"input": None}, "null item": {"input": [None]}, "empty": {"input": ""},
    "unknown field": {"input": "a", "temperature": 1}, "unknown item": {"input": [{"path": "/etc/passwd"}]},
    "two kinds": {"input": [{"text": "a", "image": data_uri(JPEG)}]}, "too many": {"input": ["a"] * 1000},
    "long": {"input": "a" * 100_000}, "surrogate": {"input": "\ud800"}, "encoding": {"input": "a", "encoding_format": "hex"},
    "dimensions": {"input": "a", "dimensions": 3}, "wrong type": {"input": "a", "dimensions": "32"},
    "base64": {"input": [{"image": "data:image/png;base64,%%%"}]}, "broken base64": {"input": [{"image": "QUJ"}]},
    "mime": {"input": [{"image": data_uri(JPEG, "text/html")}]}, "no mime": {"input": [{"image": "data:,abc"}]},
    "not base64": {"input": [{"image": "data:image/png,abc"}]}, "empty image": {"input": [{"image": ""}]},
    "path": {"input": [{"image": "/etc/passwd"}]}, "file": {"input": [{"image": "file:///etc/passwd"}]},
    "big image": {"input": [{"image": data_uri(bytes(1_200_000))}]}, "tokens past the context": {"input": "dogs and " * 200},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_is_not_right_is_400_and_says_where(service, name):
    answer = service.ask("POST", "/v1/embeddings", BAD_BODIES[name])
    assert answer.status == 400, answer
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 400 and "/etc/passwd" not in error["message"]


def test_unknown_names_and_methods(service):
    missing = service.embed("a", model="gpt-5")
    assert missing.status == 404 and "gpt-5" in missing.error["message"] and "tiny" in missing.error["message"]
    assert service.embed("a" * 5, model="x" * 100_000).status == 404
    assert len(service.embed("a", model="x" * 100_000).body) < 1000
    assert service.ask("GET", "/v1/models/gpt-5").status == 404
    assert service.ask("GET", "/v1/embeddings").status == 405 and service.ask("DELETE", "/v1/models").status == 405
    search = {"collection": "none", "query": {"text": "a"}}
    assert service.ask("POST", "/v1/search", search).status in (404, 400)


@pytest.mark.parametrize("vector", ["[NaN]", "[Infinity]", "[1e999]", "[]", '["a"]', "[[1]]"])
def test_vectors_of_no_numbers_are_refused(service, vector):
    body = b'{"collection": "none", "query": {"vector": ' + vector.encode() + b"}}"
    assert service.ask("POST", "/v1/search", body).status in (400, 404)


def test_bad_classifications(service):
    image = data_uri(JPEG)
    for labels in ([], [""], ["a"] * 51, [1], "cat", ["a", "a"], ["{}"] * 2):
        answer = service.ask("POST", "/v1/classify", {"images": [image], "labels": labels})
        assert answer.status == 400, (labels, answer)
    for templates in (["no place"], ["{} and {}"], [""], ["{0}"], "no such set", ["{}"] * 500):
        body = {"images": [image], "labels": ["cat", "dog"], "templates": templates}
        assert service.ask("POST", "/v1/classify", body).status in (400, 404), templates
    good = {"images": [image], "labels": ["a {} b", "%s", "<script>alert(1)</script>"]}
    assert service.ask("POST", "/v1/classify", good).status in (200, 400)


URLS = [
    "http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://0.0.0.0/",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/",
    "http://user:word@localhost/", "http://localhost\\@other.example/", "http://other.example/", "http://localhost.other.example/",
    "http://metadata.example:22/", "http://other.example@localhost/", "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://localhost/",
    "jar:http://localhost/", "http:localhost", "//localhost/", "HTTP://LOCALHOST/",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_no_address_of_this_machine_or_its_network_is_fetched(service, url):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for one in (url, url.replace("localhost", f"localhost:{listener.getsockname()[1]}", 1)):
            answer = service.embed([{"image": one}])
            assert answer.status == 400, answer
            assert "127.0.0.1" not in answer.error["message"] or "127.0.0.1" in one
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/page/../../../etc/passwd", "/page/%2e%2e/%2e%2e/settings.py", "/page/..%2f..%2fsettings.py",
     "/%2e%2e/", "/page//etc/passwd", "/%2fetc/passwd", "/page/%00", "/page/index.html%00.js",
     "/page/..\\..\\settings.py", "/page/%5c..%5c",
     "/page/....//....//settings.py", "//etc/passwd", "/page/", "/page", "/.git/config", "/page/%c0%ae%c0%ae/",
     "/v1/collections/..%2f..%2fetc", "/v1/collections/%2e%2e/items/1/preview",
     "/v1/collections/none/items/..%2f..%2f..%2fetc%2fpasswd/preview", "/v1/models/../../etc/passwd"],
)  # fmt: skip
def test_paths_that_lead_out_are_not_found(service, path):
    answer = service.ask("GET", path)
    assert answer.status in (400, 404), answer
    assert b"root:" not in answer.body and str(service.folder).encode() not in answer.body


def test_clients_that_leave_are_taken_out_of_the_queue(service):
    body = json.dumps({"input": GOOD_TEXTS}).encode()
    request = head(f"Content-Length: {len(body)}") + body
    with stopped(service.worker()):
        connections = [service.connect() for _ in range(20)]
        for connection in connections:
            connection.sendall(request)
        until(lambda: service.metric("ostension_queue_depth", lane="text") > len(GOOD_TEXTS) * 10, service)
        for index, connection in enumerate(connections):
            if index % 2:  # a reset instead of an end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        until(lambda: service.metric("ostension_queue_depth", lane="text") == 0, service)
    until(lambda: service.metric("ostension_queue_cost") == 0, service)


def test_connections_that_come_and_go_leave_nothing(service):
    service.embed(GOOD_TEXTS[0])
    before = service.descriptors()
    for number in range(200):
        with service.connect() as connection:
            if number % 3:
                connection.sendall((head("Content-Length: 50") + b"{")[: 20 * (number % 7)])
    until(lambda: service.descriptors() <= before + 2, service)


def test_pipelined_requests_are_answered_in_order(service):
    bodies = [json.dumps({"input": text}).encode() for text in GOOD_TEXTS[:6]]
    parts = [head(f"Content-Length: {len(body)}", "Connection: close" if body is bodies[-1] else "") + body for body in bodies]
    with service.connect() as connection:
        connection.sendall(b"".join(parts))
        data = b""
        while part := connection.recv(1 << 16):
            data += part
    found = [json.loads(part[part.index(b"{") :]) for part in data.split(b"HTTP/1.1 200")[1:]]
    rows = np.concatenate([[row["embedding"] for row in tree["data"]] for tree in found])
    assert len(found) == 6 and np.abs(rows - service.embed(GOOD_TEXTS[:6]).rows()).max() < 1e-6


def test_every_answer_carries_an_id_and_what_browsers_need_to_be_told(service):
    answers = [service.embed("a"), service.embed(""), service.ask("GET", "/nothing"), service.ask("GET", "/health/live"),
               service.ask("GET", "/", None, {"X-Request-Id": "mine-1"}), service.raw(head("Content-Length: 10000000000"))]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-request-id"], answer
        policy = answer.headers["content-security-policy"]
        assert "default-src" in policy and "unsafe-eval" not in policy
    assert answers[4].headers["x-request-id"] == "mine-1" and "access-control-allow-origin" not in answers[3].headers
