"""Listening sockets that are handed down: which are taken, which refused, and that one outlives who accepts from it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from janus.errors import ConfigError
from janus.runtime.http import HttpServer
from janus.runtime.sockets import BACKLOG, handed_down, open_tcp


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with open_tcp("127.0.0.1", 0, "--port") as found:
        found.listen(BACKLOG)
        yield found


def test_the_descriptor_of_a_listening_socket_is_taken(listener: socket.socket) -> None:
    inherited = handed_down(os.dup(listener.fileno()), environ={})
    assert inherited is not None
    with inherited:
        assert inherited.getsockname() == listener.getsockname()
        assert not os.get_inheritable(inherited.fileno())


def test_none_is_handed_down_to_another_process() -> None:
    assert handed_down(-1, environ={}) is None
    assert handed_down(-1, environ={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None


def test_systemd_hands_down_one(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
    with pytest.raises(ConfigError, match="LISTEN_FDS: 2 sockets are handed down; pass exactly one"):
        handed_down(-1, environ=environ)
    # Descriptor 3 belongs to something else here.
    monkeypatch.setattr("janus.runtime.sockets._SYSTEMD_FIRST_FD", os.dup(listener.fileno()))
    inherited = handed_down(-1, environ=environ | {"LISTEN_FDS": "1"})
    assert inherited is not None
    with inherited:
        assert inherited.getsockname() == listener.getsockname()


def test_what_is_no_listening_tcp_socket_is_refused() -> None:
    with socket.socket() as idle, socket.socket(socket.AF_UNIX) as unix:
        for each in (idle, unix):
            with pytest.raises(ConfigError, match=r"--http-fd: descriptor \d+ is not a listening TCP socket"):
                handed_down(each.fileno(), environ={})
            assert each.fileno() >= 0, "it was not ours to close"
    read, write = os.pipe()
    with pytest.raises(ConfigError, match="is not a socket"):
        handed_down(read, environ={})
    os.close(read)
    os.close(write)


def server(name: str, listener: socket.socket) -> HttpServer:
    async def answer(_: Request) -> Response:
        return PlainTextResponse(name)

    return HttpServer(Starlette(routes=[Route("/", answer)]), listener=listener.dup())


async def test_one_of_two_that_share_a_socket_leaves_and_no_connection_is_refused(listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    first, second = server("first", listener), server("second", listener)
    await first.start()
    async with httpx.AsyncClient(timeout=20) as kept, asyncio.timeout(20):
        assert (await kept.get(url)).text == "first"
        await second.start()
        first.stop_accepting()
        assert (await kept.get(url)).text == "first", "who is connected is served on"
        async with httpx.AsyncClient(timeout=20) as new:
            assert (await new.get(url)).text == "second"
        await first.close()
        async with httpx.AsyncClient(timeout=20) as new:
            assert (await new.get(url)).text == "second"
        await second.close()
        # Nobody accepts now: the connection waits in the socket for whoever comes.
        waiting = asyncio.create_task(kept.get(url), name="waiting")
        third = server("third", listener)
        await third.start()
        assert (await waiting).text == "third"
        await third.close()
