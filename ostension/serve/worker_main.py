"""The process that computes: reads the model, then batches from a socket until that closes. Started by `worker`.

    python -m ostension.serve.worker_main SOCKET MEMORY

It ends when the service ends, in whatever way, even in the middle of a batch, and by nothing else: signals that are sent to
the whole group (an interrupt, a stop of the service) are the service's to answer.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

from ostension.errors import OstensionError
from ostension.serve.compute import IMAGE, TEXT, Computation, group_of, load_computation, lower_priority
from ostension.serve.frames import pack_frame, receive_frame
from ostension.serve.logs import trace_of

Message = tuple[Any, bytes]


def main(arguments: list[str]) -> int:
    """Compute until the socket closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(arguments[0]))
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    settings, _ = messages.get()
    memory = mmap.mmap(int(arguments[1]), settings["memory_bytes"])
    try:
        computation = load_computation(**settings["load"])
        computation.warm()
        connection.sendall(pack_frame({"facts": dataclasses.asdict(computation.facts())}))
    except Exception as error:  # what the user can mend says so; for the rest, where it happened
        what = str(error) if isinstance(error, OstensionError) else f"{type(error).__name__} at {trace_of(error)[-1]}"
        connection.sendall(pack_frame({"failed": what}))
        return 1
    work: dict[str, queue.SimpleQueue[Message]] = {TEXT: queue.SimpleQueue(), IMAGE: queue.SimpleQueue()}
    sending = threading.Lock()

    def compute(group: str) -> None:
        if group == IMAGE:
            lower_priority()
        while True:
            frame = answer(computation, work[group].get(), memory)
            with sending:
                connection.sendall(frame)

    for group in work:
        threading.Thread(target=compute, args=(group,), daemon=True, name=group).start()
    while True:
        message = messages.get()
        work[group_of(message[0]["lane"])].put(message)


def answer(computation: Computation, message: Message, memory: mmap.mmap) -> bytes:
    """The frame that answers a batch."""
    tree, data = message
    start = time.perf_counter()
    try:
        rows = computation.run(tree["lane"], batch_of(tree, data, memory))
    except Exception as error:  # the batch's inputs are at fault, or the model; either way the process goes on
        return pack_frame({"batch": tree["batch"], "error": f"{type(error).__name__}: {error}"[:500]})
    seconds = time.perf_counter() - start
    return pack_frame({"batch": tree["batch"], "shape": rows.shape, "seconds": seconds}, rows.astype("<f4").tobytes())


def batch_of(tree: Any, data: bytes, memory: mmap.mmap) -> Any:
    """The batch: lists of token ids from the message, or pixels from the memory."""
    if tree["lane"] == TEXT:
        ids = np.frombuffer(data, "<i4")
        return [part.tolist() for part in np.split(ids, np.cumsum(tree["lengths"])[:-1])]
    count, side = tree["count"], tree["side"]
    flat = np.frombuffer(memory, np.uint8, count * 3 * side * side)
    return flat.reshape(count, 3, side, side)  # its place is not written to before the answer


def _listen(connection: socket.socket, messages: queue.SimpleQueue[Message]) -> None:
    while (message := receive_frame(connection)) is not None:
        messages.put(message)
    os._exit(0)  # the service is gone, and what is being computed is for nobody


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
