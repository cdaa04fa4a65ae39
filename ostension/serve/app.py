"""The application: every route, and how failures are answered.

app = create_app(ServeSettings(model="my-model"))
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ostension import __version__
from ostension.serve.backend import Backend
from ostension.serve.documents import add_documents
from ostension.serve.early import Early
from ostension.serve.gate import Gate
from ostension.serve.health import add_health
from ostension.serve.logs import Log
from ostension.serve.metrics import Metrics
from ostension.serve.model_files import ModelFiles, read_model_files
from ostension.serve.page_routes import add_page
from ostension.serve.parsing import Route
from ostension.serve.problems import Problem
from ostension.serve.routes import add_routes, add_store_routes
from ostension.serve.schemas import ErrorAnswer
from ostension.serve.search import Search
from ostension.serve.service import Service
from ostension.serve.settings import ServeSettings
from ostension.serve.worker import WorkerBackend

KINDS = ("str", "TextItem", "ImageItem")  # of one value, which pydantic puts after its place
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in {
        400: "The request is not right; `param` says where.", 401: "A key is missing or wrong.", 404: "There is no such thing.",
        408: "The body came too slowly.", 413: "The body is too long.", 429: "The queue is full; see Retry-After.",
        500: "The model failed on this input.", 503: "The model is not ready; see Retry-After.", 504: "The deadline passed.",
    }.items()
}  # fmt: skip


def create_app(
    settings: ServeSettings, *, files: ModelFiles | None = None, backend: Backend | None = None, log: Log | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        files, backend: of a model that is in memory already; read from `settings.model` if None.
        log: where events go; nowhere if None.

    Raises:
        CheckpointError: if the model cannot be used.
    """
    log, metrics = log or Log(quiet=True), Metrics()
    files = files or read_model_files(settings.model)
    side = files.config.preprocess.image_size
    backend = backend or WorkerBackend(settings, image_side=side, note=log)
    service, gate = Service(settings, files, backend, metrics), Gate(settings, metrics, log)

    search = Search(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            search.stop()
            await service.stop()

    app = FastAPI(
        title="Ostension", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        responses=ERRORS, description="Embeddings of texts and pictures in one space, classification with words, and search.",
        openapi_url=None, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    gate.early = Early(service)
    app.router.route_class = Route
    app.state.service, app.state.gate = service, gate
    app.add_middleware(gate.around)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    add_routes(app, service)
    add_store_routes(app, service, search)
    add_health(app, service)
    add_documents(app, keys=bool(settings.keys))
    add_page(app)
    return app


async def _answer_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    request.scope["ostension.exchange"].code = problem.code
    return Response(problem.body(), problem.status, headers=problem.headers, media_type="application/json")


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "there is nothing here", 405: f"{request.method} is not answered here"}
    what = known.get(error.status_code, str(error.detail))
    answer = await _answer_problem(request, Problem(error.status_code, what, CODES.get(error.status_code, "error")))
    answer.headers.update(error.headers or {})
    return answer


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """400 with the first thing that is wrong; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    return await _answer_problem(request, of_validation(error.errors()))


def of_validation(errors: Any) -> Problem:
    """The problem with a body that does not fit its schema."""
    deepest = max(errors, key=lambda one: len(one["loc"]))
    first = errors[0] if errors[0]["type"] != "string_type" else deepest
    where = [part for part in first["loc"][1:] if isinstance(part, int) or (part.isidentifier() and part not in KINDS)]
    param = ""
    for part in where:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    message = "the body is not valid JSON" if first["type"] == "json_invalid" else first["msg"].removeprefix("Value error, ")
    return Problem(400, f"{param or 'the body'}: {message}", "invalid_request", param=param or None)
