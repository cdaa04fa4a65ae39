"""Fetching what others name: nothing private is reached, nothing is endless, and every refusal is one line."""

from __future__ import annotations

import gzip
import ipaddress
import pickle
import socket
import ssl
import threading
import time

import pytest
from fetch_samples import AUTHORITY, CERTIFICATE, reply, serving
from hypothesis import given
from hypothesis import strategies as st

from ostension.data import fetch as fetching
from ostension.data.addresses import is_public
from ostension.data.fetch import NO_AI, FetchPolicy, RefusedError, UnansweredError, fetch, shown
from ostension.errors import ConfigError, DataError, LimitError

PICTURE = b"\x89PNG not really, but nobody looks inside here"
# The servers of these tests live on this machine; that is allowed by its address alone, and nothing else is.
HERE = {"networks": ("127.0.0.1",), "ports": None, "timeout_s": 20.0}


def at_home(host, port):
    return ["127.0.0.1"]


def nowhere(host, port):
    raise AssertionError(f"{host} is resolved")


def answering(data: bytes):
    return lambda connection, head: connection.sendall(data)


def get(server, path="/a.png", *, resolve=at_home, host="pictures.example", **policy):
    return fetch(f"http://{host}:{server.port}{path}", policy=FetchPolicy(**{**HERE, **policy}), resolve=resolve)


def test_a_picture_is_fetched_and_nothing_of_ours_is_sent_along(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(answering(reply(PICTURE, Content_Type="image/png"))) as server:
        assert get(server, "/ä b.png?size=1&key=ü#part".replace(" ", "%20")) == PICTURE
        head = server.heads[0].lower()
    assert head.startswith("get /%c3%a4%20b.png?size=1&key=%c3%bc http/1.1\r\n")
    assert f"host: pictures.example:{server.port}\r\n" in head and "accept-encoding: identity" in head
    assert "cookie" not in head and "authorization" not in head and "part" not in head


@pytest.mark.parametrize(
    "data",
    [
        reply(PICTURE),  # no type at all
        reply(PICTURE, Content_Type="application/octet-stream"),
        b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE,  # until the connection ends
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + PICTURE[:16] + b"\r\n"
        + f"{len(PICTURE) - 16:x}".encode() + b"\r\n" + PICTURE[16:] + b"\r\n0\r\n\r\n",
    ],
)
def test_the_ways_of_sending_a_body(data):
    with serving(answering(data)) as server:
        assert get(server) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://pictures.example/_", "ftp://pictures.example/a", "data:image/png;base64,AA==",
        "javascript:1",
        "pictures.example/a.png", "//pictures.example/a", "", "http://", "http:///a", "http://:80/", "http://[::1",
        "http://a..b/",
        "http://user:hunter2@pictures.example/", "http://@pictures.example/", "http://pictures.example:99999/",
        "http://pictures.example:x/",
        "http://pictures.example\\@127.0.0.1/", "http://pictures.example/\r\nHost: other", "http://pictures.example/a b",
        "http://pictures.example/\x00", "http://pictures.example\t.other/", "http://-a.example/", "http://a_b!.example/",
        "http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/", "http://pictures.example/" + "a" * 9_000,
        "http://pictures.example:22/", "http://pictures.example:6379/", "https://pictures.example:8443/",
    ],
)
def test_addresses_that_are_refused_before_any_name_is_looked_up(url):
    with pytest.raises(RefusedError) as caught:
        fetch(url, policy=FetchPolicy(), resolve=nowhere)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "0.0.0.0", "0.1.2.3",
        "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[fe80::1]", "[fc00::1]",
        "[fd00:ec2::254]", "[ff02::1]", "[2002:7f00:1::]", "[2002:808:808::1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::1]", "[2001:0:1::1]", "[2001:db8::1]", "[2606:4700::5efe:a00:1]", "[fe80::1%25eth0]", "[100::1]",
        "[4000::1]",
        # Forms that C libraries and browsers take for 127.0.0.1 or for other numbers.
        "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.1", "127.1", "127.0.1", "127.0.0.1.",
        "0x7f.0.0.0x1", "0", "0x",
        "3232235777", "134744072", "1.2.3.4.5", "8.8.8.08", "foo.0x1", "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1",
    ],
)
def test_private_addresses_and_odd_notations_are_refused_without_asking_anybody(host):
    with pytest.raises(RefusedError):
        fetch(f"http://{host}/", policy=FetchPolicy(), resolve=nowhere)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "64:ff9b::808:808",
                                     "::ffff:8.8.8.8", "2606:4700::5efe:808:808"])
def test_public_addresses_are_public(address):
    assert is_public(address)


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_or_special_is_public(address):
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved
    in_nat64 = address in ipaddress.ip_network("64:ff9b::/96")
    if (special or address.is_unspecified) and not in_nat64 and getattr(address, "ipv4_mapped", None) is None:
        assert not is_public(address)


@pytest.mark.parametrize("name", ["localhost", "localhost.", "LOCALHOST", "printer", "metadata.internal", "a.nip.example"])
def test_names_of_private_addresses_are_refused(name):
    for found in (["127.0.0.1"], ["169.254.169.254"], ["10.1.2.3"], ["::1"], ["::ffff:10.0.0.1"], ["fe80::1%2"]):
        with pytest.raises(RefusedError, match="is not public") as caught:
            fetch(f"http://{name}/", policy=FetchPolicy(), resolve=lambda host, port, found=found: found)
        assert found[0] not in str(caught.value)  # what our name server knows is nobody's business


def test_one_private_address_among_public_ones_refuses_the_host():
    for found in (["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"], ["8.8.8.8", "nonsense"]):
        with pytest.raises(RefusedError, match="is not public|cannot"):
            fetch("http://pictures.example/", policy=FetchPolicy(), resolve=lambda host, port, found=found: found)


def test_allowed_networks_open_themselves_and_nothing_else():
    policy = FetchPolicy(networks=("127.0.0.1", "10.2.0.0/16"))
    assert policy.allows_address("127.0.0.1") and policy.allows_address("10.2.3.4") and policy.allows_address("::ffff:10.2.3.4")
    assert not any(map(policy.allows_address, ("127.0.0.2", "10.3.0.1", "169.254.169.254", "::1", "x", "")))
    assert FetchPolicy(allow_private=True).allows_address("169.254.169.254")
    assert not any(map(FetchPolicy().allows_address, ("127.0.0.1", "::1", "10.2.3.4")))


def test_a_name_that_changes_between_check_and_use_is_asked_once_and_pinned(monkeypatch):
    answers = [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"]]
    asked = []

    def changing(host, port):
        asked.append(host)
        return answers[len(asked) - 1]

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)  # connecting must not look the name up again
    with serving(answering(reply(PICTURE))) as server:
        assert get(server, resolve=changing) == PICTURE
        assert asked == ["pictures.example"]
        with pytest.raises(RefusedError, match="is not public"):
            get(server, resolve=changing)
        assert len(server.heads) == 1


def test_the_next_of_several_addresses_is_taken_if_one_is_dead():
    def three(host, port):
        return ["127.0.0.3", "127.0.0.2", "127.0.0.1"]

    with serving(answering(reply(PICTURE))) as server:
        assert get(server, resolve=three, networks=("127.0.0.0/8",)) == PICTURE


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (("pictures.example",), "pictures.example", True), (("pictures.example",), "PICTURES.example.", True),
        (("pictures.example",), "a.pictures.example", False), (("pictures.example",), "pictures.example.evil.org", False),
        (("*.pictures.example",), "a.b.pictures.example", True), (("*.pictures.example",), "pictures.example", False),
        (("*.pictures.example",), "evilpictures.example", False), ((), "pictures.example", False), (("127.0.0.1",),
        "127.0.0.1", True),
        (("pictures.example",), "127.0.0.1", False), (("bücher.example".encode("idna").decode(),), "Bücher.example", True),
    ],
)
def test_only_hosts_of_the_list_are_fetched(hosts, host, allowed):
    with serving(answering(reply(PICTURE))) as server:
        if allowed:
            assert get(server, host=host, hosts=hosts) == PICTURE
        else:
            with pytest.raises(RefusedError, match="not in the list of allowed hosts"):
                get(server, host=host, hosts=hosts, resolve=nowhere)
            assert not server.heads


@pytest.mark.parametrize("setting", [{"hosts": ("http://a/",)}, {"hosts": ("*",)}, {"hosts": ("A.example",)}, {"ports": (0,)},
                                     {"max_bytes": 0}, {"timeout_s": 0}, {"max_redirects": 99}, {"networks": ("private",)}])
def test_policies_that_cannot_be_meant_are_refused(setting):
    with pytest.raises(ConfigError):
        FetchPolicy(**setting)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status):
    def answer(connection, head):
        if "GET /a.png" in head:
            connection.sendall(reply(status=f"{status} Moved", Location="/ordner/ä.png"))
        else:
            assert "GET /ordner/%C3%A4.png" in head
            connection.sendall(reply(PICTURE))

    with serving(answer) as server:
        assert get(server) == PICTURE


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.2/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "//10.0.0.1/x",
        "http://2130706433/", "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL", "http://user:hunter2@pictures.example/", "http://private.example/",
        "http://other.example/",
        "http://pictures.example\\@private.example/", "", "http://[",
    ],
)
def test_redirects_to_what_is_not_allowed_are_refused(place):
    def resolve(host, port):
        return ["10.0.0.1" if host == "private.example" else "127.0.0.1"]

    hosts = ("pictures.example", "private.example", "127.0.0.2", "169.254.169.254", "::1", "10.0.0.1")
    with serving(answering(reply(status="302 Found", Location=place))) as server:
        with pytest.raises(DataError, match="redirect|not public|without saying") as caught:
            get(server, resolve=resolve, hosts=hosts)
        assert len(server.heads) == 1 and "hunter2" not in str(caught.value) and "10.0.0.1" not in str(caught.value)


def test_endless_redirects_end():
    def answer(connection, head):
        connection.sendall(reply(status="302 Found", Location="/" + head[5:9] + "x"))

    with serving(answer) as server:
        with pytest.raises(LimitError, match="redirects again and again"):
            get(server)
        assert len(server.heads) == 4
        with pytest.raises(LimitError, match="redirects"):
            get(server, max_redirects=0)
        assert len(server.heads) == 5


def test_ten_gigabytes_are_not_read():
    def stream(connection, head):
        length = "Content-Length: 10000000000\r\n" if "said" in head else ""
        chunked = "Transfer-Encoding: chunked\r\n" if "chunked" in head else ""
        connection.sendall(f"HTTP/1.1 200 OK\r\n{length}{chunked}\r\n".encode())
        block = bytes(65536)
        for _ in range(10_000_000_000 // len(block)):
            server.send(connection, b"10000\r\n" + block + b"\r\n" if chunked else block)

    for path in ("/said", "/unsaid", "/chunked"):
        with serving(stream) as server, pytest.raises(LimitError, match="more bytes than allowed; expected at most 1,000,000"):
            get(server, path, max_bytes=1_000_000)
        assert server.sent < 50_000_000  # what the buffers between two programs take


def test_endless_headers_and_interim_answers_are_not_read():
    for flood in (b"X-A: " + b"b" * 1000 + b"\r\n", b"a" * 10_000, b"HTTP/1.1 100 Continue\r\n\r\n"):
        def stream(connection, head, flood=flood):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" if flood.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n")
            while True:
                server.send(connection, flood * 10)

        with serving(stream) as server, pytest.raises((DataError, LimitError)):
            get(server, max_bytes=1_000_000)
        assert server.sent < 50_000_000


def dripping(data: bytes, over: threading.Event):
    def drip(connection, head):
        for byte in data:
            connection.sendall(bytes([byte]))
            if over.wait(0.05):
                return

    return drip


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_slow_answer_ends_with_the_time_for_everything(start):
    """A byte now and then keeps a limit per read from ever being met, so the limit is one for all of it."""
    over = threading.Event()

    def drip(connection, head):
        connection.sendall(start)
        dripping(b"a" * 1000, over)(connection, head)

    with serving(drip) as server:
        try:
            began = time.monotonic()
            with pytest.raises(UnansweredError, match=r"no whole answer in time; expected within 0\.5 s"):
                get(server, timeout_s=0.5)
            assert time.monotonic() - began < 20  # 50 s, were it per read
        finally:
            over.set()


def test_a_silent_server_and_a_silent_name_server_end_in_time():
    over = threading.Event()
    with serving(lambda connection, head: over.wait(20)) as server:
        try:
            with pytest.raises(UnansweredError, match="in time"):
                get(server, timeout_s=0.3)
            with pytest.raises(UnansweredError, match="in time"):
                get(server, timeout_s=0.3, resolve=lambda host, port: over.wait(20) and [])
        finally:
            over.set()


def test_compressed_answers_are_not_opened():
    bomb = gzip.compress(bytes(10_000_000))
    for headers in ({"Content_Encoding": "gzip"}, {"Content_Encoding": "br"}, {"Content_Encoding": "identity, gzip"},
                    {"Transfer_Encoding": "gzip, chunked"}):
        with serving(answering(reply(bomb, **headers))) as server, pytest.raises(DataError, match="compressed"):
            get(server)
    with serving(answering(reply(bomb, Content_Type="application/octet-stream"))) as server:
        assert get(server) == bomb  # a file that is compressed stays as it is


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json", "x" * 300, "text/<script>"])
def test_another_type_than_a_picture_is_refused(kind):
    with serving(answering(reply(b"secret of the inner network", Content_Type=kind))) as server:
        with pytest.raises(DataError, match="the answer is '.*expected image/") as caught:
            get(server)
        assert "secret" not in str(caught.value) and "<" not in str(caught.value) and len(str(caught.value)) < 300
        assert get(server, media_types=())


def test_owners_who_forbid_the_use_are_heard_where_asked_for():
    for said in ("noai", "otherbot: noindex, NoImageAI", "all, noai"):
        with serving(answering(reply(PICTURE, X_Robots_Tag=said))) as server:
            with pytest.raises(RefusedError, match="its owner does not allow"):
                get(server, disallowed=NO_AI)
            assert get(server) == PICTURE
    with serving(answering(reply(PICTURE, X_Robots_Tag="noindex"))) as server:
        assert get(server, disallowed=NO_AI) == PICTURE


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (reply(b"gone", "404 Not Found"), DataError, "answers 404; expected 200"),
        (reply(b"", "206 Partial Content"), DataError, "answers 206"),
        (reply(b"", "304 Not Modified"), DataError, "answers 304"),
        (reply(b"", "503 Busy"), UnansweredError, "answers 503"),
        (reply(b"", "429 Slow down"), UnansweredError, "answers 429"),
        (b"SSH-2.0-OpenSSH_9\r\n", DataError, "not HTTP"),
        (b"", UnansweredError, "cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", UnansweredError, "cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nshort", UnansweredError, "cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nshort", DataError, "not HTTP|cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nshort\r\n0\r\n\r\n", DataError, "not HTTP|cut short"),
        (b"HTTP/1.1 xyz OK\r\n\r\n", DataError, "not HTTP"),
        (b"HTTP/1.1 200 " + b"a" * 70_000, DataError, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", DataError, "not HTTP"),
    ],
)
def test_answers_that_are_no_answers(data, kind, message):
    with serving(answering(data)) as server:
        with pytest.raises(DataError, match=message) as caught:
            get(server)
        assert isinstance(caught.value, kind) and "short" not in str(caught.value).replace("cut short", "")


def test_a_host_that_is_not_there_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnansweredError, match="cannot be reached"):
        fetch(f"http://127.0.0.1:{port}/", policy=FetchPolicy(**HERE))

    def unknown(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    for resolve in (unknown, lambda host, port: []):
        with pytest.raises(UnansweredError, match="the name server knows no address"):
            fetch("http://pictures.example/", policy=FetchPolicy(), resolve=resolve)


def authority(trusted: bool) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=AUTHORITY) if trusted else ssl.create_default_context()


@pytest.fixture
def certificate(tmp_path):
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_certificates_are_checked_for_the_name_although_the_address_is_pinned(certificate):
    with serving(answering(reply(PICTURE)), certificate) as server:
        policy, url = FetchPolicy(**HERE), f"https://pictures.example:{server.port}/"
        assert fetch(url, policy=policy, resolve=at_home, tls=authority(True)) == PICTURE
        assert server.names == ["pictures.example"]
        with pytest.raises(DataError, match="certificate"):
            fetch(url, policy=policy, resolve=at_home, tls=authority(False))
        with pytest.raises(DataError, match="certificate"):
            fetch(url, policy=policy, resolve=at_home)
        with pytest.raises(DataError, match="certificate"):
            fetch(url.replace("pictures", "other"), policy=policy, resolve=at_home, tls=authority(True))
        assert len(server.heads) == 1


def test_tls_with_a_server_that_speaks_none_is_one_line():
    with serving(answering(reply(PICTURE))) as server, pytest.raises(DataError):
        fetch(f"https://pictures.example:{server.port}/", policy=FetchPolicy(**{**HERE, "timeout_s": 1.0}), resolve=at_home)


def test_a_name_server_that_answers_nonsense_is_refused():
    with pytest.raises(RefusedError):
        fetch("http://pictures.example/", policy=FetchPolicy(), resolve=lambda host, port: ["not an address"])


def test_messages_hold_no_query_no_password_and_no_line_break():
    assert shown("https://me:hunter2@a.example/b/c.jpg?key=1234#x") == "https://a.example/b/c.jpg"
    assert shown("http://a?key=1/2@b") == "http://a" and shown("file:/x?y") == "file:/x" and "\n" not in shown("a\nb")
    assert len(shown("http://a/" + "b" * 999)) == 200
    with serving(answering(reply(b"", "404 Not Found"))) as server:
        with pytest.raises(DataError) as caught:
            get(server, "/a.png?X-Signature=1234")
        assert "1234" not in str(caught.value) and "/a.png: answers 404" in str(caught.value)


def test_errors_survive_the_way_between_processes():
    for error in (RefusedError("a", source="b"), UnansweredError("c", expected="d")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


def test_the_resolver_is_the_systems_unless_another_is_given():
    assert set(fetching._resolve("localhost", 80)) & {"127.0.0.1", "::1"}
    with pytest.raises(RefusedError, match="is not public"):
        fetch("http://localhost/", policy=FetchPolicy())
