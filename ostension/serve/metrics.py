"""Metrics in Prometheus' form. Labels have few values: routes as they are written, never paths as they were sent."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

disable_created_metrics()  # when a series began is of no use here, and half of the lines

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Everything that is counted; a `batcher.Watcher`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"ostension_{name}_total", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"ostension_{name}", what, labels, buckets=buckets, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"ostension_{name}", what, labels, registry=registry)

        self.requests = counter("requests", "Requests by route and status.", "route", "status")
        self.seconds = histogram(
            "request_seconds", "From the first byte of a request to the end of its answer.", SECONDS, "route"
        )
        self.active = gauge("requests_active", "Requests that are being read or worked on.")
        self.rejected = counter("rejected", "Requests refused, by the code of the error.", "reason")
        self.items = counter("items", "Texts and pictures that were computed.", "lane")
        self.depth = gauge("queue_depth", "Items that wait.", "lane")
        self.held = gauge("queue_cost", "Cost of the items that wait or are being computed.", "lane")
        self.batch_size = histogram("batch_size", "Items of a batch.", SIZES, "lane")
        self.wait = histogram("wait_seconds", "Of an item in the queue.", SECONDS, "lane")
        self.decode = histogram("decode_seconds", "Reading a picture, or the texts of a request.", SECONDS, "kind")
        self.forward = histogram("forward_seconds", "Computing a batch.", SECONDS, "lane")
        self.retries = counter("batches_retried", "Batches that failed and were computed item by item.", "lane")
        self.cache_hits = counter("cache_hits", "Texts whose embedding was kept.")
        self.cache_misses = counter("cache_misses", "Texts whose embedding was not kept.")
        self.cache_bytes = gauge("cache_bytes", "Of kept embeddings.")
        self.restarts = gauge("worker_restarts", "How often the process that computes was replaced.")
        self.ready = gauge("ready", "1 if requests are answered.")

    def batch(self, lane: str, size: int, seconds: float) -> None:
        self.batch_size.labels(lane).observe(size)
        self.forward.labels(lane).observe(seconds)
        self.items.labels(lane).inc(size)

    def waited(self, lane: str, seconds: float) -> None:
        self.wait.labels(lane).observe(seconds)

    def retried(self, lane: str) -> None:
        self.retries.labels(lane).inc()

    def text(self) -> bytes:
        """Everything as Prometheus reads it."""
        return generate_latest(self.registry)
