"""A server that says what a test wants, byte by byte, and a certificate for pictures.example that no system trusts.

The keys were made for these tests alone (openssl, valid from 2020 to 2120):

    openssl ecparam -name prime256v1 -genkey; openssl ca -selfsign ...; openssl ca -cert ca.pem ... (v3, strict)
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBeDCCAR6gAwIBAgIUVDvKp00pPIDgdMZIgZQ4QMTmcCowCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOVGVzdCBhdXRob3JpdHkwIBcNMjAwMTAxMDAwMDAwWhgPMjEy
MDAxMDEwMDAwMDBaMBkxFzAVBgNVBAMMDlRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEZRczGswJRNn3+IQNvnU4G6niImmMkBSpMRl7BGeH
UHSV2nNH+MB1346D03XuSHRg391eqk9tUihS2hqK3rMgdqNCMEAwDwYDVR0TAQH/
BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwHQYDVR0OBBYEFGniXnLL5uzmgnbnfvwB
mNwKLH0dMAoGCCqGSM49BAMCA0gAMEUCIQCx4epDMTVDsC58f+3etV/xh+fc+XmP
aVSq8Oc9jbSTYwIgCTS1wR7mXooOv8fCoJXM++1Zdj0RtY/6CnKJ5fApuPw=
-----END CERTIFICATE-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIByzCCAXKgAwIBAgIURQi7fGfdqPoz245e62dYGu40dp8wCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOVGVzdCBhdXRob3JpdHkwIBcNMjAwMTAxMDAwMDAwWhgPMjEy
MDAxMDEwMDAwMDBaMBsxGTAXBgNVBAMMEHBpY3R1cmVzLmV4YW1wbGUwWTATBgcq
hkjOPQIBBggqhkjOPQMBBwNCAATInPLn68FwjVHCwHKyuT8xIu9DpP40m+etOr2/
wYsoiEQfndfxWHaP29UwFcLyThzKMw9JL2iOYNsNFq6MY11Uo4GTMIGQMBsGA1Ud
EQQUMBKCEHBpY3R1cmVzLmV4YW1wbGUwDAYDVR0TAQH/BAIwADAOBgNVHQ8BAf8E
BAMCB4AwEwYDVR0lBAwwCgYIKwYBBQUHAwEwHQYDVR0OBBYEFJ9ZEQgYrbNYtO2p
Z9n5dr8DmU/NMB8GA1UdIwQYMBaAFGniXnLL5uzmgnbnfvwBmNwKLH0dMAoGCCqG
SM49BAMCA0cAMEQCIFU7u/eebp5v5ykNldpIrl+Oq0h9Aw0fKnNh1oxqQcM5AiBq
hg7TD4C2jAFl86we7Djm7gM+dQhe+1f5Cqk7ctFjCQ==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+3f3F0vzjz4wdZRl
tpeLvwVs49zYpzbKbVDDhpjZ+2ahRANCAATInPLn68FwjVHCwHKyuT8xIu9DpP40
m+etOr2/wYsoiEQfndfxWHaP29UwFcLyThzKMw9JL2iOYNsNFq6MY11U
-----END PRIVATE KEY-----
"""


class Server:
    """Answers every connection with `answer(connection, head)`; knows what it was asked and how much it could send."""

    def __init__(self, answer, tls: ssl.SSLContext | None = None):
        self.answer, self.tls = answer, tls
        self.heads: list[str] = []
        self.sent = 0
        self.names: list[str | None] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.over = threading.Event()
        if tls is not None:
            tls.sni_callback = lambda connection, name, context: self.names.append(name)
        self.threads = [threading.Thread(target=self._serve)]
        self.threads[0].start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._one, args=(connection,))
            self.threads.append(thread)
            thread.start()

    def _one(self, connection):
        connection.settimeout(20)
        with connection, contextlib.suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (more := connection.recv(65536)):
                    head += more
                self.heads.append(head.decode(errors="replace"))
                self.answer(connection, self.heads[-1])

    def send(self, connection, data: bytes):
        connection.sendall(data)
        self.sent += len(data)

    def stop(self):
        self.over.set()
        # A listener that is only closed does not wake the thread that waits on it.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(20)


@contextlib.contextmanager
def serving(answer, tls: ssl.SSLContext | None = None):
    server = Server(answer, tls)
    try:
        yield server
    finally:
        server.stop()


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer; `Content_Type="image/png"` becomes a header."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if not any(name.lower() in ("content_length", "transfer_encoding") for name in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
