"""A curation as one page: what to know first, the way from candidates to pairs, each stage with its figures and samples.

Every number comes from the work folder. Captions, addresses and pictures are strangers' data: texts are escaped and cut, links
are not made, pictures are decoded within limits and embedded as small WebP. The page is one file, without scripts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ostension.curate.report_data import Report, Sample, StageReport
from ostension.curate.report_funnel import funnel
from ostension.curate.report_toml import chain_toml
from ostension.curate.work import Work
from ostension.data.pairs import PairSource
from ostension.errors import OstensionError
from ostension.evals import report
from ostension.evals.results_page import plot
from ostension.image.decode import open_image

THUMB_PX, LETTERS, FACTS = 128, 300, 8
GRID = "grid-template-columns:repeat(auto-fill,minmax(190px,1fr));overflow-wrap:anywhere"
OPENED = 1  # reasons whose samples are seen at once


def report_page(work: Work, found: Report) -> str:
    """The whole document of what `report_data.collect` found."""
    source, problem = _pictures(work)
    first, stages = found.stages[0], found.stages[1:]
    sections = [report.section("results", "From candidates to pairs", *_funnel(found))]
    sections += [_stage_section(work, stage, number, source) for number, stage in enumerate(stages, 1)]
    if found.kept:
        says = f"{len(found.kept)} of what is left, drawn at random: look whether these are the pairs that were wanted."
        cards = _cards(found.kept, source)
        sections.append(report.section("kept", "A sample of what is kept", report.paragraph(says, "note"), cards))
    sections.append(report.section("method", "How this was made", *_method(found)))
    entries = [("results", "From candidates to pairs")]
    entries += [(_anchor(number), stage.name) for number, stage in enumerate(stages, 1)]
    entries += [("kept", "Kept")] if found.kept else []
    ended = [stage for stage in found.stages if stage.done]
    left = ended[-1].kept
    return report.page(
        title=f"{left:,} of {first.rows:,} candidates",
        eyebrow="Ostension curation",
        lead=_lead(found, left),
        opening=_limits(found, problem) + report.tiles(_tiles(found, left)) + report.contents([*entries, ("method", "Method")]),
        sections=sections,
        footer=report.paragraph(
            "Made by `ostension curate report`. Nothing is loaded from anywhere, and nothing runs.", "note"
        ),
    )


def _lead(found: Report, left: int) -> str:
    names = [stage.name for stage in found.stages[1:]]
    chain = ", ".join(names) if names else "no stage yet"
    kind = "pairs" if found.facts.get("pictures") else "captions without pictures"
    share = report.percent(left / found.stages[0].rows) if found.stages[0].rows else "none"
    source = _cut(", ".join(map(_last, found.source)), 160)
    return f"Candidates are {kind} from {source}. Stages: {chain}. {share} of the candidates are left."


def _tiles(found: Report, left: int) -> list[tuple[str, str]]:
    seconds = sum(stage.seconds for stage in found.stages)
    dropped = found.stages[0].rows - left
    reasons = sum(len(stage.reasons) for stage in found.stages)
    return [
        (f"{found.stages[0].rows:,}", "candidates"),
        (f"{left:,}", "kept"),
        (f"{dropped:,}", f"dropped, for {reasons} reasons"),
        (_time(seconds), "in the sittings in which the stages ended"),
    ]


def _limits(found: Report, problem: str | None) -> str:
    """What must be known before any number is read."""
    parts = ""
    open_ones = [stage.name for stage in found.stages if not stage.done]
    if open_ones:
        words = f"{', '.join(open_ones)} has not ended: run its command again. The numbers are those of the stages before it."
        parts += report.notice("Not finished", report.paragraph(words), kind="bad")
    if problem:
        parts += report.notice("Without pictures", report.paragraph(problem), kind="bad")
    rejects = found.stages[0].rejects
    if rejects:
        lines = [f"{count:,} x {_cut(reason)}" for reason, count in rejects.items()]
        parts += report.notice("In the source, but no candidates", _folded(lines))
    notes = ["Each dropped candidate is counted once: by the first stage, and the first rule of it, that dropped it."]
    if any(stage.texts for stage in found.stages):
        notes.append("Captions of a pair are judged one by one; a pair goes when none is left.")
    if any(stage.name == "balance" for stage in found.stages[1:-1]):
        notes.append("Something was dropped after balancing: counts of queries are no longer those that it aimed at.")
    notes.append("Times are of the sitting in which a stage ended; what was done before an interruption is not in them.")
    return parts + report.notice("To know when reading", report.bullets(notes))


def _funnel(found: Report) -> list[str]:
    head = ("stage", "given", "dropped", "kept", "of given", "of all", "time", "rows a second", "memory")
    total = found.stages[0].rows
    rows = []
    for stage in found.stages:
        if not stage.done:
            rows.append([stage.name, "not ended", *[""] * 7])
            continue
        rate = f"{stage.rows / stage.seconds:,.0f}" if stage.seconds else ""
        rows.append([
            stage.name, f"{stage.rows:,}", f"{stage.rows - stage.kept:,}", f"{stage.kept:,}", _share(stage.kept, stage.rows),
            _share(stage.kept, total), _time(stage.seconds), rate, f"{stage.peak_mb:,.0f} MB" if stage.peak_mb else "",
        ])  # fmt: skip
    chart = report.figure("Candidates that each stage was given, and kept", funnel([s for s in found.stages if s.done]))
    reasons = [
        (stage.name, reason, count) for stage in found.stages for reason, count in stage.reasons.items()
    ]  # fmt: skip
    listed = [[f"{name}: {_cut(reason)}", f"{count:,}", _share(count, total)] for name, reason, count in reasons]
    parts = [f'<div style="margin:18px 0">{chart}</div>', report.table(head, rows, caption="Stages")]
    if listed:
        parts.append('<div style="height:18px"></div>')
        parts.append(report.table(("dropped by", "candidates", "of all"), listed, caption="Every drop by reason"))
    return parts


def _stage_section(work: Work, stage: StageReport, number: int, source: PairSource | None) -> str:
    parts = []
    if not stage.done:
        parts.append(report.paragraph("It has not ended.", "note"))
        return report.section(_anchor(number), stage.name, *parts)
    parts.append(report.paragraph(f"{stage.kept:,} of {stage.rows:,} kept ({_share(stage.kept, stage.rows)}).", "note"))
    parts.append('<div class="plots">' + "".join(_figures(work, stage)) + "</div>")
    if stage.text_reasons:
        rows = [[_cut(reason), f"{count:,}", _share(count, stage.texts)] for reason, count in stage.text_reasons.items()]
        says = f"It judged {stage.texts:,} captions one by one; {sum(stage.text_reasons.values()):,} went."
        parts.append(report.paragraph(says))
        parts.append(report.table(("captions", "number", "of its captions"), rows, caption=f"Captions that {stage.name} took"))
    for place, (reason, samples) in enumerate(stage.samples.items()):
        title = f"{_cut(reason)}: {stage.reasons[reason]:,} dropped, {len(samples)} shown"
        cards = _cards(samples, source, of=stage.name)
        parts.append(f"<h3>{report.text(title)}</h3>{cards}" if place < OPENED else report.details(title, cards))
    return report.section(_anchor(number), stage.name, *parts)


def _figures(work: Work, stage: StageReport) -> list[str]:
    """What the stage itself shows; facts of another version are said to be so."""
    entry = next(entry for entry in work.entries if entry.folder.name == stage.folder)
    try:
        return [plot(figure) for figure in entry.stage().figures(stage.facts, entry.folder)]
    except (OstensionError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        words = f"Its figures cannot be drawn ({type(error).__name__}: {error}); it may have been run by another version."
        return [report.notice("Not drawn", report.paragraph(_cut(words)), kind="bad")]


def _cards(samples: Sequence[Sample], source: PairSource | None, of: str = "") -> str:
    return f'<ul class="styles" style="{GRID}">' + "".join(_card(sample, source, of) for sample in samples) + "</ul>"


def _card(sample: Sample, source: PairSource | None, of: str) -> str:
    picture = ""
    if source is not None and sample.place >= 0:
        try:
            image = open_image(source.read(sample.place).image, name=sample.key)
            picture = report.thumb(
                report.image_data(image, THUMB_PX, quality=70), sample.texts[0] if sample.texts else sample.key
            )
        except OstensionError as error:
            picture = f"<span>{report.text(_cut(f'no picture: {error.what}'))}</span>"
    captions = "".join(f'<p dir="auto" style="margin:6px 0">{report.text(_cut(text))}</p>' for text in sample.texts[:3])
    more = f"<p><span>and {len(sample.texts) - 3} more captions</span></p>" if len(sample.texts) > 3 else ""
    shown = {name: value for name, value in sample.found.items() if name.startswith(f"{of}.")} if of else dict(sample.found)
    shown = {name.removeprefix(f"{of}."): value for name, value in shown.items() if f"{name}_text" not in shown}
    lines = [f"{name}: {_words(value)}" for name, value in shown.items() if value not in ([], "")]
    facts = "".join(f"<br>{report.text(line)}" for line in lines[:FACTS])
    return f"<li>{picture}{captions}{more}<span>{report.text(_cut(sample.key, 120))}{facts}</span></li>"


def _words(value: Any) -> str:
    """A value of a column, for reading."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return _cut(", ".join(map(_words, value)), 80)
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)


def _method(found: Report) -> list[str]:
    facts = [
        ["source", _cut(" ".join(found.source), 2000)],
        ["fingerprint", str(found.facts["fingerprint"])],
        ["rows a part", f"{found.facts['part_size']:,}"],
    ]
    facts += [[f"{stage.folder}: identity", stage.identity] for stage in found.stages]
    facts += [
        [f"{stage.folder}: {name}", _cut(json.dumps(value, ensure_ascii=False))]
        for stage in found.stages
        for name, value in stage.inputs.items()
    ]
    return [
        report.paragraph("The whole chain, for `ostension curate run`:"),
        report.code(*chain_toml(found).splitlines()),
        report.table(("what", "value"), facts, caption="Hashes: what the parts depend on"),
    ]


def _pictures(work: Work) -> tuple[PairSource | None, str | None]:
    """The source, and why it cannot be opened."""
    if not work.facts.pictures:
        return None, None
    try:
        return work.source, None
    except OstensionError as error:
        return None, f"The source cannot be opened, so samples have no pictures: {_cut(str(error))}"


def _folded(lines: Sequence[str], count: int = 6) -> str:
    if len(lines) <= count:
        return report.bullets(lines)
    return report.bullets(lines[:count]) + report.details(f"{len(lines) - count} more", report.bullets(lines[count:]))


def _last(place: str) -> str:
    """A path or an address without its folders; the whole of it stands among the hashes."""
    return place.rstrip("/").rpartition("/")[2] or place


def _anchor(number: int) -> str:
    return f"stage-{number}"


def _cut(text: str, letters: int = LETTERS) -> str:
    """A text that cannot disturb the page: without controls, turned directions and endless length."""
    plain = "".join("�" if not letter.isprintable() and letter not in " \n\t" else letter for letter in text[: letters + 1])
    return plain if len(plain) <= letters else plain[:letters] + "…"


def _share(part: int, whole: int) -> str:
    return report.percent(part / whole) if whole else ""


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
