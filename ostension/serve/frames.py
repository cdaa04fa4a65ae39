"""Messages between the service and the process that computes: a JSON tree and bytes, over a socket.

    4 bytes: length of the tree, 8 bytes: length of the bytes (both little-endian), the tree, the bytes

Pixels are not sent: they lie in memory that both processes map. Nothing is pickled.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import socket
import struct
import tempfile
from typing import Any

HEAD = struct.Struct("<IQ")
MAX_TREE, MAX_DATA = 64_000_000, 1_000_000_000


def pack_frame(tree: Any, data: bytes = b"") -> bytes:
    """A message as it is sent."""
    text = json.dumps(tree, separators=(",", ":")).encode()
    return HEAD.pack(len(text), len(data)) + text + data


async def read_frame(reader: asyncio.StreamReader) -> tuple[Any, bytes]:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: if the other side is gone.
    """
    tree_length, data_length = HEAD.unpack(await reader.readexactly(HEAD.size))
    return json.loads(await reader.readexactly(tree_length)), await reader.readexactly(data_length)


def receive_frame(connection: socket.socket) -> tuple[Any, bytes] | None:
    """The next message, waiting for it; None if the other side is gone."""
    head = _exactly(connection, HEAD.size)
    if head is None:
        return None
    tree_length, data_length = HEAD.unpack(head)
    tree, data = _exactly(connection, tree_length), _exactly(connection, data_length)
    return None if tree is None or data is None else (json.loads(tree), data)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        part = connection.recv(min(count - len(found), 1 << 20))
        if not part:
            return None
        found += part
    return bytes(found)


def shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """Memory without a name that another process can map by its descriptor; gives the descriptor and the map."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ostension", os.MFD_CLOEXEC)
    else:  # a file that has no name already
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor, mmap.mmap(descriptor, size)
