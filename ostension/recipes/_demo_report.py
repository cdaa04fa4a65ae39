"""The demo's report: what was trained, how well it names what it never saw, and what that looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.data.embedded import EmojiSet
from ostension.evals import report
from ostension.evals.charts import Estimate, Line, interval_plot, line_chart
from ostension.evals.records import Record
from ostension.evals.retrieval import RECALL_AT
from ostension.recipes._emoji_evaluation import Answer, EmojiEvaluation, Evaluation, Query, pictures

STYLE_NAMES = {
    "noto": "Noto", "twemoji": "Twemoji", "fluent3d": "Fluent 3D", "openmoji": "OpenMoji", "openmoji_black": "OpenMoji line",
}  # fmt: skip
LANGUAGE_NAMES = {
    "en": "English", "de": "German", "es": "Spanish", "fr": "French", "hi": "Hindi", "ja": "Japanese", "ru": "Russian",
    "zh": "Chinese",
}  # fmt: skip
STYLE_EXAMPLES = ("1F98A", "1F355", "1F682", "1F622")  # fox, pizza, locomotive, crying face
MAP_THUMB, GALLERY_THUMB, STYLE_THUMB = 32, 64, 64
CHANCE_KEY = (
    '<ul class="legend"><li><span class="key dot1"></span>the model</li>'
    '<li><span class="key ci"></span>its 95 % interval</li>'
    '<li><span class="key diamond2"></span>nearest labelled picture, pixel by pixel</li>'
    '<li><span class="key tick"></span>chance</li></ul>'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of the run: measured steps of the log, sizes, times and the commands to go on with.

    Attributes:
        log: "step" records of the run log, in order.
        facts: (name, value) rows for the table at the end.
        minutes: wall time of training, in all its sittings, and evaluation.
        parameters, pairs_seen: of the model and its training.
        commands: command lines to go on with.
    """

    log: Sequence[Mapping[str, Any]]
    facts: Sequence[tuple[str, str]]
    minutes: float
    parameters: int
    pairs_seen: int
    commands: Sequence[str]


def build_report(evaluator: EmojiEvaluation, found: Evaluation, run: RunFacts) -> str:
    """The page as HTML."""
    thumbs = _Thumbs(evaluator.emoji)
    records = found.records
    seen, new = records["zero-shot/seen-names"], records["zero-shot/new-names"]
    opening = report.tiles([
        (_percent(seen, "top1"), f"right at the first guess among {_count(seen)} names, in a drawing style never seen. "
                                 f"Chance is {report.percent(seen.metrics['top1'].chance)}"),
        (_percent(new, "top1"), f"right among {_count(new)} names that never occurred in training either. "
                                f"Chance is {report.percent(new.metrics['top1'].chance)}"),
        (_percent(records["retrieval/new-names"], "text_to_image_r5"),
         "of the new names find their picture among the first five"),
        (f"{run.pairs_seen:,}", f"image-text pairs seen by {run.parameters / 1e6:.1f} million weights"),
    ])  # fmt: skip
    sections = [
        _what_it_saw(evaluator, thumbs),
        _training(run),
        _results(records),
        _prompts(records, evaluator),
        _probe(records, found.worth),
        _retrieval(records),
        _gallery(found, evaluator.emoji, thumbs),
        _answers(found, evaluator.emoji, thumbs),
        _map(found, evaluator.emoji, thumbs),
        *([_languages(records)] if any(name.startswith("language/") for name in records) else []),
        _next(run),
    ]
    return report.page(
        title=f"A CLIP that learned emoji from scratch in {_minutes(run.minutes)}",
        eyebrow="Ostension demo",
        lead="Two small towers, one for pictures and one for words, were trained on pairs alone: no class labels, no weights "
        "from elsewhere. This page shows what they can name that training never showed them.",
        opening=opening,
        sections=sections,
        footer=_footer(run),
    )


class _Thumbs:
    """Data URIs of pictures, each made once for each size."""

    def __init__(self, emoji: EmojiSet):
        self.emoji, self.made = emoji, dict[tuple[int, int], str]()
        self.names = emoji.names()

    def data(self, row: int, size: int) -> str:
        if (row, size) not in self.made:
            self.made[row, size] = report.image_data(pictures(self.emoji, np.array([row]))[0], size)
        return self.made[row, size]

    def name(self, row: int) -> str:
        return self.names[self.emoji.concept[row]]


def _what_it_saw(evaluator: EmojiEvaluation, thumbs: _Thumbs) -> str:
    emoji = evaluator.emoji
    wanted = [index for index, concept in enumerate(emoji.concepts) if concept.concept in STYLE_EXAMPLES]
    new_style = emoji.style[evaluator.new_style[0]]
    items = []
    # The style that was held out comes last.
    for style in sorted(range(len(emoji.styles)), key=lambda style: (style == new_style, style)):
        drawn = [np.flatnonzero((emoji.concept == concept) & (emoji.style == style)) for concept in wanted]
        rows = [row for found in drawn for row in found.tolist()]
        name = STYLE_NAMES.get(emoji.styles[style], emoji.styles[style])
        shown = "".join(report.thumb(thumbs.data(row, STYLE_THUMB), f"{thumbs.name(row)}, {name}") for row in rows)
        said = "never seen in training" if style == new_style else "seen in training"
        kind = ' class="new"' if style == new_style else ""
        items.append(f'<li{kind}><div class="four">{shown}</div><b>{report.text(name)}</b><span>{said}</span></li>')
    held_out, total = len(evaluator.held_out), len(emoji.concepts)
    return report.section(
        "data", "What it saw, and what it did not",
        report.paragraph(
            f"The set has {total:,} emoji in five drawing styles. Training saw four of the styles, with "
            f"{total - held_out:,} of the names. The fifth style was left out whole, and so were {held_out} names in every "
            "style. Captions are the names, sometimes with a few keywords, in short templates; pictures get random "
            "backgrounds, small turns and colour changes."
        ),
        f'<ul class="styles">{"".join(items)}</ul>',
    )  # fmt: skip


def _training(run: RunFacts) -> str:
    def chart(name: str, key: str, words: str, *, from_zero: bool, share: bool = False) -> str:
        points = [(float(record["step"]), float(record[key])) for record in run.log if key in record]
        first, last = points[0][1], points[-1][1]
        told = f"{words} From {first:.2f} to {last:.2f} over {points[-1][0]:.0f} steps."
        svg = line_chart(
            [Line(name=name, points=points)], title=name, description=told, x_label="step", y_from_zero=from_zero,
            y_format=(lambda value: f"{100 * value:g} %") if share else (lambda value: f"{value:g}"),
        )  # fmt: skip
        return report.figure(name, svg)

    right = "Pictures whose own caption scored best in the batch."
    charts = [
        chart("Contrastive loss", "loss", "The loss of each batch.", from_zero=False),
        chart("Right in the batch", "image_accuracy", right, from_zero=True, share=True),
        chart("Temperature", "temperature", "The learned softmax temperature.", from_zero=False),
    ]
    return report.section(
        "training", "Training",
        report.paragraph(
            f"Symmetric contrastive loss over {run.pairs_seen:,} pairs with a learned temperature. Every batch is a task of "
            "its own: which of these captions belongs to which of these pictures?"
        ),
        f'<div class="charts">{"".join(charts)}</div>',
    )  # fmt: skip


VIEW_ROWS = (
    ("seen-names", "New style, names seen in training"),
    ("new-names", "New style, names never seen"),
    ("familiar-style", "Familiar style, names never seen"),
    ("all-names", "New style, all names at once"),
)


def _results(records: Mapping[str, Record]) -> str:
    rows, cells = [], []
    for view, label in VIEW_ROWS:
        record, pixels = records[f"zero-shot/{view}"], records[f"nearest-pixels/{view}"]
        top1 = record.metrics["top1"]
        assert top1.interval is not None
        rows.append(Estimate(
            label=label, value=top1.value, low=top1.interval.low, high=top1.interval.high, chance=top1.chance,
            baseline=pixels.metrics["top1"].value, note=f"of {_count(record)}",
        ))  # fmt: skip
        cells.append([
            label, _count(record), report.percent(top1.chance), report.share(pixels.metrics["top1"]), report.share(top1),
            report.share(record.metrics["top5"]), f"{record.metrics['ece'].value:.3f}",
        ])  # fmt: skip
    told = ". ".join(f"{row.label}: {100 * row.value:.1f} percent, chance {report.percent(row.chance)}" for row in rows)
    head = ["", "candidates", "chance", "nearest pixels", "top 1", "top 5", "calibration error"]
    return report.section(
        "results", "Zero-shot: naming pictures by words alone",
        report.paragraph(
            "Each picture is compared with the text of every candidate name; the nearest one is the answer. The baseline takes "
            "the name of the picture in another style that is nearest pixel by pixel. It has labelled pictures of every "
            "candidate to look at, also of the new names, for which the model has nothing but words."
        ),
        f'<figure class="card wide"><figcaption>First guess right</figcaption>'
        f'{interval_plot(rows, title="Zero-shot accuracy", description=told)}{CHANCE_KEY}</figure>',
        report.details("The numbers, with 95 % intervals", report.table(head, cells, caption="Zero-shot accuracy")),
    )  # fmt: skip


def _prompts(records: Mapping[str, Record], evaluator: EmojiEvaluation) -> str:
    cells = []
    for view, label in VIEW_ROWS:
        gain = records[f"prompt-ensemble/{view}"].metrics["top1_gain"]
        assert gain.interval is not None
        cells.append([
            label, report.share(records[f"zero-shot-bare/{view}"].metrics["top1"]),
            report.share(records[f"zero-shot/{view}"].metrics["top1"]),
            f"{100 * gain.value:+.1f} points ({100 * gain.interval.low:+.1f} to {100 * gain.interval.high:+.1f})",
        ])  # fmt: skip
    templates = ", ".join(f'"{template}"' for template in evaluator.templates)
    return report.section(
        "prompts", "Prompt ensemble against bare names",
        report.paragraph(
            f"The classifier above averages the embeddings of {len(evaluator.templates)} prompts a name: {templates}. "
            "Here it stands beside the bare name; the interval of the gain is a paired bootstrap over pictures."
        ),
        report.table(["", "bare name", "ensemble", "gain"], cells, caption="Prompt ensemble against bare names"),
    )  # fmt: skip


def _probe(records: Mapping[str, Record], worth: float | None) -> str:
    probe, zero = records["linear-probe/new-names"], records["zero-shot/new-names"].metrics["top1"].value
    pixels = records["nearest-pixels/new-names"].metrics["top1"].value
    points = [(float(name.split("_")[0]), metric.value) for name, metric in probe.metrics.items()]
    ends = (points[0][0], points[-1][0])
    lines = [
        Line(name="linear probe on the model's features", points=points, colour=3, marks=True),
        Line(name="zero-shot, no labelled pictures", points=[(x, zero) for x in ends], colour=1, dashed=True),
        Line(name="nearest pixels, all labelled pictures", points=[(x, pixels) for x in ends], colour=2, dashed=True),
    ]
    told = "; ".join(f"{x:.0f} pictures: {100 * y:.1f} percent" for x, y in points) + f"; zero-shot {100 * zero:.1f} percent"
    if worth is None:
        verdict = f"Even {ends[1]:.0f} labelled pictures of each name do not bring the probe up to zero-shot."
    elif worth < 1:
        verdict = "A single labelled picture of each name is already worth more to the probe than the words are to zero-shot."
    else:
        verdict = f"Zero-shot is worth about {worth:.1f} labelled pictures of each name."
    chart = line_chart(
        lines, title="Zero-shot against a linear probe", description=told, x_label="labelled pictures of each name",
        x_log2=True, y_from_zero=True, y_format=lambda value: f"{100 * value:g} %", width=660, height=250,
    )  # fmt: skip
    strength, seeds = probe.config["strength"], len(probe.seeds)
    return report.section(
        "probe", "Zero-shot against a linear probe",
        report.paragraph(
            f"The other way to use the model: logistic regression on its picture embeddings, for the {_count(probe)} new "
            f"names, with labelled pictures in the four training styles, tested in the new one. {verdict}"
        ),
        f'<figure class="card wide"><figcaption>New names, new style: first guess right</figcaption>{chart}</figure>',
        report.paragraph(
            f"Mean of {seeds} draws; the penalty's strength (C = {strength:g}) was chosen on left-out training styles.", "note"
        ),
    )  # fmt: skip


def _retrieval(records: Mapping[str, Record]) -> str:
    def one_way(direction: str, caption: str) -> str:
        rows = []
        for view, label in VIEW_ROWS:
            record, pixels = records[f"retrieval/{view}"], records[f"nearest-pixels/{view}"]
            at = [record.metrics[f"{direction}_r{k}"] for k in RECALL_AT]
            base = report.percent(pixels.metrics[f"{direction}_r1"].value)
            rows.append([label, *map(report.share, at), report.percent(at[0].chance), base])
        head = ["", *(f"R@{k}" for k in RECALL_AT), "chance, R@1", "pixels, R@1"]
        return f"<h3>{report.text(caption)}</h3>" + report.table(head, rows, caption=caption)

    return report.section(
        "retrieval", "Retrieval, both ways",
        report.paragraph(
            "The share of texts that find their picture among the first 1, 5 and 10, and of pictures that find their text."
        ),
        one_way("text_to_image", "Text to picture"), one_way("image_to_text", "Picture to text"),
    )  # fmt: skip


def _gallery(found: Evaluation, emoji: EmojiSet, thumbs: _Thumbs) -> str:
    def strips(queries: Sequence[Query]) -> str:
        items = []
        for query in queries:
            best = [(thumbs.data(row, GALLERY_THUMB), thumbs.name(row), row == query.meant) for row in query.found]
            items.append(report.query_strip(query.words, best))
        return f'<ul class="queries">{"".join(items)}</ul>'

    return report.section(
        "gallery", "Ask for a picture",
        report.paragraph(
            f"The eight nearest of all {len(found.map_rows):,} pictures in the new style. Names are drawn by the seed and not "
            "by hand; a ring marks the picture that was meant. The free words are nobody's name and were fixed before there "
            "was a result."
        ),
        "<h3>Names from training, in the style it never saw</h3>", strips(found.seen_queries),
        "<h3>Names that training never saw</h3>", strips(found.new_queries),
        "<h3>Free words</h3>", strips(found.free_queries),
    )  # fmt: skip


def _answers(found: Evaluation, emoji: EmojiSet, thumbs: _Thumbs) -> str:
    def listed(answers: Sequence[Answer]) -> str:
        items = [report.answer(thumbs.data(one.row, GALLERY_THUMB), thumbs.name(one.row), one.best) for one in answers]
        return f'<ul class="answers">{"".join(items)}</ul>'

    return report.section(
        "answers", "Hits and misses",
        report.paragraph(
            "Pictures of new names in the new style with the three most probable of all new names. Both lists are drawn by "
            "the seed."
        ),
        "<h3>Right</h3>", listed(found.hits), "<h3>Wrong</h3>", listed(found.misses),
    )  # fmt: skip


def _map(found: Evaluation, emoji: EmojiSet, thumbs: _Thumbs) -> str:
    items = []
    for row, (column, line) in zip(found.map_rows.tolist(), found.map_cells.tolist(), strict=True):
        held_out = emoji.concepts[emoji.concept[row]].held_out
        name = thumbs.name(row) + (" (new name)" if held_out else "")
        items.append((column, line, thumbs.data(row, MAP_THUMB), name, held_out))
    columns, rows = found.map_size
    told = f"{len(items)} pictures of the new style on a grid; pictures with near embeddings lie near each other."
    drawing = report.picture_map(items, columns=columns, rows=rows, title="Map of the embedding space", description=told)
    return report.section(
        "map", "A map of what it sees",
        report.paragraph(
            "All pictures of the style that training never saw, laid out by their embeddings alone (t\u2011SNE, then one cell "
            "each). Frames mark names that training never saw."
        ),
        drawing,
    )  # fmt: skip


def _languages(records: Mapping[str, Record]) -> str:
    languages = dict.fromkeys(name.split("/")[1] for name in records if name.startswith("language/"))
    rows = [["English", *(report.share(records[f"zero-shot-bare/{view}"].metrics["top1"]) for view, _ in VIEW_ROWS[:2])]]
    for language in languages:
        found = [records[f"language/{language}/{view}"].metrics["top1"] for view, _ in VIEW_ROWS[:2]]
        rows.append([LANGUAGE_NAMES.get(language, language), *(report.share(metric) for metric in found)])
    return report.section(
        "languages", "In other languages",
        report.paragraph("The same pictures, asked for by bare names in other languages, which training saw as captions too."),
        report.table(["", VIEW_ROWS[0][1], VIEW_ROWS[1][1]], rows, caption="Zero-shot accuracy by language"),
    )  # fmt: skip


def _next(run: RunFacts) -> str:
    facts = report.table(["", "value"], [list(row) for row in run.facts], caption="Facts of the run")
    return report.section(
        "next", "Go on", report.paragraph("Three commands to go on with:"), report.code(*run.commands),
        report.details("How this was made", facts),
    )  # fmt: skip


def _footer(run: RunFacts) -> str:
    words = (
        "Pictures: Noto Emoji (Google, Apache-2.0), Twemoji (Twitter and contributors, CC-BY-4.0), Fluent Emoji (Microsoft, "
        "MIT), OpenMoji (CC-BY-SA-4.0); names and keywords from Unicode CLDR through emojibase (MIT). They were made smaller "
        "and are shown here under those licences."
    )
    return report.paragraph(words) + report.paragraph("Every number on this page comes from records.json beside it.")


def _minutes(minutes: float) -> str:
    whole = max(1, round(minutes))
    return "a minute" if whole == 1 else f"{whole} minutes"


def _percent(record: Record, metric: str) -> str:
    return f"{100 * record.metrics[metric].value:.1f} %"


def _count(record: Record) -> str:
    return f"{record.counts['classes']:,}"
