"""Connections around a stop: those that the system took and the server did not yet are answered."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from ostension.serve.server import Connection, Server

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_stop_answers_those_who_came_before_it_and_nobody_after():
    async def main():
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        listening.setblocking(False)
        address = listening.getsockname()
        server = Server(uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listening])
        # The loop does not turn meanwhile: all of these wait in the system's queue.
        clients = [socket.create_connection(address, timeout=60) for _ in range(20)]
        try:
            for client in clients:
                client.sendall(REQUEST)
            await server.shutdown([listening])
            answers = await asyncio.gather(*(asyncio.to_thread(client.recv, 1000) for client in clients))
        finally:
            for client in clients:
                client.close()
        after = socket.socket()
        with after:
            return answers, after.connect_ex(address)

    answers, after = asyncio.run(main())
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers) and after != 0
