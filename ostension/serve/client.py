"""A client of the service, of the standard library and numpy.

    client = Client("http://127.0.0.1:8000")
    rows = client.embed_texts(["a cat", "a dog"])              # (2, E) float32 unit rows
    pictures = client.embed_images(["cat.jpg", Path("dog.png").read_bytes()])
    client.classify("cat.jpg", ["cat", "dog"])                 # [[("cat", 0.98), ("dog", 0.02)]]

Long lists are split by the limits that the service tells. A service that is busy (429) or not ready (503) is asked again
when it says, for a while. Threads may share a client.

Letters: N items, E embedding, C classes.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError, LimitError, OstensionError

KEY_VARIABLE = "OSTENSION_KEY"
RETRIED = (429, 503)
PIECE_SHARE = 0.9  # of the longest body that a request is filled to
BASE_PAUSE_S = 0.5
Picture = str | os.PathLike | bytes


class ServiceError(OstensionError):
    """The service refused a request.

    Attributes:
        status: of HTTP; 0 if nobody answered.
        code, param: as the service says them.
    """

    def __init__(self, what: str, *, status: int = 0, code: str | None = None, param: str | None = None, **rest: Any):
        super().__init__(what, **rest)
        self.status, self.code, self.param = status, code, param

    def __reduce__(self):
        return _rebuild, (self.what, self.status, self.code, self.param, self.source)


def _rebuild(what: str, status: int, code: str | None, param: str | None, source: object) -> ServiceError:
    return ServiceError(what, status=status, code=code, param=param, source=source)


class Client:
    """Asks a service.

    Args:
        url: where it is.
        key: what opens it; the environment variable OSTENSION_KEY if None.
        timeout_s: for one request.
        patience_s: how long a service may be busy or not ready before a request is given up.
        sleep, clock: other ones in tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.url = url.rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
            raise DataError(f"the service's address is {url!r}", expected="http://HOST:PORT")
        self._parts = parts
        self._key = (key if key is not None else os.environ.get(KEY_VARIABLE, "")).strip()  # a file's key ends with a line
        if not self._key.isascii() or not self._key.isprintable():
            raise DataError("the key has letters that no header can carry", expected="printable ASCII")
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self._sleep, self._clock = sleep, clock
        self._local = threading.local()
        self._card: dict[str, Any] | None = None

    def models(self) -> list[dict[str, Any]]:
        """The service's models: name, hash, sizes, limits, what may be named."""
        return self._ask("GET", "/v1/models")["data"]

    @property
    def card(self) -> dict[str, Any]:
        """The first model, asked for once."""
        if self._card is None:
            self._card = self.models()[0]
        return self._card

    def collections(self) -> list[dict[str, Any]]:
        """The collections that can be searched."""
        return self._ask("GET", "/v1/collections")["data"]

    def ready(self) -> bool:
        """Whether the service answers requests now."""
        try:
            return self._once("GET", "/health/ready", None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def embed_texts(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """(N, E) float32 unit rows of texts.

        Args:
            truncate: cut texts of too many tokens, which are refused otherwise.

        Raises:
            ServiceError: if the service refuses one, or does not answer.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self._embed([{"text": text} for text in texts], truncate)

    def embed_images(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """(N, E) float32 unit rows of pictures: paths, or the bytes of files.

        Raises:
            DataError: if a file cannot be read.
            LimitError: for a picture of more bytes than the service takes.
            ServiceError: if the service refuses one, or does not answer.
        """
        return self._embed([{"image": text} for text in self._pictures(images)], False)

    def classify(
        self,
        images: Picture | Sequence[Picture],
        labels: Sequence[str] | None = None,
        *,
        label_set: str | None = None,
        predictor: str | None = None,
        templates: str | Sequence[str] | None = None,
        top_k: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """For each picture the most probable classes with their probabilities, best first.

        Args:
            labels, label_set, predictor: the classes, in one of these ways.
            templates: with one `{}` each, or the name of a set.

        Raises: as `embed_images`.
        """
        given = {"labels": labels, "label_set": label_set, "predictor": predictor, "templates": templates}
        rest = {
            name: list(value) if isinstance(value, (tuple, set)) else value
            for name, value in given.items()
            if value is not None
        }
        found: list[list[tuple[str, float]]] = []
        for part in self._split(self._pictures(images), size_of=len):
            answer = self._ask("POST", "/v1/classify", {"images": part, "top_k": top_k, **rest})
            found += [[(one["label"], one["probability"]) for one in row["predictions"]] for row in answer["data"]]
        return found

    def search(
        self,
        text: str | None = None,
        *,
        image: Picture | None = None,
        id: str | None = None,
        vector: Sequence[float] | np.ndarray | None = None,
        expression: str | None = None,
        collection: str = "default",
        k: int = 10,
        where: str | dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Hits in a collection, best first: {"id", "score", "fields"}. The query is given in exactly one way.

        Raises: as `embed_images`.
        """
        query = {
            "text": text, "id": id, "expression": expression, "image": None if image is None else self._picture(image),
            "vector": None if vector is None else [float(value) for value in vector],
        }  # fmt: skip
        body = {"query": {name: value for name, value in query.items() if value is not None}, "collection": collection, "k": k}
        return self._ask("POST", "/v1/search", body if where is None else {**body, "where": where})["data"]

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _embed(self, items: list[dict[str, str]], truncate: bool) -> np.ndarray:
        rows = [np.zeros((0, self.card["embed_dim"]), np.float32)]
        for part in self._split(items, size_of=_size):
            answer = self._ask("POST", "/v1/embeddings", {"input": part, "encoding_format": "base64", "truncate": truncate})
            data = sorted(answer["data"], key=lambda one: one["index"])
            rows.append(np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data]))
        return np.concatenate(rows)

    def _split(self, items: Sequence[Any], *, size_of: Callable[[Any], int]) -> Iterator[list[Any]]:
        """Parts that the service takes as one request."""
        limits = self.card["limits"]
        most, room = limits["max_batch_items"], int(PIECE_SHARE * limits["max_body_bytes"])
        part: list[Any] = []
        used = 0
        for item in items:
            size = size_of(item) + 64
            if part and (len(part) >= most or used + size > room):
                yield part
                part, used = [], 0
            part.append(item)
            used += size
        if part:
            yield part

    def _pictures(self, images: Picture | Sequence[Picture]) -> list[str]:
        listed = [images] if isinstance(images, (str, bytes, os.PathLike)) else list(images)
        return [self._picture(image) for image in listed]

    def _picture(self, image: Picture) -> str:
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", source=image) from None
        most = self.card["limits"]["max_image_bytes"]
        if len(data) > most:
            name = "the picture" if isinstance(image, bytes) else image
            raise LimitError(f"{len(data):,} bytes", source=name, expected=f"at most {most:,}, by the service's limit")
        return base64.b64encode(data).decode("ascii")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's tree; asks again while the service is busy or not there, as long as there is patience."""
        data = None if body is None else json.dumps(body).encode()
        began, tries = self._clock(), 0
        while True:
            tries += 1
            try:
                status, headers, found = self._once(method, path, data)
            except (OSError, http.client.HTTPException) as error:
                problem = ServiceError(f"does not answer ({type(error).__name__}: {error})", source=self.url)
                pause = BASE_PAUSE_S * 2 ** min(tries - 1, 5)
            else:
                if status == 200:
                    return _tree(found, self.url)
                problem = _problem(status, found, self.url)
                if status not in RETRIED:
                    raise problem
                pause = _seconds(headers.get("retry-after"), BASE_PAUSE_S * 2 ** min(tries - 1, 5))
            if self._clock() - began + pause > self.patience_s:
                raise problem from None
            self._sleep(pause)

    def _once(self, method: str, path: str, data: bytes | None) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        fresh = getattr(self._local, "connection", None) is None
        try:
            return self._exchange(method, path, data, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()
            if fresh:
                raise
            return self._exchange(method, path, data, headers)  # it was closed while it was idle
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            host = self._parts.hostname or ""
            connection = self._local.connection = kind(host, self._parts.port, timeout=self.timeout_s)
        connection.request(method, self._parts.path + path, data, headers)
        answer = connection.getresponse()
        found = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, found


def _size(item: dict[str, str]) -> int:
    """Bytes of an item in JSON, at most: base64 stays as it is, a character of a text may take twelve."""
    return len(item["image"]) if "image" in item else 12 * len(item["text"])


def _has_port(parts: urllib.parse.SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _tree(body: bytes, url: str) -> Any:
    """What an answer holds."""
    try:
        tree = json.loads(body)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ServiceError("answers with something that is not ours", source=url, expected="the address of `ostension serve`")
    return tree


def _problem(status: int, body: bytes, url: str) -> ServiceError:
    try:
        error = json.loads(body)["error"]
        return ServiceError(
            f"{error['message']} ({status})", status=status, code=error["code"], param=error["param"], source=url
        )
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"answered {status} without a reason", status=status, source=url)


def _seconds(text: str | None, otherwise: float) -> float:
    try:
        return max(0.0, float(text)) if text is not None else otherwise
    except ValueError:
        return otherwise
