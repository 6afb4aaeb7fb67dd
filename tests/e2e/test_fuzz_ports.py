"""Random nonsense at the UCX ports, for minutes: nobody falls, and the streams beside stay right."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgpack
import msgspec
import pytest

from janus.messages.control import Cancel, Heartbeat, Leave, PlacementLoaded, SamplingParams, StatusRequest, Submit
from janus.transport.frame import Kind
from tests.e2e.hostile import ROLES, Peer, Scene, Stranger, framed, hello

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

_ROUNDS = 150
_MESSAGES = (
    Submit(request_id="fuzz", prompt_ids=[5, 6], params=SamplingParams(max_tokens=3)),
    Cancel(request_id="fuzz"),
    Heartbeat(state="ready"),
    PlacementLoaded(epoch=1, replicas=1, bytes_read=1, seconds=0.1),
    Leave(reason="fuzz"),
    StatusRequest(),
)
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 31, 1 << 63, -(1 << 62), 1e308, float("nan"), float("-inf")),
    *("", "x" * 5000, b"\xff" * 100, [], [[]], {}, {"a": 1}, [-1, 1 << 40]),
)


def mutated(message: msgspec.Struct, source: random.Random) -> bytes:
    """A message of ours with one value, key or byte that is not as it should be."""
    fields = msgspec.to_builtins(message)
    target = fields["params"] if "params" in fields and source.random() < 0.5 else fields
    match source.randrange(4):
        case 0:
            target[source.choice(list(target))] = source.choice(_ODD)
        case 1:
            target[source.choice(["", "type", "unknown", "epoch"])] = source.choice(_ODD)
        case 2:
            del target[source.choice(list(target))]
        case _:
            payload = bytearray(msgpack.packb(fields))
            payload[source.randrange(len(payload))] = source.randrange(256)
            return bytes(payload)
    return bytes(msgpack.packb(fields))


def broken_frame(source: random.Random) -> bytes:
    """A first frame with some bytes changed, added or missing."""
    frame = bytearray(framed(hello()))
    for _ in range(source.randint(1, 4)):
        frame[source.randrange(len(frame))] = source.randrange(256)
    return bytes(frame[: source.randint(1, len(frame))]) + source.randbytes(source.choice((0, 0, 1, 300)))


@pytest.mark.parametrize("role", ROLES)
async def test_fuzz_strangers(role: str, scene: Scene) -> None:
    source = random.Random(f"strangers {role}")
    for _ in range(_ROUNDS):
        stranger = await Stranger.at(scene.port(role))
        stranger.say(broken_frame(source))
        if source.random() < 0.5:
            async with asyncio.timeout(10):
                await stranger.dropped.wait()
        stranger.close()


@pytest.mark.parametrize("role", ROLES)
async def test_fuzz_peers_that_know_the_secret(role: str, scene: Scene) -> None:
    source = random.Random(f"peers {role}")
    for _ in range(_ROUNDS):
        async with Peer.at(scene.cluster, scene.port(role)) as peer:
            for _ in range(source.randint(1, 8)):
                if peer.lost.is_set():
                    break
                if role == "expert" and source.random() < 0.5:
                    peer.say_raw(source.randbytes(source.choice((0, 1, 64, 4096))), kind=Kind.DISPATCH)
                else:
                    peer.say_raw(mutated(source.choice(_MESSAGES), source))
                await asyncio.sleep(0)


async def test_fuzz_dispatch_headers(scene: Scene) -> None:
    """Every field of a dispatch header at random, around sizes that fit and sizes that do not."""
    source = random.Random("headers")
    async with Peer.at(scene.cluster, scene.port("expert")) as peer:
        for number in range(1, 4 * _ROUNDS):
            frame = peer.link.allocate(source.choice((0, 64, 1000, 4096)))
            frame.payload[:] = source.randrange(256)
            peer.link.post(
                frame,
                kind=source.choice((Kind.DISPATCH, Kind.COMBINE)),
                request_id=number,
                epoch=source.choice((0, 1, 2, (1 << 32) - 1)),
                layer=source.choice((0, 1, 2, 3, (1 << 16) - 1)),
                dtype=source.randrange(4),
                top_k=source.choice((0, 1, 2, 255)),
                rows=source.choice((0, 1, 3, 1 << 20, (1 << 32) - 1)),
                cols=source.choice((0, 1, 48, (1 << 32) - 1)),
            )
            answered, _ = await peer.next()
            assert answered == number
        assert not peer.link.closed
