"""The page's files over HTTP: what is served, how it is kept, and that no path reaches anything else."""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from page_making import Server, serving
from starlette.applications import Starlette

from ostension.errors import ConfigError
from ostension.serve.page_routes import FOLDER, add_page, read_assets

SECRET = b"not for strangers"


def make_page(folder):
    """A page of two files, with a secret beside it and links to it."""
    root = folder / "page"
    root.mkdir()
    (root / "index.html").write_text('<link href="page/app.js">')
    (root / "app.js").write_text("1")
    (root / "notes.txt").write_bytes(SECRET)
    (folder / "secret.js").write_bytes(SECRET)
    (root / "out.js").symlink_to(folder / "secret.js")
    (root / "within.js").symlink_to(root / "app.js")
    (root / "all").symlink_to(folder)
    return root


def app_of(folder):
    app = Starlette()
    app.router.redirect_slashes = False  # as the service has it
    app.state.version = add_page(app, folder=folder)
    return app


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = make_page(tmp_path_factory.mktemp("page"))
    with serving(lambda: app_of(root)) as running:
        yield running


@pytest.fixture(scope="module")
def shipped():
    with serving(lambda: app_of(FOLDER)) as running:
        yield running


def get(server: Server, path: str, *, method: str = "GET", **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def version(server: Server) -> str:
    return re.search(rb'"page/([0-9a-f]{16})/', get(server, "/")[1])[1].decode()


TRICKS = (
    "/page/{v}/../secret.js", "/page/{v}/%2e%2e/secret.js", "/page/{v}/..%2fsecret.js", "/page/{v}/..%5csecret.js",
    "/page/../secret.js", "/%2e%2e/secret.js", "/../secret.js", "/page/{v}//etc/passwd", "/page/{v}/%2fetc%2fpasswd",
    "//etc/passwd", "/page/{v}/....//secret.js", "/page/{v}/%c0%ae%c0%ae/secret.js", "/page/{v}/./app.js", "/page/{v}/APP.JS",
    "/page/{v}/app.js%00", "/page/{v}/%00", "/page/{v}/app.js%00.html", "/page/{v}/out.js", "/page/{v}/all/secret.js",
    "/page/{v}/notes.txt", "/page/{v}/.", "/page/{v}/", "/page/{v}", "/page/", "/page", "/page/other/app.js",
    "/page/{v}/index.html", "/page/{v}/app.js/",
)  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_no_form_of_a_path_reaches_another_file(server, trick):
    answer, body = get(server, trick.format(v=version(server)))
    assert answer.status == 404
    assert SECRET not in body and b"root:" not in body


def test_an_absolute_address_in_the_request_line_reaches_no_other_file(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert b"root:" not in answer and b" 200 " not in answer.split(b"\r\n")[0]


def test_a_link_inside_the_folder_is_followed_and_one_out_of_it_is_not(tmp_path):
    names = set(read_assets(make_page(tmp_path)))
    assert names == {"index.html", "app.js", "within.js", "words.json"}


def test_a_folder_without_a_page_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no index.html"):
        add_page(Starlette(), folder=tmp_path)


def test_every_answer_forbids_inline_scripts_and_other_hosts_and_guessing_of_types(shipped):
    for path in ("/", f"/page/{version(shipped)}/app.js", f"/page/{version(shipped)}/no.js"):
        answer, _ = get(shipped, path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_is_asked_for_again_and_its_files_are_kept_for_good(shipped):
    index, body = get(shipped, "/")
    assert index.status == 200 and index.headers["Cache-Control"] == "no-cache"
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    again, nothing = get(shipped, "/", If_None_Match=index.headers["ETag"])
    assert again.status == 304 and nothing == b"" and again.headers["ETag"] == index.headers["ETag"]
    assert get(shipped, "/", If_None_Match='"other"')[0].status == 200
    for name in re.findall(rb'"(page/[^"]+)"', body):
        answer, content = get(shipped, "/" + name.decode())
        assert answer.status == 200 and content and "immutable" in answer.headers["Cache-Control"], name
    head, nothing = get(shipped, "/", method="HEAD")
    assert head.status == 200 and nothing == b""


def test_a_change_of_any_file_is_another_version(tmp_path):
    root = make_page(tmp_path)
    first = add_page(Starlette(), folder=root)
    assert add_page(Starlette(), folder=root) == first
    (root / "app.js").write_text("2")
    assert add_page(Starlette(), folder=root) != first


def test_the_shipped_page_has_nothing_inline_and_names_no_other_host():
    assets = read_assets(FOLDER)
    for name, asset in assets.items():
        if name.endswith((".html", ".css", ".js")):
            text = asset.body.decode()
            assert not re.findall(r"https?://[^\s\"'`)]+", text), name
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), name
    index = assets["index.html"].body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)
    identifiers = re.findall(r'\sid="([^"]+)"', index)
    assert len(identifiers) == len(set(identifiers))


def test_the_words_that_the_page_offers_are_the_shipped_ones(shipped):
    from ostension.evals.audit.parts import KINDS, SEVERITIES
    from ostension.text import prompts

    answer, body = get(shipped, f"/page/{version(shipped)}/words.json")
    words = json.loads(body)
    assert answer.headers["Content-Type"] == "application/json"
    assert words["classes"]["cifar10"]["names"] == list(prompts.class_names("cifar10"))
    assert words["templates"].keys() == set(prompts.template_names())
    assert tuple(words["templates"]["openai_imagenet"]) == prompts.templates("openai_imagenet")
    assert words["kinds"].keys() == KINDS.keys() and set(words["severities"]) == set(SEVERITIES)


def test_the_commands_that_the_page_shows_are_those_of_its_documentation():
    shown = re.findall(r"ostension (?:embed|serve) [^\"\\`]*", read_assets(FOLDER)["search.js"].body.decode())
    page = (Path(__file__).parents[2] / "docs" / "howto" / "page.md").read_text(encoding="utf-8")
    assert len(shown) == 2 and all(f"{line}\n" in page for line in shown)
