"""Files at URLs: memory and a web server here, with and without ranges."""

from __future__ import annotations

import contextlib
import http.server
import io
import logging
import pickle
import re
import threading
from pathlib import Path

import pytest
from shard_making import members, picture, write_tar

fsspec = pytest.importorskip("fsspec")

from ostension.cli.main import main  # noqa: E402
from ostension.data import remote  # noqa: E402
from ostension.data.leaks import check_disjoint  # noqa: E402
from ostension.data.open import open_pairs  # noqa: E402
from ostension.data.remote import UnreachableError, shown  # noqa: E402
from ostension.errors import ConfigError, DataError, MissingExtraError  # noqa: E402


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def put(files, url, path):
    files.pipe_file(url.removeprefix("memory://"), Path(path).read_bytes())


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a dict of files; counts bytes and requests; fails as often as it is told to."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        content = server.content.get(self.path)
        if server.failures > 0 and not head:
            server.failures -= 1
            self.send_error(503)
            return
        if content is None:
            self.send_error(server.missing)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if found and server.ranges:
            start, stop = int(found[1]), min(int(found[2]) + 1, len(content))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            body = content[start:stop]
        else:
            self.send_response(200)
            body = content
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{server.version}"')
        self.end_headers()
        if not head:
            with contextlib.suppress(OSError):
                self.wfile.write(body)
            server.sent += len(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(content, ranges=True, address="127.0.0.1"):
    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    server.content, server.ranges, server.version, server.failures, server.missing = content, ranges, "v1", 0, 404
    server.requests, server.sent = [], 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tar_bytes(folder, count, start=0, side=8):
    content = []
    for number in range(start, start + count):
        content += [(f"{number:05}.png", picture(number, side)), (f"{number:05}.txt", f"picture {number}".encode())]
    return write_tar(folder / "made.tar", content).read_bytes()


def texts(source):
    return [source.read(index).texts[0] for index in range(len(source))]


def test_shards_in_memory_are_read_by_ranges_and_their_index_is_kept(tmp_path, memory, cache_folder):
    for number in range(3):
        put(memory, f"memory://b/{number:02}.tar", write_tar(tmp_path / "a.tar", members(4, 4 * number)))
    source = open_pairs("memory://b/{00..02}.tar")
    assert texts(source) == [f"picture {number}" for number in range(12)]
    assert source.read(5).image == picture(5) and source.key(5) == "01/00005"
    assert source.fingerprint() == open_pairs("memory://b/*.tar").fingerprint() == open_pairs("memory://b").fingerprint()
    assert len(list((cache_folder / "index").iterdir())) == 3 and not list((cache_folder / "downloads").iterdir())
    assert pickle.loads(pickle.dumps(source)).read(11).texts == ("picture 11",)


def test_the_same_shard_here_and_at_a_url_has_the_same_content(tmp_path, memory):
    path = write_tar(tmp_path / "a.tar", members(4))
    put(memory, "memory://x/other.tar", path)
    here, there = open_pairs(path), open_pairs("memory://x/other.tar")
    assert here.fingerprint() == there.fingerprint()
    with pytest.raises(DataError, match=r"a\.tar: also held out, as other\.tar"):
        check_disjoint(here, there)


def test_file_urls_are_files(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(4))
    assert len(open_pairs(f"file://{path}")) == 4 and path.with_name("a.tar.idx").is_file()


def test_lists_hold_urls_and_paths_and_hosts_with_colons(tmp_path, memory):
    put(memory, "memory://b/a.tar", write_tar(tmp_path / "made.tar", members(2)))
    local = write_tar(tmp_path / "local.tar", members(2, 2))
    with serving({"/c.tar": tar_bytes(tmp_path, 2, 4)}) as (_, url):
        assert texts(open_pairs(f"memory://b/a.tar::{local}::{url}/c.tar")) == [f"picture {number}" for number in range(6)]
        assert texts(open_pairs([f"{url}/c.tar", "memory://b/a.tar"])) == [f"picture {number}" for number in (4, 5, 0, 1)]
    with pytest.raises(UnreachableError, match=r"^http://\[::1\]:1/a\.tar: cannot be read"):
        open_pairs("memory://b/a.tar::http://[::1]:1/a.tar")


def test_a_range_with_a_missing_shard_is_an_error_before_anything_is_read(tmp_path, memory, cache_folder):
    for number in (0, 1, 3):
        put(memory, f"memory://b/{number:02}.tar", write_tar(tmp_path / "a.tar", members(1, number)))
    with pytest.raises(DataError, match=r"^memory://b/02\.tar: no such file or folder; 1 of 4 are missing"):
        open_pairs("memory://b/{00..03}.tar")
    with pytest.raises(DataError, match="no such file"):
        open_pairs("memory://b/x*.tar")
    with pytest.raises(DataError, match="no such file"):
        open_pairs("memory://b/nothing/")
    assert not (cache_folder / "index").exists()


def test_a_web_server_with_ranges_sends_what_is_read_and_little_more(tmp_path):
    content = tar_bytes(tmp_path, 50, side=64)
    with serving({"/a.tar": content}) as (server, url):
        source = open_pairs(f"{url}/a.tar")
        assert server.sent <= 1.1 * len(content)
        server.sent = 0
        assert source.read(7).image == picture(7, 64)
        assert server.sent < len(content) / 5
        server.requests.clear()
        again = open_pairs(f"{url}/a.tar")
        assert again.read(3).texts == ("picture 3",)
        assert [method for method, _, _ in server.requests] == ["HEAD", "GET", "GET"]  # size, whether ranges come, one sample


def test_a_web_server_without_ranges_is_copied_once(tmp_path, caplog, cache_folder):
    content = tar_bytes(tmp_path, 20)
    with serving({"/a.tar": content}, ranges=False) as (server, url), caplog.at_level(logging.WARNING):
        assert texts(open_pairs(f"{url}/a.tar")) == [f"picture {number}" for number in range(20)]
        assert "the server gives no ranges; a copy of 0.1 MB is kept in" in caplog.text
        assert [path.read_bytes() for path in (cache_folder / "copies").rglob("a.tar")] == [content]
        server.sent = 0
        assert texts(open_pairs(f"{url}/a.tar"))[3] == "picture 3"
        assert server.sent == 0


def test_another_version_at_the_same_url_gets_an_index_of_its_own(tmp_path):
    with serving({"/a.tar": tar_bytes(tmp_path, 3)}) as (server, url):
        before = open_pairs(f"{url}/a.tar")
        server.content["/a.tar"], server.version = tar_bytes(tmp_path, 3, start=5), "v2"
        after = open_pairs(f"{url}/a.tar")
        assert texts(after) == ["picture 5", "picture 6", "picture 7"]
        assert before.fingerprint() != after.fingerprint()
        server.content["/a.tar"] = server.content["/a.tar"][:600]
        with pytest.raises((DataError, UnreachableError), match=r"/a\.tar: "):
            after.read(2)


def test_a_network_that_fails_for_a_moment_is_tried_again(tmp_path):
    with serving({"/a.tar": tar_bytes(tmp_path, 3)}) as (server, url):
        source = open_pairs(f"{url}/a.tar")
        server.failures = remote.ATTEMPTS - 1
        assert source.read(1).texts == ("picture 1",)
        server.failures = remote.ATTEMPTS
        with pytest.raises(UnreachableError, match=r"a\.tar: cannot be read: 503.*a run can be resumed"):
            source.read(1)


def test_a_network_that_fails_ends_the_run_and_is_no_bad_sample(tmp_path):
    from shard_making import decode

    from ostension.data.loader import InOrder, Loader

    with serving({"/a.tar": tar_bytes(tmp_path, 8)}) as (server, url):
        loader = Loader(open_pairs(f"{url}/a.tar"), InOrder(8, 4), decode)
        server.failures = 1000
        with pytest.raises(UnreachableError):
            loader.load(0)


def test_worker_processes_read_urls(tmp_path):
    from shard_making import decode

    from ostension.data.loader import InOrder, Loader

    with serving({"/a.tar": tar_bytes(tmp_path, 8)}) as (_, url):
        batches = list(Loader(open_pairs(f"{url}/a.tar"), InOrder(8, 4), decode, workers=1).batches(0, 2))
    assert [number for batch in batches for number in batch.images[:, 0]] == list(range(8))


@pytest.mark.parametrize(("status", "error"), [(404, DataError), (403, UnreachableError), (500, UnreachableError)])
def test_what_cannot_be_read_is_one_line_from_the_command(status, error, capsys):
    with serving({}) as (server, url):
        server.missing = status
        with pytest.raises(error):
            open_pairs(f"{url}/a.tar?token=secret")
        assert main(["data", "inspect", f"{url}/a.tar?token=secret"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and f"{url}/a.tar: " in printed and "secret" not in printed


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(UnreachableError, match=r"^http://127\.0\.0\.1:1/a\.tar: cannot be read: .*check the address"):
        open_pairs("http://127.0.0.1:1/a.tar")


def test_protocols_without_their_package_and_unknown_ones_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match="the protocol foo://"):
        open_pairs("foo://a.tar")
    with pytest.raises(ConfigError, match="commands are not run"):
        open_pairs("pipe:curl http://x/a.tar")
    if not any(found for found in [__import__("importlib.util").util.find_spec("s3fs")]):
        with pytest.raises(MissingExtraError, match="s3:// needs a package .*pip install s3fs"):
            open_pairs("s3://bucket/{000..999}.tar")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ostension\[remote\]'"):
        open_pairs("https://x/a.tar")


def test_the_command_indexes_and_inspects_shards_at_urls(tmp_path, memory, capsys):
    for number in range(2):
        put(memory, f"memory://b/{number}.tar", write_tar(tmp_path / "a.tar", members(3, 3 * number)))
    assert main(["data", "index", "memory://b/{0..1}.tar"]) == 0
    assert capsys.readouterr().out == "memory://b/0.tar: 3 pairs\nmemory://b/1.tar: 3 pairs\n"
    assert main(["data", "index", "memory://b", "--force"]) == 0
    assert main(["data", "inspect", "memory://b/0.tar", "memory://b/1.tar", "--weights", "1", "2"]) == 0
    assert "memory://b/1.tar: 3 pairs, 66.7% of every batch, passed 1.33 times" in capsys.readouterr().out


def test_secrets_in_a_url_are_not_shown():
    assert shown("https://me:word@host/a/b.tar?X-Amz-Signature=1") == "https://host/a/b.tar"


def test_tables_and_parquet_at_urls_read_their_images_from_beside_them(tmp_path, memory):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    for number in range(2):
        memory.pipe_file(f"/t/images/{number}.png", picture(number))
    memory.pipe_file("/t/pairs.csv", b"filepath,title\nimages/0.png,zero\nimages/1.png,one\nimages/2.png,two\n")
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(5)], "caption": ["five"]}), stream)
    memory.pipe_file("/t/a.parquet", stream.getvalue())
    source = open_pairs("memory://t/pairs.csv::memory://t/a.parquet")
    assert source.read(1).image == picture(1) and source.read(1).texts == ("one",)
    with pytest.raises(DataError, match=r"pairs\.csv line 4: '2\.png' cannot be read: no such file"):
        source.read(2)
    assert source.read(3).image == picture(5) and pickle.loads(pickle.dumps(source)).read(3).texts == ("five",)
