"""A self-contained HTML page: text, tables, charts and thumbnails in one file that works offline, forever.

Everything that comes from data is escaped here and nowhere else; pictures are inline WebP; there is no script. The parts
below give HTML strings, `page` puts them together.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ostension.evals.records import Metric

CHART_CSS = Path(__file__).with_name("chart.css")  # colours and charts; `plots` writes it into single charts too
CSS = Path(__file__).with_name("page.css")
WEBP_QUALITY = 82


def page(*, title: str, eyebrow: str, lead: str, opening: str, sections: Sequence[str], footer: str) -> str:
    """A whole document. `title`, `eyebrow` and `lead` are text; the rest is HTML of the functions below."""
    style = CHART_CSS.read_text(encoding="utf-8") + CSS.read_text(encoding="utf-8")
    # The policy keeps the promise of the first line: nothing is loaded from anywhere, and nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>\n{style}</style></head><body>"
        '<a class="skip" href="#results">Skip to the results</a>'
        f'<header><p class="eyebrow">{text(eyebrow)}</p><h1>{text(title)}</h1>'
        f'<p class="lead">{text(lead)}</p>{opening}</header>'
        f"<main>{''.join(sections)}</main><footer>{footer}</footer></body></html>\n"
    )


def text(value: object) -> str:
    """Any value as HTML text: escaped, also for use inside quotes."""
    return html.escape(str(value), quote=True)


def with_code(words: str) -> str:
    """Text in which `commands` stand between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))


def section(name: str, title: str, *parts: str) -> str:
    """A section with a heading that links can name."""
    name = text(name)
    head = f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{text(title)}</h2>'
    return head + "".join(parts) + "</section>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text, with `commands` between backticks."""
    return f'<p class="{kind}">{with_code(words)}</p>' if kind else f"<p>{with_code(words)}</p>"


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """The headline numbers: (number, what it is)."""
    listed = [f"<li><b>{text(number)}</b><span>{text(words)}</span></li>" for number, words in items]
    return '<ul class="tiles">' + "".join(listed) + "</ul>"


def figure(caption: str, body: str, kind: str = "card") -> str:
    """A chart or picture under its caption."""
    return f'<figure class="{kind}"><figcaption>{text(caption)}</figcaption>{body}</figure>'


def notice(title: str, *parts: str, kind: str = "") -> str:
    """Something that a reader must not miss: what limits the numbers, or what is not there. `kind` "bad" for problems."""
    return f'<div class="notice {text(kind)}" role="note"><p><strong>{text(title)}</strong></p>{"".join(parts)}</div>'


def bullets(items: Sequence[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def contents(entries: Sequence[tuple[str, str]]) -> str:
    """Links to sections: (name, title)."""
    links = "".join(f'<li><a href="#{text(name)}">{text(title)}</a></li>' for name, title in entries)
    return f'<nav aria-label="Sections"><ul class="contents">{links}</ul></nav>'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: its text, smaller lines below it, and a class of the page's style ("best", "low")."""

    words: str
    aside: str = ""
    kind: str = ""


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, caption: str) -> str:
    """A table of texts; the first column names the row. Wide ones scroll by themselves, also by keyboard."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = ""
    for name, *cells in rows:
        body += f'<tr><th scope="row">{_inside(name)}</th>' + "".join(map(_cell, cells)) + "</tr>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    kind = f' class="{text(cell.kind)}"' if isinstance(cell, Cell) and cell.kind else ""
    return f"<td{kind}>{_inside(cell)}</td>"


def _inside(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return text(cell)
    return text(cell.words) + "".join(f'<span class="ci">{text(line)}</span>' for line in cell.aside.splitlines())


def details(summary: str, body: str) -> str:
    """Something that opens on request."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def code(*lines: str) -> str:
    """Commands to copy."""
    return "<pre><code>" + "\n".join(text(line) for line in lines) + "</code></pre>"


def image_data(image: Image.Image, size: int, *, quality: int = WEBP_QUALITY) -> str:
    """A picture as a data URI, at most `size` pixels a side, with its transparency."""
    image = image.convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumb(data: str, alt: str, *, right: bool = False) -> str:
    """An `img` of a data URI on a light tile; `right` rings it."""
    kind = "thumb right" if right else "thumb"
    return f'<img class="{kind}" src="{data}" alt="{text(alt)}" title="{text(alt)}" loading="lazy">'


def query_strip(query: str, found: Sequence[tuple[str, str, bool]]) -> str:
    """A text query with its best pictures in order: (data URI, name, whether it is the one that was meant)."""
    items = []
    for place, (data, name, right) in enumerate(found, 1):
        said = f"{place}. {name}" + (", the one meant" if right else "")
        mark = '<span class="mark" aria-hidden="true">&#10003;</span>' if right else ""
        items.append(f"<li>{thumb(data, said, right=right)}{mark}</li>")
    return f'<li><q>{text(query)}</q><ol class="strip">{"".join(items)}</ol></li>'


def answer(data: str, name: str, best: Sequence[tuple[str, float]]) -> str:
    """A picture, its name, and the classes that the model finds most probable."""
    rows = []
    for label, probability in best:
        kind = ' class="right"' if label == name else ""
        percent = f"{100 * probability:.0f}"
        rows.append(f'<li{kind} style="--p:{percent}%">{text(label)} <span>{percent} %</span></li>')
    return f'<li>{thumb(data, name)}<div><b>{text(name)}</b><ol>{"".join(rows)}</ol></div></li>'


def picture_map(
    items: Sequence[tuple[int, int, str, str, bool]], *, columns: int, rows: int, title: str, description: str, cell: int = 22
) -> str:
    """Pictures in the cells of a grid: (column, row, data URI, name, whether it is framed). Names show on hovering."""
    parts = []
    for column, row, data, name, framed in items:
        x, y = column * cell, row * cell
        frame = f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" rx="4"/>' if framed else ""
        picture = f'<image x="{x + 2}" y="{y + 2}" width="{cell - 4}" height="{cell - 4}" href="{data}"/>'
        parts.append(f"<g><title>{text(name)}</title>{frame}{picture}</g>")
    box = f"0 0 {columns * cell} {rows * cell}"
    return (
        f'<div class="map scroll" tabindex="0" role="region" aria-label="{text(title)}">'
        f'<svg viewBox="{box}" role="img" aria-label="{text(title)}. {text(description)}">{"".join(parts)}</svg></div>'
    )


def share(metric: Metric, digits: int = 1) -> str:
    """A metric as percent with its interval: "41.2 % (38.7 to 43.8)"."""
    value = f"{100 * metric.value:.{digits}f} %"
    if metric.interval is None:
        return value
    return f"{value} ({100 * metric.interval.low:.{digits}f} to {100 * metric.interval.high:.{digits}f})"


def percent(value: float | None) -> str:
    """A share as percent with two significant digits below ten."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if value >= 0.1 else f"{100 * value:.2g} %"
