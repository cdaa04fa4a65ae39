"""Figures as files of their own: an SVG with its title, its legend and its colours inside, for a paper or a slide.

Colours are written as values of the light page, since most programs that read SVG know no CSS variables.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from ostension import files
from ostension.evals import report
from ostension.evals.chart_marks import keys_svg
from ostension.evals.figure import Figure

MARGIN, TITLE = 16, 34
FONT = "font-family: system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;"


def write_plots(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """Write each figure that is a chart to `folder`/NAME.svg; the paths written."""
    paths = []
    for figure in figures:
        if figure.svg:
            path = folder / f"{figure.name}.svg"
            files.write_text(path, standalone(figure))
            paths.append(path)
    return paths


def standalone(figure: Figure) -> str:
    """The chart as a whole SVG document."""
    head, inner = re.fullmatch(r"(<svg [^>]*>)(.*)</svg>", figure.svg, re.DOTALL).groups()  # type: ignore[union-attr]
    width, height = (float(number) for number in re.search(r'viewBox="0 0 (\S+) (\S+)"', head).groups())  # type: ignore[union-attr]
    label = re.search(r'aria-label="([^"]*)"', head).group(1)  # type: ignore[union-attr]
    keys, keys_height = keys_svg(figure.keys, 0.0, height + 10)
    whole = width + 2 * MARGIN, height + keys_height + TITLE + 2 * MARGIN
    style = f"svg {{ {FONT} }} .title {{ font-size: 16px; font-weight: 600; fill: #1d1c1a; }}\n{chart_style()}"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {whole[0]:g} {whole[1]:g}" '
        f'width="{whole[0]:g}" height="{whole[1]:g}" aria-label="{label}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 14}">{html.escape(figure.title)}</text>'
        f'<g transform="translate({MARGIN} {MARGIN + TITLE})">{inner}{"".join(keys)}</g></svg>\n'
    )


def chart_style() -> str:
    """The rules of `chart.css` with the light page's colours in the place of variables."""
    css = report.CHART_CSS.read_text(encoding="utf-8")
    light, _, rest = css.partition("@media")
    values = dict(re.findall(r"(--\w+):\s*([^;]+);", light))
    rules = rest[rest.index(".chart") :]
    rules = re.sub(r"var\((--\w+)\)", lambda found: values[found.group(1)], rules)
    # On a page the chart fills its column; alone it has a size of its own.
    return rules.replace("width: 100%; height: auto;", "").replace("14.5px", "13px")
