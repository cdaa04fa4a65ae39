"""The members of a tar archive, from untrusted bytes: names, offsets and sizes, or where and why it breaks off.

Own parser rather than `tarfile`, because it must survive hostile archives with bounded memory, say at which byte a torn
one ends, and give offsets for `pread`. Reads the ustar, GNU (long names, base-256 sizes) and PAX (path, size) forms.
Nothing is ever extracted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

BLOCK = 512
MAX_NAME_BYTES = 1024
MAX_EXTENDED_BYTES = 1 << 20  # an extended header larger than this is not a name, it is an attack on memory
_ZERO = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A member's `name`, and `offset` and `size` of its content; `problem` says why it cannot be used."""

    name: str
    offset: int
    size: int
    problem: str | None = None


class TornArchive(Exception):
    """The archive cannot be followed past byte `offset`."""

    def __init__(self, offset: int, why: str):
        super().__init__(f"breaks off at byte {offset}: {why}")
        self.offset = offset


def scan(pread: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """Yield the members of an archive of `size` bytes; folders are passed over.

    Args:
        pread: gives the bytes at (offset, count).

    Raises:
        TornArchive: after the last whole member, if the archive has no end mark.
    """
    offset, extended = 0, _Extended()
    while True:
        if offset + BLOCK > size:
            raise TornArchive(min(offset, size), "no end mark" if offset >= size else "inside a header")
        header = pread(offset, BLOCK)
        if header == _ZERO:
            return
        if len(header) < BLOCK or not _checksum_holds(header):
            raise TornArchive(offset, "not a header")
        kind, content = header[156:157], offset + BLOCK
        length = _number(header[124:136])
        if kind not in (b"L", b"K", b"x", b"g") and extended.size is not None:
            length = extended.size
        if length is None:
            raise TornArchive(offset, "a size that cannot be read")
        if content + length > size:
            raise TornArchive(offset, f"a member of {length} bytes does not fit")
        offset = content + -(-length // BLOCK) * BLOCK
        if kind in (b"L", b"x"):
            extended.read(kind, pread(content, length) if length <= MAX_EXTENDED_BYTES else None, content)
        elif kind not in (b"K", b"g"):
            name, problem = _name(header, extended.name)
            extended = _Extended()
            if kind == b"5" or (kind == b"\0" and name.endswith("/")):
                continue
            if kind not in _REGULAR:
                problem = problem or "not a regular file"
            yield Member(name, content, length, problem)


class _Extended:
    """What the extended headers before a member say about it."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None

    def read(self, kind: bytes, content: bytes | None, offset: int) -> None:
        if content is None:
            self.name = b"\0" * (MAX_NAME_BYTES + 1)
        elif kind == b"L":
            self.name = content.rstrip(b"\0")
        else:
            self._read_pax(content, offset)

    def _read_pax(self, content: bytes, offset: int) -> None:
        position = 0
        while position < len(content) and content[position]:
            count, space, _ = content[position : position + 12].partition(b" ")
            if not (space and count.isdigit() and int(count) > len(count) + 2):
                raise TornArchive(offset, "an extended header that cannot be read")
            record = content[position + len(count) + 1 : position + int(count)]
            key, _, value = record.partition(b"=")
            if len(record) != int(count) - len(count) - 1 or not value.endswith(b"\n"):
                raise TornArchive(offset, "an extended header that cannot be read")
            if key == b"path":
                self.name = value[:-1]
            elif key == b"size":
                if not value[:-1].isdigit() or len(value) > 20:
                    raise TornArchive(offset, "a size that cannot be read")
                self.size = int(value[:-1])
            position += int(count)


def _name(header: bytes, extended: bytes | None) -> tuple[str, str | None]:
    """A member's name and what is wrong with it."""
    raw = extended
    if raw is None:
        raw = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0":
            prefix = header[345:500].partition(b"\0")[0]
            raw = prefix + b"/" + raw if prefix else raw
    if len(raw) > MAX_NAME_BYTES:
        return "", f"name longer than {MAX_NAME_BYTES} bytes"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "", "name is not UTF-8"
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/") or ".." in name.split("/") or any(ord(letter) < 32 for letter in name):
        return name, "unsafe name"
    return name, None


def _number(field: bytes) -> int | None:
    """A numeric header field: octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    digits = field.replace(b"\0", b" ").strip()
    if not digits:
        return 0
    return int(digits, 8) if all(digit in b"01234567" for digit in digits) else None


def _checksum_holds(header: bytes) -> bool:
    stored = _number(header[148:156])
    unsigned = sum(header) - sum(header[148:156]) + 8 * 32
    # Some old writers summed signed bytes.
    return stored is not None and stored in (unsigned, unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:]))
