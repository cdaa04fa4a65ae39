"""`/openapi.json`, and `/docs`: the same to read, as one page without scripts that needs nothing from another host."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse

from ostension.serve.routes import json_answer

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace } pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886 }
h2 { margin-top: 2.5rem } table { border-collapse: collapse }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
""".strip()


def add_documents(app: FastAPI, *, keys: bool) -> None:
    """Add both routes.

    Args:
        keys: whether the service asks for keys, which the document then says.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Any:
        return json_answer(document())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        return HTMLResponse(_page(document()), headers={"content-security-policy": POLICY})


POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def _document(app: FastAPI, keys: bool) -> dict[str, Any]:
    """FastAPI's document, with our errors in the place of its own."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for methods in found["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            for status in ("400", "408", "413") if "requestBody" not in operation and "parameters" not in operation else ():
                operation["responses"].pop(status, None)
            if keys:
                operation["security"] = [{"key": []}]
    schemas = found.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _page(document: dict[str, Any]) -> str:
    parts = [f"<h1>{html.escape(document['info']['title'])} {html.escape(document['info']['version'])}</h1>"]
    parts.append(
        f"<p>{html.escape(document['info']['description'])} The same for programs: <a href='openapi.json'>openapi.json</a>.</p>"
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            parts.append(_fields(document, body, "What it takes"))
            answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
            parts.append(_fields(document, answer, "What it gives"))
    title = html.escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{title}: interface</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _fields(document: dict[str, Any], schema: dict[str, Any], heading: str) -> str:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    fields = document.get("components", {}).get("schemas", {}).get(name, {})
    if "properties" not in fields:
        return ""
    rows = []
    for field, what in fields["properties"].items():
        needed = "needed" if field in fields.get("required", ()) else f"default {json.dumps(what.get('default'))}"
        rows.append(
            f"<tr><td><code>{html.escape(field)}</code><td>{html.escape(_type(what))}<td>{html.escape(needed)}"
            f"<td>{html.escape(what.get('description', ''))}</tr>"
        )
    return f"<h3>{heading}</h3><p>{html.escape(fields.get('description', ''))}</p><table>{''.join(rows)}</table>"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
