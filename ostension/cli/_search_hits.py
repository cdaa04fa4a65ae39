"""Hits as a page with pictures, as copies, and as links."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ostension.errors import DataError, LimitError
from ostension.files import atomic_path

if TYPE_CHECKING:
    from ostension.store.searcher import Hit
    from ostension.store.sets import EmbeddingSet

SIDE, QUALITY = 224, 80  # pixels and JPEG quality of a preview: about 10 kB
MAX_PIXELS = 64_000_000
_STYLE = """body{font:15px system-ui,sans-serif;margin:1.5rem;background:Canvas;color:CanvasText;color-scheme:light dark}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:1rem}figure{margin:0}
img,.none{width:100%;aspect-ratio:1;object-fit:contain;background:#8882}.none{display:grid;place-items:center}
figcaption{overflow-wrap:anywhere;font-size:13px}b{font-variant-numeric:tabular-nums}"""


def page(path: Path, opened: EmbeddingSet, groups: Sequence[tuple[str, Sequence[Hit]]], *, title: str = "Search") -> None:
    """Write one HTML file with the pictures in it, a heading for each group.

    Raises:
        DataError: if it cannot be written.
    """
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
    ]
    for heading, hits in groups:
        parts.append(f"<h1>{html.escape(heading)}</h1>")
        parts.append("<main>" + "".join(_figure(opened, hit) for hit in hits) + "</main>" if hits else "<p>Nothing found.</p>")
    try:
        with atomic_path(path) as temporary:
            Path(temporary).write_text("\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", source=path) from None


def _figure(opened: EmbeddingSet, hit: Hit) -> str:
    said = ", ".join(map(str, hit.fields.get("labels") or (hit.fields.get("texts") or [])[:1]))
    try:
        data = base64.b64encode(_preview(opened, hit.row)).decode()
        picture = f"<img loading='lazy' alt='{html.escape(said or hit.id)}' src='data:image/jpeg;base64,{data}'>"
    except (DataError, LimitError) as error:
        picture = f"<div class='none'>{html.escape(error.what)}</div>"
    caption = f"<b>{hit.score:.4f}</b> {html.escape(hit.id)}<br>{html.escape(said)}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _preview(opened: EmbeddingSet, row: int) -> bytes:
    from ostension.image.decode import read_picture, to_rgb

    picture = to_rgb(read_picture(_bytes(opened, row), max_pixels=MAX_PIXELS).image, "white")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _bytes(opened: EmbeddingSet, row: int) -> bytes:
    from ostension.store.origins import original

    if not {"source", "sample", "digest"} <= set(opened.columns):
        raise DataError("the store does not say where its pictures came from", source=opened.folder)
    return original(opened, row)


def place(folder: Path, opened: EmbeddingSet, hits: Sequence[Hit]) -> list[str]:
    """Copy the pictures of hits into a folder, each once, under their ranks and names; gives what could not be copied.

    Raises:
        DataError: if the folder cannot be written or has files already.
    """
    failed = []
    for name, hit in _named(folder, hits):
        try:
            image = _bytes(opened, hit.row)
        except (DataError, LimitError) as error:
            failed.append(str(error))
            continue
        try:
            with atomic_path(folder / name) as temporary:
                Path(temporary).write_bytes(image)
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=folder) from None
    return failed


def linked(folder: Path, opened: EmbeddingSet, hits: Sequence[Hit]) -> list[str]:
    """Make links to the pictures of hits in a folder, each once; gives what could not be linked.

    Raises:
        DataError: if the folder cannot be written or has files already.
    """
    from ostension.store.collection import sources

    known, failed = sources(opened), []
    for name, hit in _named(folder, hits):
        source = known[int(opened.column("source", [hit.row])[0])] if "source" in opened.columns else None
        if source is None or source.kind != "folder":
            failed.append(f"{hit.id}: lies in no folder of files; use --copy-to")
            continue
        try:
            _bytes(opened, hit.row)  # nothing but what was embedded is linked
            (folder / name).symlink_to(Path(source.root) / hit.id.removeprefix(source.prefix))
        except (DataError, LimitError) as error:
            failed.append(str(error))
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=folder) from None
    return failed


def _named(folder: Path, hits: Sequence[Hit]) -> Iterator[tuple[str, Hit]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError("has files already", source=folder, expected="an empty folder, or one to be made")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", source=folder) from None
    each = {hit.row: hit for hit in reversed(hits)}
    width = len(str(len(each)))
    rows = list(dict.fromkeys(hit.row for hit in hits))
    for rank, row in enumerate(rows, 1):
        # A name of its own making: what an id has of slashes, dots or other signs leads nowhere.
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", each[row].id.rsplit("/", 1)[-1])[-80:].lstrip(".") or "picture"
        yield f"{rank:0{width}d}-{plain}", each[row]
