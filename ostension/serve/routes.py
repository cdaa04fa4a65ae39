"""The routes of the interface, each a few lines around `Service`."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ostension.serve import schemas
from ostension.serve.audit import audit_names
from ostension.serve.classify import classify
from ostension.serve.inputs import as_base64
from ostension.serve.model_card import model_card
from ostension.serve.problems import Problem, unknown
from ostension.serve.search import Search
from ostension.serve.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes under /v1."""

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingResponse, tags=["embeddings"])
    async def embeddings(body: schemas.EmbeddingRequest, request: Request) -> Any:
        """Embed texts and pictures; rows come in the order of the inputs."""
        check_model(service, body.model)
        if body.dimensions not in (None, service.files.config.embed_dim):
            raise Problem(
                400,
                f"dimensions is {body.dimensions}; this model has {service.files.config.embed_dim} and no others",
                "unsupported_dimensions",
                param="dimensions",
            )
        rows, tokens = await embed_inputs(service, body, client_of(request))
        written: Any = as_base64 if body.encoding_format == "base64" else np.ndarray.tolist
        return json_answer({
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": written(row)} for index, row in enumerate(rows)],
            "model": service.model_id,
            "sha256": service.backend.facts.sha256 if service.backend.facts else None,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })  # fmt: skip

    @app.post("/v1/classify", response_model=schemas.ClassifyResponse, tags=["classify"])
    async def classify_images(body: schemas.ClassifyRequest, request: Request) -> Any:
        """Probabilities of classes for pictures."""
        check_model(service, body.model)
        check_count(service, len(body.images), "images")
        return json_answer(await classify(service, body, client_of(request)))

    @app.post("/v1/similarity", response_model=schemas.SimilarityResponse, tags=["embeddings"])
    async def similarity(body: schemas.SimilarityRequest, request: Request) -> Any:
        """Cosines of pictures and texts, each with each."""
        check_model(service, body.model)
        check_count(service, len(body.images) + len(body.texts), "images")
        client = client_of(request)
        texts = await service.embed_texts(body.texts, "texts", client, truncate=body.truncate)
        images = await service.embed_images([image_of(one) for one in body.images], "images", client)
        product = np.stack(images).astype(np.float64) @ np.stack(texts.rows).astype(np.float64).T
        facts = service.backend.facts
        return json_answer({
            "object": "similarity", "similarity": product.tolist(), "model": service.model_id,
            "logit_scale": facts.logit_scale if facts else None, "logit_bias": facts.logit_bias if facts else None,
        })  # fmt: skip

    @app.get("/v1/models", response_model=schemas.ModelList, tags=["models"])
    async def models() -> Any:
        """The model, its limits, and what else clients have to know."""
        return json_answer({"object": "list", "data": [model_card(service)]})

    @app.get("/v1/models/{model:path}", response_model=schemas.ModelCard, tags=["models"])
    async def model(model: str) -> Any:
        """The same of one model by its name."""
        check_model(service, model)
        return json_answer(model_card(service))


def add_store_routes(app: FastAPI, service: Service, search: Search) -> None:
    """Add the routes that use the store, and the audit."""

    @app.post("/v1/search", response_model=schemas.SearchResponse, tags=["search"])
    async def find(body: schemas.SearchRequest, request: Request) -> Any:
        """Rows of a collection that are like a text, a picture, a row, a vector, or a sum of them."""
        check_model(service, body.model)
        return json_answer(await search.find(body, client_of(request)))

    @app.get("/v1/collections", response_model=schemas.CollectionList, tags=["search"])
    async def collections() -> Any:
        """The collections that can be searched."""
        return json_answer({"object": "list", "data": await search.cards()})

    @app.get(
        "/v1/collections/{name}/items/{id:path}/preview", tags=["search"], response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG of at most 320 pixels a side."}},
    )  # fmt: skip
    async def preview(name: str, id: str) -> Any:
        """A small picture of a row, where the service shows them."""
        headers = {"cache-control": "private, max-age=600"}
        return Response(await search.preview(name, id), media_type="image/jpeg", headers=headers)

    @app.post("/v1/audit", response_model=schemas.AuditResponse, tags=["classify"])
    async def audit(body: schemas.AuditRequest, request: Request) -> Any:
        """What is wrong with a list of class names before it is used."""
        check_model(service, body.model)
        return json_answer(await audit_names(service, body, client_of(request)))


async def embed_inputs(service: Service, body: schemas.EmbeddingRequest, client: Hashable) -> tuple[list[np.ndarray], int]:
    """The rows of a request's inputs in order, and their tokens."""
    inputs: Sequence[Any] = body.input if isinstance(body.input, list) else [body.input]
    check_count(service, len(inputs), "input")
    texts: dict[int, str] = {}
    images: dict[int, str] = {}
    for index, item in enumerate(inputs):
        if isinstance(item, schemas.ImageItem):
            images[index] = item.image
        elif isinstance(item, schemas.TextItem):
            texts[index] = item.text
        else:
            (images if body.modality == "image" else texts)[index] = item
    rows: list[Any] = [None] * len(inputs)
    tokens = 0
    if texts:
        found = await service.embed_texts(list(texts.values()), "input", client, truncate=body.truncate, places=list(texts))
        tokens = found.tokens
        for index, row in zip(texts, found.rows, strict=True):
            rows[index] = row
    if images:
        embedded = await service.embed_images(list(images.values()), "input", client, places=list(images))
        for index, row in zip(images, embedded, strict=True):
            rows[index] = row
    return rows, tokens


def check_model(service: Service, name: str | None) -> None:
    """Refuse another model's name.

    Raises:
        Problem: 404.
    """
    if name is not None and name != service.model_id:
        raise unknown("model", name, [service.model_id], "model")


def check_count(service: Service, count: int, param: str) -> None:
    """Refuse no items, and too many.

    Raises:
        Problem: 400.
    """
    most = service.limits.max_batch_items
    if not 1 <= count <= most:
        raise Problem(400, f"{param} has {count:,} items; expected 1 to {most:,}", "item_count", param=param)


def image_of(item: schemas.ImageInput) -> str:
    """The string of a picture."""
    return item if isinstance(item, str) else item.image


def client_of(request: Request) -> Hashable:
    """Who asks, for fairness: the key's number and the address."""
    return request.scope.get("ostension.key"), request.client.host if request.client else None


def json_answer(tree: Any) -> Response:
    """The tree as JSON; what is not finite cannot be in it."""
    return Response(json.dumps(tree, separators=(",", ":"), allow_nan=False).encode(), media_type="application/json")
