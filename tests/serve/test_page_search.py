"""The page's search, audit and model card in a real browser, over a small collection with hostile names in it."""

from __future__ import annotations

import base64
import json
import urllib.request

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from browser import find_chromium
from page_making import make_pictures, make_store, serving, tiny_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (OSTENSION_CHROMIUM names it)"),
]

EVIL = "<img src=x onerror=hit()>"
CAPTIONS = {
    "beach.png": "a beach", "boat.png": "a boat", "dog.png": EVIL, f"{EVIL}.png": "a file with a hostile name",
    "rtl.png": "כלב על החוף", "six.png": "six", "me - you.png": "seven",
}  # fmt: skip
IDLE = "document.querySelector('#search-results').getAttribute('aria-busy') === 'false'"
COLUMNS = "getComputedStyle(document.querySelector('.hits')).gridTemplateColumns.split(' ').length"
HITS = "[...document.querySelectorAll('.hits .said')].map(one => one.innerText)"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("searched"), CAPTIONS)


@pytest.fixture(scope="module")
def server(store):
    with serving(tiny_service(store=str(store[0]), previews=True)) as running:
        yield running


@pytest.fixture
def page(browser, server):
    opened = browser.page()
    opened.open(server.url + "#tab=search")
    opened.wait("document.querySelector('#search-size').textContent")
    yield opened
    elsewhere = [url for url in opened.addresses() if not url.startswith((server.url, "blob:", "data:", "about:"))]
    opened.close()
    assert elsewhere == []


def search(page, words):
    page.write("#search-words", words)
    page.press("Enter")
    return hits(page)


def hits(page):
    page.wait(f"document.querySelector('.hits') && {IDLE}")
    return page.run(HITS)


def post(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def asked(server, query):
    return [hit["fields"]["texts"][0] for hit in post(server, "v1/search", {"query": query, "k": 24})["data"]]


def vector_of(server, query):
    return np.array(post(server, "v1/search", {"query": query, "k": 0, "vectors": True})["vector"])


def embedded(server, items):
    return np.array([one["embedding"] for one in post(server, "v1/embeddings", {"input": items})["data"]])


def test_words_find_what_the_service_finds_and_pictures_are_shown(page, server):
    assert page.text("#search-size") == "7 pictures in “default”."
    assert search(page, "a dog on the beach") == asked(server, {"text": "a dog on the beach"})
    page.wait("[...document.querySelectorAll('.hits img.preview')].filter(one => one.naturalWidth > 0).length === 7")
    assert page.run("[...document.querySelectorAll('.hits img')].map(one => one.alt)") == page.run(HITS)
    assert search(page, "beach - people + boat") == asked(server, {"expression": "beach - people + boat"})
    assert page.errors() == []


def test_a_picture_finds_itself_and_words_are_weighed_against_it(page, server, store):
    page.set_files("#search-file", [store[1][1]])
    assert hits(page)[0] == "a boat"
    assert page.text(".hits .score") == "1.000"
    both = search(page, "a beach")
    assert page.run("!document.querySelector('#search-weight-label').hidden")
    rows = embedded(server, [{"text": "a beach"}, {"image": base64.b64encode(store[1][1].read_bytes()).decode()}])
    assert both == asked(server, {"vector": (rows[0] + rows[1]).tolist()})
    weight = "document.querySelector('#search-weight')"
    page.run(f"{weight}.value = 0; {weight}.dispatchEvent(new Event('input'))")
    words = asked(server, {"text": "a beach"})
    page.wait(f"{HITS}.join('|') === {json.dumps('|'.join(words))}")


def test_what_is_like_a_hit_is_found_and_hits_are_added_and_taken_away(page, server):
    search(page, "a boat")
    place = page.run(HITS).index("six") + 1
    page.click(f".hits li:nth-child({place}) .like")
    page.wait(f"{HITS}[0] === 'six'")
    assert "more like six" in page.text("#search-terms") and page.run("document.querySelector('#search-words').value") == ""
    page.click(".hits li:nth-child(2) .open")
    page.wait("document.querySelector('#item-dialog').open")
    other = page.text("#item-title")
    assert "shelf" in page.text("#item-dialog")
    page.run("[...document.querySelectorAll('#item-dialog button')].find(one => one.innerText.includes('take away')).click()")
    page.wait("document.querySelectorAll('#search-terms li').length === 2")
    page.wait(IDLE)
    ids = {caption: hit for hit, caption in zip(CAPTIONS, CAPTIONS.values(), strict=True)}
    expected = asked(server, {"expression": f"+ @{ids['six']} - @{ids[other]}"})
    assert page.run(HITS) == expected


def test_a_hit_whose_id_looks_like_arithmetic_is_added_all_the_same(page, server):
    place = search(page, "a boat").index("seven") + 1
    page.click(f".hits li:nth-child({place}) .open")
    page.run("[...document.querySelectorAll('#item-dialog button')].find(one => one.innerText.includes('add to')).click()")
    words, other = embedded(server, [{"text": "a boat"}]), vector_of(server, {"id": "me - you.png"})
    expected = asked(server, {"vector": (words[0] + other).tolist()})
    page.wait(f"{HITS}.join('|') === {json.dumps('|'.join(expected))}")
    assert "more like seven" in page.text("#search-terms") and page.errors() == []


def test_a_filter_narrows_and_a_wrong_one_is_explained(page):
    search(page, "a boat")
    page.click("#search-filter summary")
    fields = page.run("[...document.querySelectorAll('#search-fields button')].map(one => one.innerText)")
    assert "shelf" in fields and "number" in fields and "digest" not in fields
    page.click(f"#search-fields button:nth-of-type({fields.index('shelf') + 1})")
    page.type("odd")
    page.press("Enter")
    page.wait("document.querySelectorAll('.hits li').length === 3")
    page.write("#search-where", "nosuch = 1")
    page.press("Enter")
    page.wait("document.querySelector('#search-notices').innerText.includes('nosuch')")
    page.write("#search-where", "number > 100")
    page.press("Enter")
    page.wait("document.querySelector('#search-results').innerText.includes('Nothing in this collection meets the filter')")


def test_near_duplicates_fold_into_the_best_of_them(page):
    count = len(search(page, "a boat"))
    page.click("#search-fold")
    page.wait("document.querySelector('#search-results .hint').innerText.includes('folded')")
    assert len(page.run(HITS)) < count
    folded = page.run("[...document.querySelectorAll('.hits .near')].map(one => parseInt(one.innerText.slice(1)))")
    assert sum(folded) + len(page.run(HITS)) == count


def test_what_a_store_says_is_text_and_never_markup(page):
    page.run("window.hit = () => { window.was_hit = true; }")
    found = search(page, EVIL)
    assert EVIL in found and "a file with a hostile name" in found
    page.wait("[...document.querySelectorAll('.hits img.preview')].filter(one => one.naturalWidth > 0).length === 7")
    for place in range(1, len(found) + 1):
        page.click(f".hits li:nth-child({place}) .open")
        page.wait("document.querySelector('#item-dialog').open")
        page.press("Escape")
    assert not page.run("window.was_hit") and page.run("document.querySelectorAll('img[src=x], main script').length") == 0
    assert page.errors() == []


def test_arrow_keys_move_between_hits_and_escape_returns_to_the_one_that_was_open(page):
    search(page, "a boat")
    page.run("document.querySelector('.hits .open').focus()")
    inside = "[...document.querySelectorAll('.hits li')].findIndex(one => one.contains(document.activeElement))"
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 6), ("ArrowRight", 6), ("Home", 0)):
        page.press(key)
        assert page.run(inside) == place, key
    columns = page.run(COLUMNS)
    page.look(width=700)
    page.wait(f"{COLUMNS} < {columns}")
    page.press("ArrowDown")
    assert page.run(inside) == page.run(COLUMNS)
    assert page.run("[...document.querySelectorAll('.hits .open')].filter(one => one.tabIndex === 0).length") == 1
    page.press("Enter")
    page.wait("document.querySelector('#item-dialog').open")
    page.press("Escape")
    page.wait("!document.querySelector('#item-dialog').open")
    assert page.run(inside) > 0


def test_a_link_carries_the_query_and_searches_at_once(browser, server, page):
    search(page, "a boat & a #beach")
    link = page.wait("location.hash.includes('beach') && location.href")
    other = browser.page()
    other.open(link)
    assert hits(other) == page.run(HITS)
    other.close()


def test_labels_are_audited_with_findings_that_can_be_read(page):
    page.click("#tab-audit")
    assert page.run("document.querySelector('#audit-run').disabled")
    page.click("#tab-classify")
    page.write("#labels", "crane\ncat\nno helmet\nIMG_0001\n<img src=x>")
    page.click("#tab-audit")
    page.click("#audit-run")
    page.wait("document.querySelector('#audit-results .verdict')")
    said = page.text("#audit-results")
    assert "Change before use" in said and "'no helmet' says what is not there" in said and "Do:" in said
    assert "crane" in said and page.run("document.querySelectorAll('#audit-results img').length") == 0
    page.click("#tab-classify")
    page.write("#labels", "crane\ncat")
    page.click("#tab-audit")
    assert page.run("document.querySelector('#audit-results').classList.contains('old')")
    assert page.errors() == []


def test_the_model_card_says_what_is_known_and_what_is_not(page, server):
    page.click("#tab-model")
    said = page.text("#model-card")
    with urllib.request.urlopen(server.url + "v1/models", timeout=60) as answer:
        card = json.load(answer)["data"][0]
    assert card["sha256"] in said and f"{card['embed_dim']} numbers" in said and "Limits of this service" in said
    assert "Licence\nnot recorded with the model" in said and "default (7)" in said


def test_without_a_store_it_says_how_to_make_one(browser):
    with serving(tiny_service()) as server:
        page = browser.page()
        page.open(server.url + "#tab=search")
        page.wait("document.querySelector('#search-none').innerText.includes('ostension embed PICTURES -o STORE')")
        assert page.run("document.querySelector('#search-form').hidden")
        page.close()


def test_previews_that_are_off_leave_plain_tiles(browser, store):
    with serving(tiny_service(store=str(store[0]))) as server:
        page = browser.page()
        page.open(server.url + "#tab=search")
        page.wait("document.querySelector('#search-size').textContent")
        assert len(search(page, "a boat")) == 7
        assert page.run("document.querySelectorAll('.hits img').length") == 0
        assert not [url for url in page.addresses() if url.endswith("/preview")]
        page.close()


def test_a_file_that_is_no_picture_is_named(page, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("nothing to see")
    page.set_files("#search-file", [bad])
    page.wait("document.querySelector('#search-notices').innerText.includes('notes.png: not a picture')")
    page.set_files("#search-file", make_pictures(tmp_path, ["good.png"]))
    assert len(hits(page)) == 7
