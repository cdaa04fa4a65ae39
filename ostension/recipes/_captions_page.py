"""The page of the ImageNet-Captions study: its plot, its table and what they say."""

from __future__ import annotations

from pathlib import Path

from ostension import files
from ostension.evals import report
from ostension.evals.chart_marks import keys_html
from ostension.evals.figures import controlled
from ostension.evals.records import Record
from ostension.recipes._captions_study import RECORD

PAGE = "imagenet-captions.html"


def write_page(record: Record, folder: Path) -> Path:
    """The page, in a folder."""
    files.write_text(folder / PAGE, page(record))
    return folder / PAGE


def page(record: Record) -> str:
    """The plot and its table as one HTML file."""
    (figure,) = controlled.draw([record])
    counts, line = record.counts, record.details["line"]["lines"][0]
    return report.page(
        title=figure.title, eyebrow="Ostension, the ImageNet-Captions study",
        lead="What makes CLIP robust to another drawing style: the loss, the language, or the pictures that it learned from?",
        opening="",
        sections=[
            report.section(
                "results", "Each model on the plane",
                report.paragraph(
                    f"{counts['original']:,} pictures in the original styles and {counts['shifted']:,} in others, of the same "
                    f"{counts['things']} things that no run learned, to be named among {counts['classes']} classes."
                ),
                report.figure(figure.title, figure.svg + keys_html(figure.keys), "card wide"),
                report.paragraph(figure.says),
                report.paragraph(f"The line: slope {line['slope']:.2f}, r2 {line['r2']:.2f}, through {line['n']} models."),
                figure.more,
            ),
        ],
        footer=report.paragraph(f"Seed {record.seeds[0]}; record {RECORD}; made by ostension imagenet-captions."),
    )  # fmt: skip
