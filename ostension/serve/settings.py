"""What a service is told when it starts: the model, where to listen, how to compute, and every limit."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping

from ostension.config import require
from ostension.errors import UsageError

MEGABYTE = 1_000_000
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a request may ask for; `GET /v1/models` tells them to clients.

    Attributes:
        max_body_bytes: of a request's body.
        max_waiting_bytes: of the bodies of all requests that are being read or worked on.
        max_batch_items: texts and images of a request.
        max_image_bytes: of one encoded picture.
        max_pixels: of one picture, read from its header before it is decoded.
        max_text_length: characters of one text.
        max_labels: class names of a request.
        max_templates: templates of a request.
        max_prompts: class names times templates.
        max_results: hits of a search, and classes of an answer.
        max_connections: open at a time; further ones are answered with 503.
        body_seconds: a body has to be there after these.
    """

    max_body_bytes: int = 64 * MEGABYTE
    max_waiting_bytes: int = 256 * MEGABYTE
    max_batch_items: int = 128
    max_image_bytes: int = 20 * MEGABYTE
    max_pixels: int = 25_000_000
    max_text_length: int = 20_000
    max_labels: int = 1_000
    max_templates: int = 100
    max_prompts: int = 4_000
    max_results: int = 1_000
    max_connections: int = 1_000
    body_seconds: float = 20.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"limits.{field.name}", value, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A service.

    Attributes:
        model: a model's folder, file or hub name.
        model_id: what clients call it; its architecture's name if None.
        predictors: saved predictors by the names that clients give, with their folders.
        store: a folder of collections to search, or None.
        device, dtype, engine: how to compute; see `formats.load` and `export.engines`.
        threads: of the process that computes; all cores if None.
        decoders: threads that decode pictures and tokenise.
        host, port: where to listen. Other hosts than this machine itself need a key.
        keys: any of them opens the service; without keys it is open.
        open_metrics: answer `/metrics` without a key.
        allow_url_hosts: hosts from which pictures may be fetched; none by default.
        previews: whether pictures of collections may be looked at.
        max_batch: items computed at once.
        slice_ms: a batch ends where it would take longer than this, so that nobody waits long behind it.
        max_wait_ms: how long an item waits for companions that are on their way, while nothing is computed.
        max_queue_s: a request that would wait longer for others, and longer than it takes itself, is refused with 429.
        max_slowdown: a request that would take more than so many times what it takes on an idle service is refused with 429,
            and batches are short enough for that; 0 is no bound, and the most is done in a second.
        queue_images, queue_tokens: images, and tokens of texts, that may wait; past them requests are refused with 429.
        deadline_s: a request without an answer by then is answered with 504, and its work is dropped.
        hang_s: a batch that takes longer is taken for hung, and the process that computes is replaced.
        drain_s: how long requests may go on after SIGTERM.
        canary_s: the check behind `/health/ready` runs this often.
        cache_bytes: of embeddings of texts that are kept.
        limits: of requests.
    """

    model: str
    model_id: str | None = None
    predictors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    store: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "torch"
    threads: int | None = None
    decoders: int = 4
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    open_metrics: bool = False
    allow_url_hosts: tuple[str, ...] = ()
    previews: bool = False
    max_batch: int = 32
    slice_ms: float = 200.0
    max_wait_ms: float = 8.0
    max_queue_s: float = 2.0
    max_slowdown: float = 0.0
    queue_images: int = 256
    queue_tokens: int = 131_072
    deadline_s: float = 30.0
    hang_s: float = 60.0
    drain_s: float = 20.0
    canary_s: float = 10.0
    cache_bytes: int = 32 * MEGABYTE
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self):
        for name in ("decoders", "max_batch", "queue_images", "queue_tokens", "slice_ms", "deadline_s", "hang_s", "canary_s"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("max_wait_ms", "max_queue_s", "drain_s", "cache_bytes"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.max_slowdown == 0 or self.max_slowdown >= 2, "max_slowdown", self.max_slowdown, "2 or more, or 0")
        require(0 <= self.port <= 65_535, "port", self.port, "0 to 65,535")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "1 or more")
        if not self.keys and not is_this_machine(self.host):
            raise UsageError(
                f"host is {self.host!r}, which others can reach, and there is no key",
                expected="a key, or the host 127.0.0.1",
                fix="put keys into a file, one a line, and give it with --keys-file",
            )


def is_this_machine(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
