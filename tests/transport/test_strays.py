"""A stranger that connects to a UCX port, says something and goes away leaves nothing that keeps a thread busy."""

from __future__ import annotations

import socket

import pytest

from janus.transport import listen
from janus.transport.ucx_strays import StraySockets, _half_dead
from tests.transport.helpers import HOST, SECRET, Echo, Recorder, dial, identity
from tests.waiting import eventually


def connect_and_leave(port: int, data: bytes) -> None:
    with socket.create_connection((HOST, port)) as stranger:
        stranger.sendall(data)


async def test_half_dead_sockets_of_strangers_are_silenced() -> None:
    listener = await listen(
        "ucx", HOST, 0, identity=identity("expert", "expert-0"), secret=SECRET, handler_factory=lambda _: Echo()
    )
    try:
        connect_and_leave(listener.port, b"y" * 5000)
        await eventually(lambda: bool(list(_half_dead(listener.port))))  # or this test would prove nothing
        await eventually(lambda: not list(_half_dead(listener.port)))
        link = await dial("ucx", listener.port, Recorder())
        await link.close("served all the same")
    finally:
        await listener.close()


def test_a_socket_that_is_only_briefly_half_dead_is_left_alone() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        strays = StraySockets(port)
        connect_and_leave(port, b"x")
        with server.accept()[0]:
            assert strays.check() == 0
        assert strays.check() == 0
        strays.close()


def test_a_socket_that_stays_half_dead_is_replaced_and_its_number_kept() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        strays = StraySockets(port)
        connect_and_leave(port, b"x")
        with server.accept()[0] as accepted:
            assert [strays.check(), strays.check(), strays.check()] == [0, 1, 0]
            assert not list(_half_dead(port))
            with pytest.raises(BlockingIOError):
                accepted.recv(1)
        strays.close()
