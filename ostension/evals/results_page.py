"""Results as one page: what was measured and what is missing, headline numbers, tables, figures, and how to repeat it.

Everything on the page comes from the results; sentences are made from the same numbers as the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals import report
from ostension.evals.chart_marks import keys_html
from ostension.evals.figure import SECTIONS, Figure, draw_all
from ostension.evals.findings import findings, headline_tiles
from ostension.evals.records import Record
from ostension.evals.results import Result
from ostension.evals.results_appendix import appendix
from ostension.evals.results_tables import missing, ordered_protocols, score_tables
from ostension.evals.selection import kind, models, protocol_words, task_title

Failures = Mapping[tuple[str, str, str], str]  # reasons by model, task and protocol
SHOWN = 4  # figures of a section that are seen at once; the others open on request
LEAD_WORDS = {"zeroshot": "zero-shot", "probe": "by linear probe", "fewshot": "with a few labels", "retrieval": "by retrieval"}
SECTION_SAYS = {
    "labels": "A linear probe is a classifier trained on the model's features with labels. It says what the features hold; "
    "zero-shot says what the model gives away from class names alone.",
    "robustness": "Effective robustness is how far above the line of ordinary ImageNet models a model lies at its accuracy on "
    "the original pictures. Both axes are logits, on which those models lie on a line.",
    "calibration": "On the dashed line a model that says 80 % is right 8 times of 10. Below it, it is too sure of itself. "
    "Larger marks stand for more samples.",
    "groups": "An average hides who pays for it. These are the same test samples, split by what is known of them.",
    "overlap": "Pictures of the test that were in the training data could flatter a result.",
    "mistakes": "The commonest wrong answers. Many are names that mean nearly the same, which other names would mend.",
}


def results_page(
    results: Sequence[Result], summaries: Sequence[Record], *, failed: Failures | None = None, source: str = "RESULTS"
) -> str:
    """The page of results and of what summaries made of them.

    Args:
        failed: reasons by what could not be measured, of `failures.read_failures`.
        source: the folder that they were read from, for the commands.
    """
    records = [*(result.record for result in results), *summaries]
    names, measured = models(records), _targets(results)
    drawn = draw_all(records)
    sections = [
        report.section("results", "In short", *_short(results, summaries)),
        report.section("scores", "Scores", *score_tables(results)),
    ]
    for name, figures in drawn.items():
        sections.append(report.section(f"figures-{name}", SECTIONS[name], *_figures(name, figures)))
    sections.append(report.section("method", "How this was measured", *appendix(results, summaries, source=source)))
    entries = [("results", "In short"), ("scores", "Scores")]
    entries += [(f"figures-{name}", SECTIONS[name]) for name in drawn]
    entries.append(("method", "How this was measured"))
    opening = report.tiles(headline_tiles(results, summaries)) + report.contents(entries)
    return report.page(
        title=_title(names, measured), eyebrow="Ostension results", lead=_lead(results, measured),
        opening=_limits(results, failed or {}) + opening, sections=sections,
        footer=report.paragraph(
            "Made from the records of the results; no number on this page was typed. Intervals are at 95 % unless they say "
            "otherwise and cover the choice of test samples, not the choice of the test set, of the prompts or of the weights.",
            "note",
        ),
    )  # fmt: skip


def _targets(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.target for result in results))


def _title(names: Sequence[str], measured: Sequence[str]) -> str:
    what = task_title(measured[0]) if len(measured) == 1 else f"{len(measured)} data sets"
    if len(names) <= 2:
        return f"{' and '.join(names) or 'Results'} on {what}"
    return f"{len(names)} models on {what}"


def _lead(results: Sequence[Result], measured: Sequence[str]) -> str:
    protocols = ordered_protocols([result.record for result in results])
    said = [LEAD_WORDS[kind(name)] for name in protocols if kind(name) in LEAD_WORDS]
    others = len(protocols) - len(said)
    if others:
        rest = [protocol_words(name) for name in protocols if kind(name) not in LEAD_WORDS]
        said += [f"for {rest[0]}", *rest[1:]] if others <= 2 or not said else [f"by {others} other protocols"]
    scored = [result for result in results if kind(result.record.protocol) in LEAD_WORDS]
    sizes: dict[str, int] = {}
    for result in scored or results:  # others count classes, shifts or groups
        sizes[result.target] = max(sizes.get(result.target, 0), result.record.headline.count)
    listed = ", ".join(said[:-1]) + (" and " if len(said) > 1 else "") + said[-1]
    of = f"on {sum(sizes.values()):,} test samples of " if scored else "on "
    sets = "one data set" if len(measured) == 1 else f"{len(measured)} data sets"
    return f"Measured {listed}, {of}{sets}."


def _limits(results: Sequence[Result], failed: Failures) -> str:
    """What must be known before any number is read."""
    parts = ""
    limited = [result for result in results if result.limit is not None]
    if limited:
        sizes = sorted({result.limit for result in limited if result.limit is not None})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        share = "All results are" if len(limited) == len(results) else f"{len(limited)} of {len(results)} results are"
        words = f"{share} from at most {size} samples a split. They show that it works; they are not comparable with others."
        parts += report.notice("A limited run", report.paragraph(words), kind="bad")
    if failed:
        parts += report.notice("Failed", _folded(_failed(failed)), kind="bad")
    absent = missing(results, known=failed)
    if absent:
        parts += report.notice("Not measured", _folded(absent))
    notes = _notes(results)
    if notes:
        parts += report.notice("To know when reading", _folded(notes))
    return parts


def _failed(failed: Failures) -> list[str]:
    """Each reason once, with what failed for it."""
    found: dict[str, list[str]] = {}
    for (model, task, protocol), reason in failed.items():
        found.setdefault(reason, []).append(f"{protocol_words(protocol)} on {task_title(task)} ({model})")
    return [f"{', '.join(places)}: {reason}" for reason, places in found.items()]


def _notes(results: Sequence[Result]) -> list[str]:
    """Each note once, with the sets that it is of; that a run was limited is said above."""
    found: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            if not note.startswith("limited"):
                found.setdefault(note, []).append(task_title(result.target))
    return [f"{', '.join(dict.fromkeys(titles))}: {note}" for note, titles in found.items()]


def _folded(lines: Sequence[str]) -> str:
    if len(lines) <= SHOWN:
        return report.bullets(lines)
    return report.bullets(lines[:SHOWN]) + report.details(f"{len(lines) - SHOWN} more", report.bullets(lines[SHOWN:]))


def _short(results: Sequence[Result], summaries: Sequence[Record]) -> list[str]:
    said = findings(results, summaries)
    return ['<ul class="findings">' + "".join(f"<li>{report.with_code(line)}</li>" for line in said) + "</ul>"]


def _figures(section: str, figures: Sequence[Figure]) -> list[str]:
    words = [report.paragraph(SECTION_SAYS[section], "note")] if section in SECTION_SAYS else []
    first = [figure for figure in figures if not figure.detail]
    rest = [figure for figure in figures if figure.detail]
    if not first or len(rest) == 1:  # one alone is not worth a click
        first, rest = [*first, *rest[:SHOWN]], rest[SHOWN:]
    parts = [*words, _grid(first)]
    if rest:
        parts.append(report.details(f"{len(rest)} more, one by one", _grid(rest)))
    return parts


def _grid(figures: Sequence[Figure]) -> str:
    return '<div class="plots">' + "".join(map(plot, figures)) + "</div>"


def plot(figure: Figure) -> str:
    """A figure as HTML: its title, what it says, the chart, its legend and what belongs below."""
    kind = "plot wide" if figure.wide else "plot"
    says = report.paragraph(figure.says, "says") if figure.says else ""
    head = f'<figure class="{kind}" id="{report.text(figure.name)}"><figcaption>{report.text(figure.title)}</figcaption>'
    return head + says + figure.svg + keys_html(figure.keys) + figure.more + "</figure>"
