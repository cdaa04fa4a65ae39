"""The web page's files as routes of the service: `/` is the page, `/page/VERSION/NAME` what it loads.

All files are read once, when the routes are made. A request is a look-up in that table and never opens a path, so that no
form of a path (`..`, escapes, NUL, absolute, links) can reach another file. VERSION is a digest over every file: a browser
keeps files for good and still has the new ones after an update; the page itself is asked for again, and answered by its tag.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostension.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
INDEX, WORDS = "index.html", "words.json"
PLACE = "page/"  # what index.html writes before the name of a file
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
# No inline script or style, nothing from another host, and text never becomes markup: the browser refuses to parse any.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
FOR_GOOD = "public, max-age=31536000, immutable"


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    body: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """Its ETag."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


def add_page(app: Any, *, folder: str | Path = FOLDER) -> str:
    """Add the page's routes to `app` (FastAPI or Starlette); gives their version.

    Raises:
        ConfigError: if the folder has no page.
    """
    assets = read_assets(Path(folder))
    version = version_of(assets)
    index = _versioned(assets.pop(INDEX), version)
    # Starlette's own routes answer HEAD as well, and are no part of the OpenAPI document.
    app.router.add_route("/", functools.partial(_send_index, index), methods=["GET"], include_in_schema=False)
    app.router.add_route(
        "/page/{version}/{name:path}", functools.partial(_send_asset, assets, version), methods=["GET"], include_in_schema=False
    )
    return version


def read_assets(folder: Path) -> dict[str, Asset]:
    """The files below `folder` by their names there, and the shipped words; what is not inside it in truth is left out.

    Raises:
        ConfigError: if there is no index.html.
    """
    root = folder.resolve()
    assets = {WORDS: Asset(_words(), TYPES[".json"])}
    for path in sorted(folder.rglob("*")):
        real = path.resolve()
        if path.suffix in TYPES and real.is_file() and real.is_relative_to(root):
            assets[path.relative_to(folder).as_posix()] = Asset(real.read_bytes(), TYPES[path.suffix])
    if INDEX not in assets:
        raise ConfigError("the page has no index.html", source=folder, fix="install the package anew")
    return assets


def version_of(assets: dict[str, Asset]) -> str:
    """A digest over names and contents."""
    digest = hashlib.sha256()
    for name, asset in sorted(assets.items()):
        digest.update(f"{name}\0{asset.tag}\0".encode())
    return digest.hexdigest()[:16]


def _versioned(index: Asset, version: str) -> Asset:
    """The page with its files' addresses under the version; they stay relative, so that a proxy may put it below a path."""
    body = index.body.replace(f'"{PLACE}'.encode(), f'"{PLACE}{version}/'.encode())
    return dataclasses.replace(index, body=body)


def _words() -> bytes:
    """What the page offers and explains: shipped sets of class names and templates, and the kinds of findings of an audit."""
    from ostension.evals.audit.page import TITLES
    from ostension.evals.audit.parts import KINDS
    from ostension.text import prompts

    sets = [prompts.prompt_set(name) for name in prompts.prompt_set_names()]
    tree = {
        "classes": {one.name: {"title": one.title, "names": list(dict.fromkeys(one.class_names))} for one in sets},
        "templates": {name: list(prompts.templates(name)) for name in prompts.template_names()},
        "kinds": KINDS,
        "severities": TITLES,
    }
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


async def _send_index(index: Asset, request: Request) -> Response:
    return _answer(index, request, cache="no-cache")


async def _send_asset(assets: dict[str, Asset], version: str, request: Request) -> Response:
    from starlette.responses import JSONResponse

    asset = assets.get(request.path_params["name"]) if request.path_params["version"] == version else None
    if asset is None:
        error = {"message": "there is no such file", "type": "not_found", "param": None, "code": "not_found"}
        return JSONResponse({"error": error}, 404, headers=HEADERS)
    return _answer(asset, request, cache=FOR_GOOD)


def _answer(asset: Asset, request: Request, *, cache: str) -> Response:
    from starlette.responses import Response

    headers = {**HEADERS, "ETag": asset.tag, "Cache-Control": cache}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
