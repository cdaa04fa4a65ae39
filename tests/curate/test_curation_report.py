"""The report of a curation: the numbers of the work folder, samples of each reason, and nothing that a text could do."""

from __future__ import annotations

import html.parser
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import curating
from curating import LongestConfig, WordsConfig, lines_of, tar_of

from ostension.cli.main import main
from ostension.curate.base import STAGES
from ostension.curate.candidates import describe
from ostension.curate.chain import read_chain
from ostension.curate.report import report_page
from ostension.curate.report_data import collect
from ostension.curate.report_toml import chain_toml
from ostension.curate.run import begin, run_stage
from ostension.curate.work import Work
from ostension.errors import DataError

CAPTIONS = [f"a photo of thing {number}" if number % 3 else f"thing{number}" for number in range(47)]


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    load = STAGES.load
    monkeypatch.setattr(STAGES, "load", lambda name: curating if name.startswith("test-") else load(name))


@pytest.fixture
def work(tmp_path):
    found = begin(tmp_path / "work", describe([str(tar_of(tmp_path / "a.tar", CAPTIONS))], part_size=10))
    run_stage(found, "test-words", WordsConfig())
    run_stage(found, "test-longest", LongestConfig(share=0.5))
    return found


class Page(html.parser.HTMLParser):
    """The text of a page, its tags and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes = "", set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_numbers_are_those_of_the_work_folder(work):
    found = collect(work)
    words, longest = found.stages[1:]
    assert (words.rows, words.kept, dict(words.reasons)) == (47, 31, {"too few words": 16})
    assert (words.texts, dict(words.text_reasons)) == (47, {"too few words": 16})
    assert (longest.rows, longest.kept) == (31, work.entries[-1].counts()["kept"])
    page = Page(report_page(work, found)).text
    assert f"{longest.kept} of 47 candidates" in page and "test-words: too few words" in page
    assert "It judged 47 captions one by one; 16 went." in page


def test_samples_of_each_reason_are_candidates_that_were_dropped_for_it(work):
    found = collect(work, samples=5)
    (shown,) = found.stages[1].samples.values()
    assert len(shown) == 5 and all(len(sample.texts) == 1 and " " not in sample.texts[0] for sample in shown)
    assert [sample.found["test-words.words"] for sample in shown] == [1] * 5
    (short,) = found.stages[2].samples.values()
    assert all(sample.texts[0].startswith("a photo of thing") for sample in short)
    kept = set(work.part(0).keys + work.part(1).keys + work.part(2).keys + work.part(3).keys + work.part(4).keys)
    assert len(found.kept) == 5 and {sample.key for sample in found.kept} <= kept
    assert collect(work, samples=5) == found and collect(work, samples=5, seed=1) != found
    assert len(collect(work, samples=1000).stages[1].samples["too few words"]) == 16


def test_a_sample_is_drawn_evenly_over_the_parts(tmp_path):
    work = begin(tmp_path / "work", describe([str(lines_of(tmp_path / "a.txt", ["x"] * 3000))], part_size=100))
    run_stage(work, "test-words", WordsConfig())
    ids = [sample.id for sample in collect(work, samples=300).stages[1].samples["too few words"]]
    assert len(set(ids)) == 300
    counts = [sum(first <= one < first + 600 for one in ids) for first in range(0, 3000, 600)]
    assert max(counts) - min(counts) < 50  # 60 each, with a standard deviation of 6.6


def test_the_page_is_one_file_with_pictures_in_it_and_no_script(work, tmp_path, capsys):
    assert main(["curate", "report", str(tmp_path / "work"), "-o", str(tmp_path / "page.html"), "--samples", "3"]) == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "default-src 'none'" in text
    pictures = [value for name, value in page.attributes if name == "src"]
    assert len(pictures) == 9 and all(value.startswith("data:image/webp;base64,") for value in pictures)
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")


HOSTILE = [
    "<script>alert(1)</script> <img src=x onerror=alert(1)> two",
    "\"><svg onload=alert(1)> ' onmouseover='alert(1)",
    "turned \u202e around \x00 and \x1b[31m red",
    "a " + "very long " * 5000 + "caption",
    "</style><style>body{display:none}</style>",
    "`code` &amp; &lt;b&gt; entities",
    "<b>",
]


def test_texts_of_strangers_can_do_nothing(tmp_path):
    rows = [
        {"caption": text.replace("\x00", "\\u0000"), "url": "javascript:alert(1)", "key": "<i>"} for text in HOSTILE
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = begin(tmp_path / "work", describe([str(path)], part_size=10))
    run_stage(work, "test-words", WordsConfig())
    text = report_page(work, collect(work))
    page = Page(text)
    assert page.tags <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "div", "strong", "ul", "li", "b", "span",
        "nav", "main", "section", "h2", "h3", "figure", "figcaption", "svg", "text", "rect", "table", "thead", "tbody", "tr",
        "th", "td", "details", "summary", "pre", "code", "footer", "br",
    }  # fmt: skip
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "javascript:" not in str(page.attributes)
    assert "\u202e" not in text and "\x1b" not in text and len(text) < 60_000
    assert "<script>alert(1)</script> <img src=x" in page.text and text.count("</style>") == 1


def test_a_source_that_is_gone_leaves_the_numbers(work, tmp_path):
    (tmp_path / "a.tar").unlink()
    again = Work(tmp_path / "work")
    page = Page(report_page(again, collect(again)))
    assert "The source cannot be opened, so samples have no pictures" in page.text and "too few words" in page.text
    assert "img" not in page.tags


def test_a_stage_that_has_not_ended_is_said_to_be_so(work, tmp_path):
    (work.entries[-1].folder / "done.json").unlink()
    page = Page(report_page(work, collect(work)))
    assert "test-longest has not ended: run its command again" in page.text and "31 of 47 candidates" in page.text
    (tmp_path / "work" / "00-candidates" / "done.json").unlink()
    with pytest.raises(DataError, match="has not ended"):
        collect(work)


def test_the_numbers_come_as_json_too(work, tmp_path, capsys):
    assert main(["curate", "report", str(tmp_path / "work"), "--json", "--samples", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][1]["reasons"] == {"too few words": 16} and len(found["kept"]) == 1
    assert main(["curate", "report", str(tmp_path / "work"), "--json", "-o", "x"]) == 2
    assert main(["curate", "show", str(tmp_path / "work"), "a/000003", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["dropped_by"], one["dropped"], one["source_texts"]) == ("test-words", "too few words", ["thing3"])
    assert main(["curate", "show", str(tmp_path / "work"), "nothing"]) == 1
    assert "no candidate has the key 'nothing'" in capsys.readouterr().err


def test_the_chain_on_the_page_is_the_one_that_was_run(work, tmp_path):
    path = tmp_path / "chain.toml"
    path.write_text(chain_toml(collect(work, samples=0)))
    chain = read_chain(path)
    assert chain.source == work.facts.source and chain.part_size == 10
    assert [(stage.name, stage.config) for stage in chain.stages] == [
        ("test-words", WordsConfig()), ("test-longest", LongestConfig(share=0.5))
    ]  # fmt: skip


def test_candidates_that_could_not_be_read_are_shown(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a photo of a thing"}\nno JSON\n', encoding="utf-8")
    work = begin(tmp_path / "of captions", describe([str(path)]))
    run_stage(work, "test-words", WordsConfig())
    (sample,) = collect(work).stages[0].samples["not JSON"]
    assert sample.key.endswith(":2") and sample.texts == ()
