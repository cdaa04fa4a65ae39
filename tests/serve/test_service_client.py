"""Clients: ours against a service and against one that is busy; OpenAI's own package as it is."""

from __future__ import annotations

import base64
import http.server
import json
import threading

import numpy as np
import openai
import pytest
from service_making import app_of, listening, png, tiny_model

from ostension.errors import DataError, LimitError
from ostension.serve.client import Client, ServiceError

KEY = "a-key-of-some-length-0001"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def url(model):
    limits = {"max_batch_items": 3, "max_body_bytes": 60_000, "max_image_bytes": 20_000}
    with listening(app_of(model, keys=(KEY,), limits=limits)) as address:
        yield address


def test_lists_are_split_by_the_limits_that_the_service_tells(url, model, tmp_path):
    texts = [f"a photo of {number} things" for number in range(8)]
    pictures = [png(seed) for seed in range(5)]
    (tmp_path / "first.png").write_bytes(pictures[0])
    with Client(url, key=KEY) as client:
        np.testing.assert_allclose(client.embed_texts(texts), model.embed_texts(texts).numpy(), atol=2e-6)
        found = client.embed_images([tmp_path / "first.png", *pictures[1:]])
        np.testing.assert_allclose(found, model.embed_images(pictures).numpy(), atol=2e-6)
        assert client.embed_texts("one").shape == (1, 32) and client.embed_texts([]).shape == (0, 32)
        large = ["ä" * 5000, "b" * 5000, "c" * 1000]
        assert client.embed_texts(large, truncate=True).shape == (3, 32) and client.ready()
        classes = client.classify(pictures, ["cat", "dog"], top_k=1)
        assert len(classes) == 5 and {name for ((name, _),) in classes} <= {"cat", "dog"}


def test_problems_are_errors_with_a_reason(url, tmp_path):
    with Client(url, key=KEY) as client:
        with pytest.raises(ServiceError, match=r"tokens.*\(400\)") as caught:
            client.embed_texts("word " * 100)
        assert caught.value.status == 400 and caught.value.code == "text_too_long" and caught.value.param == "input[0]"
        with pytest.raises(LimitError, match="20,000"):
            client.embed_images([b"x" * 20_001])
        with pytest.raises(DataError, match="nowhere"):
            client.embed_images([tmp_path / "nowhere.png"])
        with pytest.raises(ServiceError) as caught:
            client.search("x")
        assert caught.value.status == 404
    with Client(url, key="a-wrong-key-of-length-2") as client, pytest.raises(ServiceError) as caught:
        client.embed_texts("x")
    assert caught.value.status == 401 and "wrong-key" not in str(caught.value)
    with pytest.raises(DataError):
        Client("nonsense")


class Busy(http.server.BaseHTTPRequestHandler):
    """Answers what the list says, then the card."""

    answers: list
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        body = json.dumps(
            {"data": [{"id": "m"}]}
            if status == 200
            else {"error": {"message": "busy", "type": "t", "param": None, "code": "c"}}
        )
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())
        if headers.get("X-Then") == "close":
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def busy():
    handler = type("Handler", (Busy,), {"answers": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_busy_service_is_asked_again_when_it_says(busy):
    url, answers = busy
    answers += [(429, {"Retry-After": "7"}), (503, {"Retry-After": "2"}), (503, {})]
    slept = []
    with Client(url, sleep=slept.append, clock=lambda: sum(slept)) as client:
        assert client.models() == [{"id": "m"}]
    assert slept[:2] == [7.0, 2.0] and len(slept) == 3


def test_patience_ends(busy):
    url, answers = busy
    answers += [(503, {"Retry-After": "5"})] * 10
    slept = []
    with (
        Client(url, sleep=slept.append, clock=lambda: sum(slept), patience_s=12.0) as client,
        pytest.raises(ServiceError, match="busy"),
    ):
        client.models()
    assert slept == [5.0, 5.0]


def test_a_connection_that_was_closed_while_idle_is_opened_again(busy):
    url, answers = busy
    answers += [(200, {"X-Then": "close"})]
    slept = []
    with Client(url, sleep=slept.append) as client:
        assert client.models() and client.models() and not slept


def test_a_service_that_is_not_there_is_told(busy):
    with Client("http://127.0.0.1:9", patience_s=0.0) as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match="does not answer") as caught:
            client.models()
        assert caught.value.status == 0


def test_the_stock_openai_client_works(url, model):
    texts = ["a cat", "a dog"]
    expected = model.embed_texts(texts).numpy()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        plain = client.embeddings.create(model="tiny-vit", input=texts)  # asks for base64 and decodes it itself
        floats = client.embeddings.create(model="tiny-vit", input=texts, encoding_format="float")
        for answer in (plain, floats):
            np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=2e-6)
            assert [row.index for row in answer.data] == [0, 1] and answer.model == "tiny-vit" and answer.usage.total_tokens > 0
        picture = client.embeddings.create(model="tiny-vit", input=[{"image": base64.b64encode(png()).decode()}])
        np.testing.assert_allclose(picture.data[0].embedding, model.embed_images([png()]).numpy()[0], atol=2e-6)
        assert [one.id for one in client.models.list()] == ["tiny-vit"] and client.models.retrieve("tiny-vit").id == "tiny-vit"
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="tiny-vit", input="x", dimensions=16)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="gpt", input="x")
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="tiny-vit", input=[])
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("address", ["http://127.0.0.1:none", "http://127.0.0.1:99999", "127.0.0.1:8000", "http://", "http://x:0"])
def test_an_address_that_is_none_is_refused_at_once(address):
    with pytest.raises(DataError, match="the service's address"):
        Client(address)


def test_a_key_out_of_a_file_may_end_with_its_line_and_one_that_no_header_takes_is_refused(url, monkeypatch):
    monkeypatch.setenv("OSTENSION_KEY", KEY + "\n")
    with Client(url) as client:
        assert client.embed_texts("a cat").shape == (1, 32)
    for key in ("schlüssel", "two\nlines"):
        with pytest.raises(DataError, match="no header"):
            Client(url, key=key)


@pytest.mark.parametrize("body", [b"<html>a page of something else</html>", b"[]", b"\xff"])
def test_an_answer_of_something_else_is_said_to_be_none_of_ours(body):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ServiceError, match="not ours"):
            client.embed_texts("a cat")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
