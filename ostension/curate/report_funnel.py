"""The way of the candidates as a chart: a bar for each stage, what it was given and what it kept."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ostension.curate.report_data import StageReport
from ostension.evals import report
from ostension.evals.charts import svg

WIDTH, ROW, BAR = 660, 50, 16


def funnel(stages: Sequence[StageReport]) -> str:
    """An SVG with a bar for each stage that has ended: what it kept, what it dropped, pale what was gone before."""
    total = max(stages[0].rows, 1)
    parts = []
    for number, stage in enumerate(stages):
        top = number * ROW + 4
        words = f"{stage.kept:,} kept" + (f", {report.percent(stage.kept / stage.rows)}" if stage.rows else "")
        parts.append(f'<text class="label" x="0" y="{top + 13}">{html.escape(stage.name)}</text>')
        parts.append(f'<text class="value" x="{WIDTH}" y="{top + 13}" text-anchor="end">{html.escape(words)}</text>')
        ends = (0.0, *(WIDTH * count / total for count in (stage.kept, stage.rows, total)))
        for kind, left, right in zip(("fill c1", "fill c2", "fill faint c1"), ends[:-1], ends[1:], strict=True):
            if right > left:
                title = f"<title>{stage.kept:,} kept, {stage.rows - stage.kept:,} dropped</title>"
                place = f'x="{left:.1f}" y="{top + 20}" width="{max(right - left, 1):.1f}" height="{BAR}"'
                parts.append(f'<rect class="{kind}" {place}>{title}</rect>')
    described = "; ".join(f"{stage.name}: {stage.kept:,} of {stage.rows:,} kept" for stage in stages)
    return svg(parts, WIDTH, len(stages) * ROW, "Candidates by stage", described)
