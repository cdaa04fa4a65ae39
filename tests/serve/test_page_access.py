"""The page without a mouse, without eyes, on a telephone, in the dark: by the browser's own accessibility tree and styles."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from browser import find_chromium
from page_making import make_pictures, make_store, serving, tiny_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (OSTENSION_CHROMIUM names it)"),
]

TABS = ("classify", "search", "audit", "model")
CONTROLS = {"button", "textbox", "searchbox", "combobox", "checkbox", "radio", "slider", "tab", "link", "spinbutton", "listbox",
            "disclosuretriangle", "image", "img", "dialog", "table", "progressbar", "region", "tabpanel", "group"}  # fmt: skip
LABELS = "cat\n" + "photographphotographphotographphotographphotograph" + "\n🦊 fox\nכלב"
# Contrast of every text that is seen with what is behind it, by WCAG 2; large text is allowed 3 to 1.
CONTRAST = """(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const rgb = (color) => { context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => { for (let one = element; one; one = one.parentElement) {
    const color = rgb(getComputedStyle(one).backgroundColor);
    if (color[3] === 255) return color; } return [255, 255, 255, 255]; };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (element.closest('.offscreen, :disabled, option')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least) bad.push([element.className, text.slice(0, 40), ratio]);
  }
  return bad;
})()"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("searched"), {"one.png": "a very long caption " * 10, "two.png": "two"})


@pytest.fixture(scope="module")
def server(store):
    with serving(tiny_service(store=str(store[0]), previews=True)) as running:
        yield running


@pytest.fixture
def page(browser, server):
    opened = browser.page()
    opened.open(server.url)
    opened.wait("document.querySelector('#search-size').textContent")
    yield opened
    opened.close()


def fill(page, folder):
    """Something in every tab."""
    bad = folder / "bad.png"
    bad.write_text("no picture")
    page.set_files("#classify-files", [*make_pictures(folder, ["a name without an end " * 5 + ".png", "b.png"]), bad])
    page.choose("#template-sets", "bare")
    page.write("#labels", LABELS)
    page.wait("document.querySelectorAll('.bars li').length === 8 && document.querySelector('.problem')")
    page.run("[...document.querySelectorAll('details')].forEach(one => { one.open = true; })")
    page.click("#tab-audit")
    page.click("#audit-run")
    page.wait("document.querySelector('#audit-results .verdict')")
    page.click("#tab-search")
    page.write("#search-words", "a boat")
    page.press("Enter")
    page.wait("[...document.querySelectorAll('.hits img')].filter(one => one.naturalWidth).length === 2")
    page.run("[...document.querySelectorAll('details')].forEach(one => { one.open = true; })")


def views(page):
    """Each tab in turn, the table of the first one, the dialogue of a hit, and that of the key."""
    for tab in TABS:
        page.click(f"#tab-{tab}")
        yield tab
        if tab == "classify":
            page.click("input[name=view][value=table]")
            yield "table"
            page.click("input[name=view][value=cards]")
        if tab == "search":
            page.click(".hits .open")
            page.wait("document.querySelector('#item-dialog').open")
            yield "hit"
            page.press("Escape")
    page.run("document.querySelector('#key-dialog').showModal()")
    yield "key"
    page.press("Escape")


def test_every_control_has_a_name_and_every_view_its_landmarks(page, tmp_path):
    fill(page, tmp_path)
    for view in views(page):
        nodes = page.tree()
        named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
        nameless = [role for role, name in named if role.lower() in CONTROLS - {"group", "image"} and not name.strip()]
        assert nameless == [], view
        roles = {role for role, _ in named}
        if view not in ("hit", "key"):  # a dialogue hides the rest, as it should
            assert {"banner", "main", "contentinfo", "tablist", "heading", "tabpanel"} <= roles, view
            headings = page.run("[...document.querySelectorAll('h1, h2, h3, h4')].filter(one => one.checkVisibility())"
                                ".map(one => Number(one.tagName[1]))")  # fmt: skip
            assert all(after - before <= 1 for before, after in itertools.pairwise(headings)), (view, headings)
        assert page.run("[...document.querySelectorAll('[id]')].length === new Set([...document.querySelectorAll('[id]')]"
                        ".map(one => one.id)).size")  # fmt: skip
        described = page.run("[...document.querySelectorAll('[aria-labelledby],[aria-describedby],[aria-controls],label[for]')]"
                             ".flatMap(one => [one.getAttribute('aria-labelledby'), one.getAttribute('aria-describedby'), "
                             "one.getAttribute('aria-controls'), one.htmlFor]).filter(Boolean).join(' ').split(' ')"
                             ".filter(id => !document.getElementById(id))")  # fmt: skip
        assert described == [], view


@pytest.mark.skipif("OSTENSION_AXE" not in os.environ, reason="OSTENSION_AXE names no axe.min.js (npm pack axe-core)")
def test_axe_finds_nothing(page, tmp_path):
    fill(page, tmp_path)
    page.run(Path(os.environ["OSTENSION_AXE"]).read_text() + ";0")
    for view in views(page):
        found = page.run("axe.run(document, {resultTypes: ['violations']}).then(one => one.violations.map("
                         "rule => [rule.id, rule.nodes[0].html.slice(0, 200)]))")  # fmt: skip
        assert found == [], view


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_told_from_what_is_behind_it(page, tmp_path, dark):
    page.look(width=1280, dark=dark)
    fill(page, tmp_path)
    for view in views(page):
        assert page.run(CONTRAST) == [], view


def test_nothing_is_wider_than_a_telephone(page, tmp_path):
    page.look(width=360, height=740)
    fill(page, tmp_path)
    for view in views(page):
        assert page.run("document.documentElement.scrollWidth") <= 360, view


def test_the_whole_way_goes_by_keyboard(page, store):
    page.press("Tab")
    assert page.focused() == "skip"
    page.press("Enter")
    assert page.focused() == "main"
    page.press("Tab")
    assert page.focused() == "classify-files"
    page.set_files("#classify-files", store[1])  # what the file dialogue would do
    page.press("Tab")
    assert page.focused() == "labels"
    page.type("red\ngreen")
    page.wait("document.querySelectorAll('.bars li').length === 4")
    reached = walk(page)
    for control in ("label-sets", "labels-clear", "template-sets", "templates", "copy-csv", "copy-json", "copy-link",
                    "pictures-clear", "sort", "top", "Remove one.png", "Remove two.png"):  # fmt: skip
        assert control in reached, (control, reached)
    page.run("document.querySelector('.remove').focus()")
    page.press("Enter")
    page.wait("document.querySelectorAll('.picture').length === 1")
    assert page.focused() == "Remove two.png"  # the focus is never lost
    page.run("document.querySelector('#tab-classify').focus()")
    page.press("ArrowRight")
    assert page.focused() == "tab-search" and page.run("!document.querySelector('#search').hidden")
    page.press("End")
    assert page.focused() == "tab-model"
    page.press("ArrowRight")
    assert page.focused() == "tab-classify"
    page.run("document.querySelector('input[name=view]:checked').focus()")
    page.press("ArrowRight")
    page.wait("document.querySelector('#classify-results table')")


def walk(page):
    """What the Tab key reaches from here until it leaves the page; each with an outline, and nothing twice in a row."""
    reached = []
    for _ in range(80):
        page.press("Tab")
        if page.run("document.activeElement === document.body"):
            return reached
        now = page.focused()
        assert not reached or now != reached[-1], f"the focus stays at {now}"
        seen = page.run(
            "(() => { for (let e = document.activeElement; e; e = e.parentElement) { const style = getComputedStyle(e); "
            "if (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2) return true; } "
            "return document.activeElement.parentElement.matches('.choice label'); })()"
        )
        assert seen, f"{now} has the focus and does not show it"
        reached.append(now)
    raise AssertionError(f"the Tab key never leaves: {reached}")


def test_results_and_errors_are_announced(page, store, tmp_path):
    page.set_files("#classify-files", store[1][:1])
    page.write("#labels", "red\ngreen")
    said = page.wait("document.querySelector('#announcer').textContent")
    assert said.startswith("one.png: ") and said.endswith(" %")
    assert page.run("document.querySelector('#announcer').getAttribute('aria-live')") == "polite"
    bad = tmp_path / "bad.png"
    bad.write_text("x")
    page.set_files("#classify-files", [bad])
    page.wait("document.querySelector('.problem')?.getAttribute('role') === 'alert'")


def test_bars_glide_unless_motion_is_unwelcome(page, store):
    page.set_files("#classify-files", store[1][:1])
    page.write("#labels", "red\ngreen")
    page.wait("document.querySelector('.fill')")
    duration = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
    assert page.run(duration) == "0s"
    page.look(width=1280, reduced=False)
    assert page.run(duration) == "0.22s"
