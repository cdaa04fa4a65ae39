"""The HTML page and its charts: escaped, self-contained, readable without eyes."""

from __future__ import annotations

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from ostension.errors import DataError
from ostension.evals import charts, report
from ostension.evals.layout import in_cells, pca, tsne
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric
from ostension.runtime import numpy_generator

HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(html.parser.HTMLParser):
    """Collects elements and checks that every one that opens closes in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def picture(colour=(200, 30, 30, 255), size=64):
    return Image.new("RGBA", (size, size), colour)


def whole_page(words=HOSTILE):
    data = report.image_data(picture(), 48)
    line = charts.Line(name=words, points=[(0.0, 1.0), (10.0, 0.5)])
    row = charts.Estimate(label=words, value=0.4, low=0.3, high=0.5, chance=0.01, baseline=0.2, note=words)
    parts = [
        report.paragraph(words),
        report.figure(words, charts.line_chart([line, line], title=words, description=words, x_label=words)),
        report.figure(words, charts.interval_plot([row], title=words, description=words)),
        report.table([words, "b"], [[words, words]], caption=words),
        report.details(words, report.code(words)),
        "<ul>" + report.query_strip(words, [(data, words, True), (data, words, False)]) + "</ul>",
        "<ul>" + report.answer(data, words, [(words, 0.5)]) + "</ul>",
        report.picture_map([(0, 0, data, words, True)], columns=2, rows=2, title=words, description=words),
    ]
    section = report.section("results", words, *parts)
    opening = report.tiles([(words, words)])
    return report.page(title=words, eyebrow=words, lead=words, opening=opening, sections=[section], footer="")


def test_whatever_comes_from_data_is_text_and_never_markup():
    page = Reader(whole_page())
    assert "script" not in {tag for tag, _ in page.seen}
    assert any(HOSTILE in words for words in page.words)
    assert not any(name.startswith("on") for _, attrs in page.seen for name in attrs)


def test_the_page_loads_nothing_and_its_policy_says_so():
    text = whole_page("plain")
    page = Reader(text)
    addresses = [value for _, attrs in page.seen for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
    assert addresses and all(value.startswith(("data:image/webp;base64,", "#")) for value in addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(attrs["content"] for tag, attrs in page.seen if tag == "meta" and attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_and_chart_has_words_for_a_screen_reader():
    page = Reader(whole_page("plain"))
    for tag, attrs in page.seen:
        if tag == "img":
            assert attrs["alt"]
        if tag == "svg":
            assert attrs["role"] == "img" and attrs["aria-label"]
    tags = [tag for tag, _ in page.seen]
    assert "h1" in tags and "main" in tags and ("html", {"lang": "en"}) in page.seen
    assert {attrs.get("scope") for tag, attrs in page.seen if tag == "th"} == {"col", "row"}


def test_the_page_follows_dark_mode_and_narrow_screens():
    text = whole_page("plain")
    assert "prefers-color-scheme: dark" in text and "max-width: 560px" in text and "width=device-width" in text


def test_thumbnails_are_webp_within_the_size_and_keep_transparency():
    data = report.image_data(Image.new("RGBA", (100, 50), (255, 0, 0, 0)), 40)
    image = Image.open(io.BytesIO(base64.b64decode(data.split(",")[1])))
    assert image.format == "WEBP" and image.size == (40, 20) and image.convert("RGBA").getpixel((5, 5))[3] == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.037), (-3.2, 12.0), (5.0, 5.0), (0.0, 1234.0), (1e-5, 2e-5)])
def test_ticks_are_few_round_and_span_the_range(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])


def test_a_share_shows_its_interval_and_small_ones_keep_two_digits():
    metric = Metric(value=0.4123, count=10, interval=Interval(0.38, 0.44, 0.95, "wilson"))
    assert report.share(metric) == "41.2 % (38.0 to 44.0)"
    assert report.share(Metric(value=0.5, count=1)) == "50.0 %"
    assert (report.percent(0.00072), report.percent(0.218), report.percent(None)) == ("0.072 %", "21.8 %", "")


def planted(count=240, groups=8):
    generator = numpy_generator(0, "layout")
    labels = np.arange(count) % groups
    return generator.normal(size=(groups, 16))[labels] + 0.3 * generator.normal(size=(count, 16)), labels


def test_the_map_keeps_neighbours_together_and_is_the_same_every_time():
    rows, labels = planted()
    places = tsne(rows.astype(np.float32), steps=200)
    assert np.array_equal(places, tsne(rows.astype(np.float32), steps=200))
    distances = ((places[:, None] - places[None]) ** 2).sum(-1) + np.diag(np.full(len(places), np.inf))
    assert (labels[distances.argmin(1)] == labels).mean() > 0.98


def test_principal_axes_hold_the_variance_in_order():
    rows = numpy_generator(1, "pca").normal(size=(300, 5)) * np.array([5.0, 3.0, 1.0, 0.5, 0.1])
    places = pca(rows)
    assert places.var(0) == pytest.approx(np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1][:2])
    assert abs(np.corrcoef(places[:, 0], rows[:, 0])[0, 1]) > 0.99


def test_every_item_gets_a_cell_of_its_own_near_its_place():
    places = numpy_generator(2, "cells").uniform(size=(90, 2))
    cells = in_cells(places, columns=12, rows=8)
    assert len({tuple(cell) for cell in cells}) == 90
    assert cells.min() >= 0 and (cells < [12, 8]).all()
    assert np.corrcoef(cells[:, 0], places[:, 0])[0, 1] > 0.9


def test_maps_that_cannot_be_drawn_are_refused():
    with pytest.raises(DataError, match="10 items"):
        tsne(np.eye(10, dtype=np.float32))
    with pytest.raises(DataError, match="5 items for 2 x 2 cells"):
        in_cells(np.zeros((5, 2)), columns=2, rows=2)
