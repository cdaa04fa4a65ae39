"""Dumps of a wiki: articles found, wikitext reduced, hostile files refused in one line and in time."""

from __future__ import annotations

import bz2

import pytest
from queries_making import counted_words, plain_counts

from ostension.curate.queries.corpora import Reading, open_corpora
from ostension.curate.queries.counting import count
from ostension.curate.queries.wikitext import articles, plain
from ostension.errors import DataError

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">\n<siteinfo><dbname>enwiki</dbname></siteinfo>\n'


def page(title, text, ns=0, redirect=False):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    mark = '<redirect title="x" />' if redirect else ""
    head = f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{mark}"
    return f"{head}<revision><text xml:space='preserve'>{text}</text></revision></page>\n"


def words_of(folder, path, chunk_bytes=300):
    return dict(counted_words(count(open_corpora([str(path)], Reading()), folder / "counts", chunk_bytes=chunk_bytes)))


@pytest.mark.parametrize("packed", [False, True])
def test_the_words_of_a_dump_are_those_of_its_articles(tmp_path, packed):
    texts = [f"'''Word{number}''' is a [[thing|kind]] of {{{{template|hidden}}}} number\n" for number in range(40)]
    pages = [page(f"T{number}", text) for number, text in enumerate(texts)]
    others = [page("Talk:X", "talk", ns=1), page("R", "#REDIRECT [[x]]", redirect=True)]
    data = (HEAD + "".join(pages[:20] + others + pages[20:]) + "</mediawiki>\n").encode()
    path = tmp_path / ("dump.xml.bz2" if packed else "dump.xml")
    # Two streams, as in multistream dumps.
    path.write_bytes(bz2.compress(data[:2000]) + bz2.compress(data[2000:]) if packed else data)
    assert words_of(tmp_path, path) == plain_counts([f"Word{number} is a kind of . number" for number in range(40)])[0]
    assert len(list((tmp_path / "counts" / "chunks").glob("*.json"))) > 3


def test_of_several_revisions_the_last_one_counts():
    data = "<page><title>A</title><ns>0</ns><revision><text>old</text></revision><revision><text>new</text></revision></page>"
    assert list(articles(data.encode(), "x")) == [("A", "new")]


@pytest.mark.parametrize(
    ("wikitext", "said"),
    [
        ("'''Paris''' is ''the'' [[capital city|capital]] of [[France]].", "Paris is the capital of France."),
        ("a<ref name=b>hidden [[x]]</ref> b<ref name=c /> c", "a b c"),
        ("a <!-- hidden\n --> b", "a  b"),
        ("== History ==\n* item\n# two\n: three", " History \n item\n two\n three"),
        ("[[File:a.png|thumb|The [[Tower|tower]] at night]] after", "\ufffd after"),
        ("[[:Category:Cities|cities]] [[Category:Hidden]]", "cities \ufffd"),
        ("{{a|{{b}}|[[c]]|}} d {{{1|}}} {| class=x\n| {{e}} || f\n|} g", "\ufffd d \ufffd \ufffd g"),
        ("[http://x.org the site] http://x.org/y end", " the site \ufffd end"),
        ("a &amp;nbsp; b&nbsp;c", "a &nbsp; b\xa0c"),
        ("<math>x^2</math><b>bold</b><br/>x <syntaxhighlight lang=c>int</syntaxhighlight>", " bold  x "),
        ("before {{never closed\nafter [[open|link\nend", "before {{never closed\nafter link\nend"),
        ("a }} b ]] c |} d", "a }} b  c |} d"),
        ("", ""),
    ],
)
def test_wikitext_leaves_what_stands_in_the_running_text(wikitext, said):
    assert plain(wikitext) == said


@pytest.mark.parametrize(
    "hostile",
    [
        "{{" * 99_000 + "|}" * 99_000, "[[" * 200_000, "[[a|" * 99_000 + "]]" * 99_000, "<ref>" * 99_000, "<" * 200_000,
        "=" * 200_000, "''" * 99_000, "[//a b" * 99_000, "<!--" * 99_000, "= " * 99_000, "\n" + " " * 200_000, "&" * 200_000,
        "[http://" + "a " * 99_000,
    ],
    ids=lambda text: repr(text[:6]),
)  # fmt: skip
@pytest.mark.timeout(60)  # a step whose time grows with the square of the length would take hours
def test_hostile_wikitext_is_passed_over_once(hostile):
    assert len(plain(hostile)) <= len(hostile)


DOCTYPE = '<!DOCTYPE x SYSTEM "file:///etc/passwd">'
BOMB = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>\n'


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (BOMB + HEAD + "<page><title>&c;</title><ns>0</ns><text>&c;</text></page></mediawiki>", "it has a document type"),
        (HEAD + " " * 5000 + BOMB + "<page><title>A</title><ns>0</ns><text>&c;</text></page></mediawiki>", "undefined entity"),
        (HEAD + "<page><title>A</title><text>x</page></mediawiki>", "mismatched tag"),
        (HEAD + "<page><title>A</title><ns>0</ns><text>x \x01</text></page></mediawiki>", "not well-formed"),
        (HEAD + page("A", "x" * 5000) + DOCTYPE + page("B", "y") + "</mediawiki>", "not XML"),
    ],
    ids=["bomb", "late bomb", "tags", "controls", "late doctype"],
)
def test_a_hostile_dump_is_refused_in_one_line(tmp_path, data, said):
    (tmp_path / "dump.xml").write_text(data)
    with pytest.raises(DataError) as caught:
        words_of(tmp_path, tmp_path / "dump.xml", 10**7)
    assert said in str(caught.value)
    assert "dump.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_dump_without_pages_has_no_words(tmp_path):
    (tmp_path / "dump.xml").write_text(HEAD + "</mediawiki>\n")
    assert words_of(tmp_path, tmp_path / "dump.xml") == {}
