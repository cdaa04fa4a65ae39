"""The page in a real browser against a real service: a person's path from a dropped picture to numbers, and what goes wrong."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from browser import find_chromium
from page_making import make_pictures, serving, tiny_service

from ostension.serve.client import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (OSTENSION_CHROMIUM names it)"),
]

EVIL = "<img src=x onerror=hit()>"
BARS = "[...document.querySelectorAll('.bars')].map(one => [...one.children].map(bar => bar.innerText.split('\\n')))"


@pytest.fixture(scope="module")
def server():
    with serving(tiny_service()) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"), ["one.png", "two.png", "three.png"])


@pytest.fixture
def page(browser, server):
    server.refuse = 0
    opened = browser.page()
    opened.open(server.url)
    opened.wait("document.querySelector('#model-name').textContent && document.querySelector('#label-sets').options.length > 5")
    yield opened
    elsewhere = [url for url in opened.addresses() if not url.startswith((server.url, "blob:", "data:", "about:"))]
    opened.close()
    assert elsewhere == []


def done(page, count):
    """Wait until so many pictures have bars for the labels that are typed."""
    page.wait(
        f"document.querySelectorAll('.picture').length === {count} && document.querySelector('#classify-results')"
        ".getAttribute('aria-busy') === 'false' && [...document.querySelectorAll('.picture')].every(one => "
        "one.querySelector('.bars li') || one.querySelector('.problem'))"
    )


def copied(page):
    """What "Copy as JSON" copies."""
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#copy-json")
    return json.loads(page.wait("window.copied"))


def answered(server, images, labels, templates):
    """What the service says itself, a dictionary for each picture; it is waited for where it has just been started."""
    with Client(server.url) as client:
        return [dict(row) for row in client.classify(images, labels, templates=templates, top_k=len(labels))]


def test_a_person_drops_pictures_types_labels_and_gets_the_numbers_of_the_service(page, server, pictures):
    page.drop(pictures)
    page.write("#labels", 'red, green\n"blue, or nearly"\n')
    done(page, 3)
    page.choose("#template-sets", "cifar10")
    page.wait("document.querySelector('#prompts-summary').textContent.startsWith('54 prompts')")
    done(page, 3)
    tree = copied(page)
    assert tree["labels"] == ["red", "green", "blue, or nearly"] and len(tree["templates"]) == 18
    expected = answered(server, pictures, tree["labels"], "cifar10")
    for picture, numbers in zip(tree["pictures"], expected, strict=True):
        assert picture["probabilities"] == pytest.approx(numbers, abs=2e-6)
        assert picture["best"] == max(numbers, key=numbers.get)
    shown = page.run(BARS)
    for bars, numbers in zip(shown, expected, strict=True):
        assert [name for name, _ in bars] == sorted(numbers, key=lambda name: -numbers[name])
        said = [float(value.rstrip(" %")) for _, value in bars]
        assert said == pytest.approx(sorted((100 * p for p in numbers.values()), reverse=True), abs=0.051)
    assert page.errors() == []


def test_bars_move_when_labels_change_and_nothing_is_asked_for_twice(page, server, pictures):
    page.set_files("#classify-files", pictures[:2])
    page.write("#labels", "red\ngreen")
    done(page, 2)
    before = page.run(BARS)
    asked = len([path for _, path in server.seen if path == "/v1/embeddings"])
    page.write("#labels", "red\ngreen\nyellow")
    page.wait(f"JSON.stringify({BARS}.map(one => one.length)) === '[3,3]'")
    assert len([path for _, path in server.seen if path == "/v1/embeddings"]) == asked + 1
    page.write("#labels", "green\nred")
    page.wait(f"JSON.stringify({BARS}) === {json.dumps(json.dumps(before))} || {json.dumps(before)}.length && "
              f"JSON.stringify({BARS}.map(one => one.length)) === '[2,2]'")  # fmt: skip
    assert page.run(BARS) == before
    assert len([path for _, path in server.seen if path == "/v1/embeddings"]) == asked + 1


def test_prompts_are_shown_and_templates_without_a_place_for_the_label_are_named(page):
    page.write("#labels", "cat\ndog")
    page.write("#templates", "a drawing of a {}.\na {} and {}\nno place")
    page.wait("document.querySelector('#templates-problems').innerText.includes('a {} and {} | no place')")
    page.click("#prompts-summary")
    assert page.wait("document.querySelector('#prompts-list').innerText") == "a drawing of a cat.\na drawing of a dog."
    assert page.run("document.querySelector('#template-sets').value") == "own"


def test_a_list_of_labels_is_taken_and_the_best_few_are_shown(page, pictures):
    page.set_files("#classify-files", pictures[:1])
    page.choose("#label-sets", "cifar100")
    done(page, 1)
    assert page.text("#labels-said") == "100 labels"
    assert page.run(f"{BARS}[0].length") == 5
    assert "and 95 more labels" in page.text(".picture .hint")
    page.choose("#top", "0")
    assert page.run(f"{BARS}[0].length") == 100
    page.click("input[name=view][value=table]")
    heads = page.run("[...document.querySelectorAll('thead th')].map(one => one.innerText)")
    assert heads[:4] == ["picture", "best", "second", "third"]


def test_the_table_sorts_by_a_label_and_copies_as_csv(page, pictures):
    page.set_files("#classify-files", pictures)
    page.write("#labels", "=cmd\ngreen")
    done(page, 3)
    page.click("input[name=view][value=table]")
    page.click("thead button[data-column=green]")
    values = page.run("[...document.querySelectorAll('tbody tr')].map(row => parseFloat(row.cells[2].innerText))")
    assert values == sorted(values, reverse=True)
    assert page.run("document.querySelectorAll('thead th')[2].getAttribute('aria-sort')") == "descending"
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#copy-csv")
    lines = page.wait("window.copied").split("\r\n")
    assert lines[0] == "picture,best,probability,uncertain,error,'=cmd,green" and len(lines) == 5


def test_what_nobody_waits_for_any_more_is_not_asked_for(page, server, pictures):
    page.set_files("#classify-files", pictures[:1])
    page.choose("#template-sets", "openai_imagenet")
    asked = [path for _, path in server.seen].count("/v1/embeddings")
    page.choose("#label-sets", "cifar100")  # 8,000 prompts, 63 requests
    page.wait("!document.querySelector('#classify-progress').hidden")
    page.write("#labels", "red\ngreen")
    page.wait(f"JSON.stringify({BARS}.map(one => one.map(bar => bar[0]).sort())) === '[[\"green\",\"red\"]]'")
    assert [path for _, path in server.seen].count("/v1/embeddings") < asked + 30
    page.choose("#label-sets", "imagenet")
    page.wait("document.querySelector('#labels-problems').innerText.includes('Too much for a page')")


def test_a_link_carries_labels_and_templates(browser, server, page):
    page.write("#labels", 'chat, "a, b"\nשלום\n🦊 & #1 = "x"')
    page.write("#templates", "une photo d'un {}.\n{} + ?")
    link = page.wait("location.hash.includes('templates=une') && location.href")
    other = browser.page()
    other.open(link)
    other.wait("document.querySelector('#labels-said').textContent === '4 labels'")
    assert other.run("document.querySelector('#labels').value").split("\n") == ["chat", '"a, b"', "שלום", '"🦊 & #1 = ""x"""']
    assert other.run("document.querySelector('#templates').value") == "une photo d'un {}.\n{} + ?"
    other.close()


def test_a_file_that_is_no_picture_is_named_and_its_neighbours_are_answered(page, pictures, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    page.set_files("#classify-files", [pictures[0], bad, pictures[1], empty])
    page.write("#labels", "red\ngreen")
    done(page, 4)
    problems = page.run(
        "[...document.querySelectorAll('.picture')].map(one => [one.querySelector('h4').innerText, "
        "one.querySelector('.problem')?.innerText ?? '', one.querySelectorAll('.bars li').length])"
    )
    assert [(name, bool(said), bars) for name, said, bars in problems] == [
        ("one.png", False, 2), ("notes.png", True, 0), ("two.png", False, 2), ("empty.png", True, 0),
    ]  # fmt: skip
    assert "not a picture" in problems[1][1] and "empty" in problems[3][1]
    assert [one for one in page.errors() if "400 (Bad Request)" not in one] == []


def test_a_label_that_the_model_cannot_take_is_named_and_the_others_are_answered(page, pictures):
    page.set_files("#classify-files", pictures[:1])
    page.write("#labels", "red\ngreen\n" + "far too long " * 100)
    done(page, 1)
    page.wait("document.querySelector('#labels-problems').innerText.includes('A label is left out')")
    assert page.run(f"{BARS}[0].length") == 2


def test_names_of_files_and_labels_are_text_and_never_markup(page, tmp_path):
    page.run("window.hit = () => { window.was_hit = true; }")
    page.set_files("#classify-files", make_pictures(tmp_path, [f"{EVIL}.png"]))
    page.choose("#template-sets", "bare")
    page.write("#labels", f"{EVIL}\n<script>hit()</script>")
    done(page, 1)
    page.click("#prompts-summary")
    page.click("#classify-code summary")
    page.wait("document.querySelector('#classify-snippets').innerText")
    assert EVIL in page.text(".picture h4") and EVIL in page.text(".bars") and EVIL in page.text("#classify-snippets")
    page.click("input[name=view][value=table]")
    assert EVIL in page.text("table")
    assert page.run("document.querySelectorAll('main img[src=x], main script').length") == 0 and not page.run("window.was_hit")


def test_the_browser_itself_refuses_markup_and_inline_scripts(page):
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.run("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(RuntimeError, match="TrustedScript"):
        page.run("document.createElement('a').setAttribute('onclick', 'document.title = 1')")


def test_a_busy_service_is_waited_for_and_said(page, server, pictures):
    page.set_files("#classify-files", pictures[:1])
    done_before = len(server.seen)
    server.refuse = 2
    page.write("#labels", "red\ngreen")
    page.wait("document.querySelector('#connection').innerText.includes('The service is busy. Trying again in 1 second.')")
    done(page, 1)
    assert server.refuse == 0 and len(server.seen) > done_before
    assert page.run("document.querySelector('#connection').innerText") == ""
    assert [one for one in page.errors() if "429 (Too Many Requests)" not in one] == []


def test_a_service_that_stays_busy_ends_in_words_and_a_way_to_try_again(page, server, pictures):
    page.set_files("#classify-files", pictures[:1])
    page.wait("document.querySelector('.picture').getAttribute('aria-busy') === 'false'")
    server.refuse = 6
    page.write("#labels", "red\ngreen")
    page.wait("document.querySelector('#classify-notices').innerText.includes('still busy')")
    page.click("#classify-notices button")
    done(page, 1)


def test_a_stopped_service_is_said_and_work_goes_on_when_it_is_back(browser, pictures):
    with serving(tiny_service()) as server:
        page = browser.page()
        page.open(server.url)
        page.wait("document.querySelector('#model-name').textContent")
        page.set_files("#classify-files", pictures[:1])
        page.write("#labels", "red\ngreen")
        done(page, 1)
        server.stop()
        page.write("#labels", "red\ngreen\nblue")
        page.wait("document.querySelector('#connection').innerText.includes('The service does not answer.')")
        assert page.run("document.querySelector('#labels').value") == "red\ngreen\nblue"
        server.start()
        page.wait(f"{BARS}[0].length === 3")
        assert page.run("document.querySelector('#connection').innerText") == ""
        page.close()


def test_a_key_is_asked_for_and_kept_in_memory_only(browser, pictures):
    with serving(tiny_service(keys=("open sesame, please",))) as server:
        page = browser.page()
        page.open(server.url)
        page.wait("document.querySelector('#key-dialog').open")
        page.type("wrong")
        page.press("Enter")
        page.wait("document.querySelector('#key-said').textContent === 'It did not take that one.'")
        page.type("open sesame, please")
        page.press("Enter")
        page.wait("document.querySelector('#model-name').textContent")
        page.set_files("#classify-files", pictures[:1])
        page.write("#labels", "red\ngreen")
        done(page, 1)
        kept = page.run("JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])")
        assert "sesame" not in kept and "sesame" not in page.run("document.documentElement.outerHTML")
        page.close()


def test_what_comes_before_the_model_is_known_is_answered_when_it_is(browser, server, pictures):
    server.refuse = 2  # of the first question for the model
    page = browser.page()
    page.open(server.url)
    page.wait("document.querySelector('#label-sets').options.length > 5")
    assert page.text("#model-name") == ""
    page.set_files("#classify-files", pictures[:2])
    page.write("#labels", "red\ngreen")
    done(page, 2)
    assert page.errors() == [] or all("429" in one for one in page.errors())
    page.close()


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_a_service_that_comes_back_with_another_model_gives_only_that_ones_numbers(browser, pictures, seen):
    from ostension.model.clip import CLIP
    from ostension.model.presets import preset

    with serving(tiny_service()) as server:
        page = browser.page()
        page.open(server.url)
        page.wait("document.querySelector('#model-name').textContent")
        page.set_files("#classify-files", pictures[:2])
        page.write("#labels", "red\ngreen")
        done(page, 2)
        server.stop()
        server.make = tiny_service(CLIP(preset("tiny-vit"), seed=5).eval())
        if seen:  # the page asks while nobody is there
            page.write("#labels", "red\ngreen\nblue")
            page.wait("document.querySelector('#connection').innerText.includes('The service does not answer.')")
        server.start()
        page.write("#labels", "red\ngreen\nblue")
        expected = answered(server, pictures[:2], ["red", "green", "blue"], "photo")
        shown = json.dumps([sorted(percent(value) for value in numbers.values()) for numbers in expected])
        page.wait(f"JSON.stringify({BARS}.map(one => one.map(bar => bar[1]).sort())) === JSON.stringify({shown})")
        for picture, numbers in zip(copied(page)["pictures"], expected, strict=True):
            assert picture["probabilities"] == pytest.approx(numbers, abs=2e-6)
        page.close()


def percent(value):
    return f"{100 * value:.1f} %"


def test_a_pasted_picture_is_taken_and_a_pasted_text_goes_into_the_field(page, pictures):
    data = base64.b64encode(pictures[0].read_bytes()).decode()
    page.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{data}'), one => one.charCodeAt(0)); "
        "const data = new DataTransfer(); data.items.add(new File([bytes], 'image.png', {type: 'image/png'})); "
        "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); })()"
    )
    page.write("#labels", "red\ngreen")
    done(page, 1)
    page.run(
        "(() => { const data = new DataTransfer(); data.setData('text/plain', 'x'); window.kept = document.body.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})); })()"
    )
    assert page.run("window.kept") and page.run("document.querySelectorAll('.picture').length") == 1


def test_a_request_that_is_never_answered_ends_in_words_and_can_be_tried_again(page, pictures):
    page.run("window.real = fetch; window.fetch = (url, ...rest) => String(url).endsWith('v1/embeddings') "
             "? Promise.reject(new TypeError('Failed to fetch')) : real(url, ...rest); 0")  # fmt: skip
    page.set_files("#classify-files", pictures[:1])
    page.wait("document.querySelector('.problem')?.innerText.includes('closes the connection on this request')")
    page.run("window.fetch = window.real; 0")
    page.write("#labels", "red\ngreen")
    page.run("[...document.querySelectorAll('.picture button')].find(one => one.innerText === 'Try again').click()")
    done(page, 1)
    assert page.run("document.querySelectorAll('.picture .problem').length") == 0
    assert page.run(f"{BARS}[0].length") == 2
    assert "not a picture" not in page.text(".picture")


def test_an_answer_that_breaks_off_is_asked_for_again(page, pictures):
    page.run(
        "(() => { const real = fetch; window.broken = 0; window.fetch = async (url, ...rest) => {"
        " const answer = await real(url, ...rest);"
        " if (!String(url).endsWith('v1/embeddings') || window.broken++) return answer;"
        " return new Response(new ReadableStream({ start(c) { c.enqueue(new TextEncoder().encode('{')); "
        "c.error(new TypeError('network error')); } }), answer); }; })()"
    )
    page.set_files("#classify-files", pictures[:1])
    page.write("#labels", "red\ngreen")
    done(page, 1)
    assert page.run("window.broken") >= 2
    assert page.run(f"{BARS}[0].length") == 2 and page.errors() == []


def test_every_tab_says_why_the_model_is_not_known(browser, server):
    server.refuse = 0
    page = browser.page()
    source = (
        "{ const real = fetch; window.fetch = (url, ...rest) => String(url).endsWith('v1/models') && !window.well "
        "? Promise.resolve(new Response(JSON.stringify({ error: { message: 'it fell over' } }), { status: 500 }))"
        " : real(url, ...rest); }"
    )
    page.send("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    for tab in ("classify", "search", "audit", "model"):
        page.open(f"{server.url}?{tab}#tab={tab}")
        page.wait(f"document.querySelector('#{tab}-notices').innerText.includes('it fell over')")
        assert page.run(f"!document.querySelector('#{tab}').hidden")
    page.run("window.well = true")
    page.click("#model-notices button")
    page.wait("document.querySelector('#model-name').textContent && document.querySelector('#model-card h2')")
    page.close()


def test_each_picture_is_compared_with_each_label_once_and_not_again_for_every_answer(page, tmp_path):
    page.choose("#label-sets", "cifar100")
    page.wait("document.querySelector('#classify-results').getAttribute('aria-busy') === 'false'")
    page.run("window.power = Math.exp; window.powers = 0; Math.exp = (x) => { window.powers += 1; return window.power(x); }; 0")
    page.set_files("#classify-files", make_pictures(tmp_path, [f"{index}.png" for index in range(20)]))
    done(page, 20)
    page.choose("#sort", "sure")
    assert page.run("window.powers") == 20 * 100


def test_prompts_that_are_wanted_now_are_not_let_go_of(page):
    found = page.run(
        "(async () => { const place = document.querySelector('script').src.replace('app.js', 'embeddings.js');"
        " const { Embeddings } = await import(place); const one = new Embeddings({}, null);"
        " one.askTexts = async (batch) => batch.forEach((text) => one.texts.set(text, [1]));"
        " for (let index = 0; index < 100000; index++) one.texts.set(`prompt ${index}`, [0]);"
        " await one.ensure(['prompt 0', 'a new one']); "
        "return [one.texts.size, one.text('prompt 0'), one.text('a new one'), one.text('prompt 1') ?? null]; })()"
    )
    assert found == [100_000, [0], [1], None]


def test_labels_stay_in_the_address_while_another_tab_is_open(page):
    page.write("#labels", "red\ngreen")
    page.click("#tab-model")
    page.click("#tab-search")
    page.wait("location.hash.includes('tab=search') && location.hash.includes('green')")
    page.send("Page.reload")
    page.wait("document.querySelector('#labels-said')?.textContent === '2 labels' && !document.querySelector('#search').hidden")


def test_names_of_labels_have_room_in_a_card(page, pictures):
    page.set_files("#classify-files", pictures[:2])
    page.write("#labels", "a dog on the beach\na street in the rain")
    done(page, 2)
    page.wait("document.querySelectorAll('.bars li').length === 4")
    cut = page.run("[...document.querySelectorAll('.bars .label')].filter(one => one.scrollWidth > one.clientWidth).length")
    assert cut == 0
