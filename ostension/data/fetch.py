"""What lies at a web address that somebody else chose, fetched without reaching anything that they should not reach.

A name is resolved once. Every address that it has must be public, and the connection goes to an address that was checked,
never to the name again, so an answer of the name server that changes in between changes nothing. Redirects are followed
here, each checked like the first address. Size and time are limited while the answer comes. Nothing is decompressed, no
proxy is used, and no variable of the environment, no cookie and no password is sent.

The messages tell what was refused and never what was found: not the addresses of a name, no part of an answer, and no
query of a URL, which may hold a key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ostension
from ostension.config import require
from ostension.data.addresses import is_public, lies_in
from ostension.errors import DataError, LimitError

Resolver = Callable[[str, int], Sequence[str]]

NO_AI = ("noai", "noimageai")  # what X-Robots-Tag says where pictures are not to be used for training
_REDIRECTS = (301, 302, 303, 307, 308)
_LATER = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one next time
_PORTS = {"http": 80, "https": 443}
_MAX_URL = 8_192
_MAX_HEAD = 128 * 1024  # bytes beside the body: status, headers, the sizes of chunks
_CHUNK = 64 * 1024
_PATTERN = re.compile(r"(\*\.)?([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}|\[?[0-9a-f:.]+\]?")
_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?")
# A host whose last part is a number is an address in every browser and every C library, whatever its form.
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)


class RefusedError(DataError):
    """An address that may not be fetched; it will not be allowed next time either."""


class UnansweredError(DataError):
    """An address that did not answer in time, or not now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """What may be fetched, and how much of it.

    Attributes:
        hosts: the hosts that are allowed, "pictures.example" or "*.pictures.example" (every name under it, not itself);
            None allows every public host. Redirects have to stay with them.
        ports: the ports that are allowed; None allows all.
        max_bytes: most bytes of an answer.
        timeout_s: seconds for everything together: name server, connections, redirects and the last byte.
        max_redirects: most redirects.
        media_types: what the answer's Content-Type must begin with, if it has one; empty allows all.
        disallowed: words of the header X-Robots-Tag that forbid to use the answer, for example `NO_AI`.
        networks: networks that may be reached although they are not public, "10.2.0.0/16" or "127.0.0.1".
        allow_private: reach every address. Only for a user's own list of addresses, never for those of strangers.
    """

    hosts: tuple[str, ...] | None = None
    ports: tuple[int, ...] | None = (80, 443)
    max_bytes: int = 20_000_000
    timeout_s: float = 10.0
    max_redirects: int = 3
    media_types: tuple[str, ...] = ("image/", "application/octet-stream", "binary/octet-stream")
    disallowed: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    allow_private: bool = False

    def __post_init__(self):
        for host in self.hosts or ():
            require(bool(_PATTERN.fullmatch(host)), "hosts", host, "names like 'pictures.example' or '*.pictures.example'")
        for port in self.ports or ():
            require(0 < port < 65_536, "ports", port, "numbers from 1 to 65535")
        require(self.max_bytes > 0, "max_bytes", self.max_bytes, "at least 1")
        require(0 < self.timeout_s <= 3_600, "timeout_s", self.timeout_s, "more than 0 and at most 3600")
        require(0 <= self.max_redirects <= 20, "max_redirects", self.max_redirects, "0 to 20")
        for network in self.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                require(False, "networks", network, "an address or a network like '10.2.0.0/16'")

    def allows_host(self, host: str) -> bool:
        """Whether the list of hosts has this one."""
        if self.hosts is None:
            return True
        host = host.rstrip(".")
        return any(
            host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern.strip("[]") for pattern in self.hosts
        )

    def allows_address(self, address: str) -> bool:
        """Whether this address may be connected to."""
        try:
            return is_public(address) or self.allow_private or lies_in(address, map(ipaddress.ip_network, self.networks))
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True)
class _Target:
    """A URL taken apart: `host` in ASCII, `path` with its query as it goes over the wire."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self._host()}:{self.port}{self.path}"

    @property
    def header(self) -> str:
        """What the header Host says."""
        return self._host() if self.port == _PORTS[self.scheme] else f"{self._host()}:{self.port}"

    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def fetch(url: str, *, policy: FetchPolicy, resolve: Resolver | None = None, tls: ssl.SSLContext | None = None) -> bytes:
    """The bytes at a web address.

    Args:
        url: an http or https address.
        policy: what may be fetched.
        resolve: gives the addresses of a host and a port; the system's name server if None.
        tls: checks the certificates; the system's authorities if None.

    Raises:
        RefusedError (a DataError): for an address that `policy` does not allow, before anything is sent to it.
        UnansweredError (a DataError): if no answer comes in time, or one that may be another later.
        DataError: for an answer that cannot be used.
        LimitError: for too many bytes or redirects.
    """
    deadline = time.monotonic() + policy.timeout_s
    name = shown(url)
    with _one_line(name, policy):
        target = _parse(url, policy, name)
        for _ in range(policy.max_redirects + 1):
            addresses = _addresses(target, policy, resolve or _resolve, deadline, name)
            with _connected(target, addresses, deadline, tls) as connection:
                found = _ask(connection, target, policy, deadline, name)
            if isinstance(found, bytes):
                return found
            target = _parse(found, policy, name, redirected=True)
        raise LimitError("redirects again and again", source=name, expected=f"at most {policy.max_redirects} redirects")


def shown(url: str) -> str:
    """A web address for messages: without user, password, query and fragment, at most 200 characters."""
    scheme, separator, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    if not separator:
        scheme, separator, rest = scheme.partition(":")
    host, slash, path = rest.partition("/")
    text = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _parse(url: str, policy: FetchPolicy, name: str, redirected: bool = False) -> _Target:
    """A URL in parts, if the policy allows it."""
    where = "it redirects to " if redirected else ""
    if len(url) > _MAX_URL:
        raise RefusedError(f"{where}a web address of {len(url):,} characters", source=name, expected=f"at most {_MAX_URL:,}")
    # Programs differ in what they make of these signs, and that is how one address is checked and another one asked.
    if not url.isprintable() or any(sign.isspace() or sign == "\\" for sign in url):
        raise RefusedError(f"{where}a web address with spaces, control signs or backslashes", source=name)
    try:
        parts = urllib.parse.urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise RefusedError(f"{where}something that is no web address", source=name) from None
    if parts.scheme not in _PORTS:
        raise RefusedError(f"{where}{parts.scheme or 'no'!r} as protocol", source=name, expected="http or https")
    if "@" in parts.netloc:
        raise RefusedError(f"{where}a web address with a user or password", source=name, fix="leave them out")
    host = _ascii_host(host, f"{where}an address whose host cannot be used", name)
    port = port if port is not None else _PORTS[parts.scheme]
    if not policy.allows_host(host):
        raise RefusedError(f"{where}a host that is not in the list of allowed hosts", source=name)
    if policy.ports is not None and port not in policy.ports:
        allowed = ", ".join(map(str, policy.ports))
        raise RefusedError(f"{where}port {port}", source=name, expected=f"one of the ports {allowed}")
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._[]|")
    if parts.query:
        path += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]|")
    return _Target(parts.scheme, host, port, path)


def _ascii_host(host: str, what: str, name: str) -> str:
    """A host's name in ASCII, or its address in the usual form."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise RefusedError(what, source=name) from None
    with contextlib.suppress(ValueError):  # signs that become digits and dots
        return str(ipaddress.ip_address(host))
    if _ENDS_IN_A_NUMBER.fullmatch(host) or not _NAME.fullmatch(host) or len(host) > 253:
        raise RefusedError(what, source=name, expected="a name, or an address written as usual")
    return host


def _addresses(target: _Target, policy: FetchPolicy, resolve: Resolver, deadline: float, name: str) -> list[str]:
    """The addresses of a host, all of them allowed."""
    try:
        addresses = [str(ipaddress.ip_address(target.host))]
    except ValueError:
        addresses = _in_time(lambda: list(dict.fromkeys(resolve(target.host, target.port))), deadline)
    if not addresses:
        raise UnansweredError("the name server knows no address of the host", source=name)
    if not all(policy.allows_address(address) for address in addresses):
        raise RefusedError("the host's address is not public", source=name, expected="a host on the public internet")
    return addresses


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _in_time(act: Callable[[], list[str]], deadline: float) -> list[str]:
    """What `act` gives before the deadline. The system's resolver knows no deadline, so it gets a thread of its own."""
    answer: queue.SimpleQueue[tuple[list[str], Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((act(), None))
        except Exception as error:
            answer.put(([], error))

    threading.Thread(target=run, daemon=True, name="ostension-resolve").start()
    try:
        found, error = answer.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return found


@contextlib.contextmanager
def _connected(
    target: _Target, addresses: Sequence[str], deadline: float, tls: ssl.SSLContext | None
) -> Iterator[socket.socket]:
    """A connection to the first of the checked addresses that takes one; with TLS, the certificate must be the host's."""
    with contextlib.ExitStack() as stack:
        for number, address in enumerate(addresses):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            # The rest of the time is shared, so that one dead address does not take the time of the others.
            connection.settimeout(_left(deadline) / (len(addresses) - number))
            try:
                connection.connect((address, target.port))
                break
            except OSError:
                if number == len(addresses) - 1:
                    raise
        if target.scheme == "https":
            connection.settimeout(_left(deadline))
            context = tls or _authorities()
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=target.host))
        yield connection


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Made once: reading the certificates of all authorities takes some ten milliseconds."""
    return ssl.create_default_context()


def _ask(connection: socket.socket, target: _Target, policy: FetchPolicy, deadline: float, name: str) -> bytes | str:
    """The body of an answer, or the address that it redirects to."""
    request = (
        f"GET {target.path} HTTP/1.1\r\nHost: {target.header}\r\nUser-Agent: ostension/{ostension.__version__}\r\n"
        "Accept: image/*, */*;q=0.5\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    connection.settimeout(_left(deadline))
    connection.sendall(request.encode("ascii"))
    wire = _Wire(connection, deadline, policy.max_bytes + _MAX_HEAD)
    answer = http.client.HTTPResponse(wire, method="GET")  # type: ignore[arg-type]  # all that it uses is makefile
    try:
        answer.begin()
        if answer.status in _REDIRECTS:
            place = answer.headers.get("Location")
            if not place:
                raise DataError(f"answers {answer.status} without saying where to go", source=name)
            with contextlib.suppress(UnicodeError):  # headers are read as Latin-1, and addresses written in UTF-8
                place = place.encode("latin-1").decode()
            try:
                return urllib.parse.urljoin(target.url, place)
            except ValueError:
                raise RefusedError("it redirects to something that is no web address", source=name) from None
        if answer.status != 200:
            kind = UnansweredError if answer.status in _LATER else DataError
            raise kind(f"answers {answer.status}", source=name, expected="200")
        _check_head(answer, policy, name)
        return _body(answer, policy, name)
    finally:
        answer.close()


def _check_head(answer: http.client.HTTPResponse, policy: FetchPolicy, name: str) -> None:
    """Refuse by its headers what need not be read."""
    head = answer.headers
    for header, usual in (("Content-Encoding", ("", "identity")), ("Transfer-Encoding", ("", "chunked", "identity"))):
        coding = ", ".join(head.get_all(header, [])).strip().lower()
        if coding not in usual:
            raise DataError("the answer is compressed, which was not asked for", source=name)
    media = head.get("Content-Type", "").strip().lower()
    if media and policy.media_types and not media.startswith(policy.media_types):
        kind = "".join(sign for sign in media.partition(";")[0] if sign.isalnum() or sign in "/+-.")[:60]
        raise DataError(f"the answer is {kind!r}", source=name, expected=" or ".join(policy.media_types))
    said = {word for value in head.get_all("X-Robots-Tag", []) for word in re.split(r"[\s,:]+", value.lower())}
    forbidden = sorted(said & set(policy.disallowed))
    if forbidden:
        raise RefusedError(f"its owner does not allow this use (X-Robots-Tag: {forbidden[0]})", source=name)


def _body(answer: http.client.HTTPResponse, policy: FetchPolicy, name: str) -> bytes:
    expected = answer.length  # None where the server does not say
    too_many = LimitError("more bytes than allowed", source=name, expected=f"at most {policy.max_bytes:,}")
    if expected is not None and expected > policy.max_bytes:
        raise too_many
    body = bytearray()
    while chunk := answer.read(_CHUNK):
        body += chunk
        if len(body) > policy.max_bytes:
            raise too_many
    if expected is not None and len(body) < expected:
        raise UnansweredError("the answer is cut short", source=name)
    return bytes(body)


class _Wire(io.RawIOBase):
    """What a server sends, as long as there is time and room; looks to `http.client` like a socket."""

    def __init__(self, connection: socket.socket, deadline: float, room: int):
        self.connection, self.deadline, self.room = connection, deadline, room

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(_left(self.deadline))
        count = self.connection.recv_into(buffer)
        self.room -= count
        if self.room < 0:
            raise _NoRoom
        return count


class _NoRoom(Exception):
    """More came than the body's limit and a generous head together."""


def _left(deadline: float) -> float:
    """The seconds left, more than none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextlib.contextmanager
def _one_line(name: str, policy: FetchPolicy) -> Iterator[None]:
    """What goes wrong on a network, as one line each that tells nothing about what was found there."""
    try:
        yield
    except TimeoutError:
        raise UnansweredError("no whole answer in time", source=name, expected=f"within {policy.timeout_s:g} s") from None
    except _NoRoom:
        raise LimitError("more bytes than allowed", source=name, expected=f"at most {policy.max_bytes:,}") from None
    except ssl.SSLCertVerificationError:
        raise DataError("the certificate is not one for this host that can be trusted", source=name) from None
    except socket.gaierror:
        raise UnansweredError("the name server knows no address of the host", source=name) from None
    except (http.client.IncompleteRead, http.client.RemoteDisconnected):
        raise UnansweredError("the answer is cut short", source=name) from None
    except (http.client.HTTPException, ValueError, UnicodeError):
        raise DataError("the answer is not HTTP", source=name) from None
    except OSError:
        raise UnansweredError("cannot be reached", source=name) from None
