"""The routes for those who run the service: whether it lives, whether it is ready, and what it counts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ostension.serve import schemas
from ostension.serve.problems import Problem
from ostension.serve.routes import json_answer
from ostension.serve.service import Service


def add_health(app: FastAPI, service: Service) -> None:
    """Add `/health/live`, `/health/ready` and `/metrics`."""

    @app.get("/health/live", response_model=schemas.Health, tags=["operation"])
    async def live() -> Any:
        """Whether the process turns."""
        return json_answer({"status": "live", "reason": None})

    @app.get("/health/ready", response_model=schemas.Health, tags=["operation"])
    async def ready(request: Request) -> Any:
        """Whether requests are answered: an embedding went through the real queue just now, and had its golden value."""
        reason = "the service is stopping" if request.app.state.gate.draining else service.canary.reason
        if reason:
            raise Problem(503, reason, "not_ready", retry_after_s=1)
        return json_answer({"status": "ready", "reason": None})

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
    async def metrics() -> Any:
        """What was counted and measured, for Prometheus."""
        found = service.metrics
        for name, lane in service.batcher.lanes.items():
            found.depth.labels(name).set(len(lane))
            found.held.labels(name).set(lane.held)
        found.cache_bytes.set(service.cache.bytes)
        found.restarts.set(service.backend.restarts)
        found.ready.set(0 if service.canary.reason else 1)
        return Response(found.text(), headers={"content-type": found.content_type})
