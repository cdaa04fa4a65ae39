"""The pictures of docs/howto/page.md, from a service that runs: `python scripts/page_pictures.py http://127.0.0.1:8000/`.

They were made with the model of `ostension demo` and a collection of the Noto pictures of the embedded emoji set:

    ostension embed ostension/data/emoji/noto-000.tar -o STORE --model MODEL
    ostension serve --model MODEL --store STORE --previews
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "serve"))

from browser import Browser, Page  # noqa: E402  (the driver of the page's tests)

SHOWN = "[...document.querySelectorAll('.hits img')].filter(one => one.naturalWidth).length >= 14"


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        page = browser.page(width=1180, height=620)
        page.open(url)
        page.wait("document.querySelector('.empty button')")
        page.write("#labels", "cat\ndog\nbicycle\ncar\npizza\npie")
        page.click(".empty button")
        page.wait("document.querySelectorAll('.bars li').length === 15")
        write(page, "page-classify.webp")
        page.click("#tab-search")
        page.write("#search-words", "a heart")
        page.press("Enter")
        page.wait(SHOWN)
        write(page, "page-search.webp")


def write(page: Page, name: str) -> None:
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    data = page.send("Page.captureScreenshot", {"format": "webp", "quality": 70})["data"]
    (ROOT / "docs" / "howto" / name).write_bytes(base64.b64decode(data))


if __name__ == "__main__":
    main(sys.argv[1])
