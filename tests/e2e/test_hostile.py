"""Bad input at the UCX ports of a cluster that serves: each is a named error, and eight streams beside never notice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from janus.errors import PeerRefused
from janus.exchange.layout import DispatchLayout, dtype_code
from janus.messages.control import (
    DispatchRejected,
    Fatal,
    Heartbeat,
    PlacementLoaded,
    Register,
    SamplingParams,
    StatusReport,
    StatusRequest,
    Submit,
    Tokens,
)
from janus.transport import Kind, connect
from janus.transport.frame import FRAME_VERSION
from tests.e2e.cases import NAMED
from tests.e2e.hostile import HOST, ROLES, Peer, Scene, Stranger, framed, hello, identity, logged
from tests.e2e.lab import Lab
from tests.e2e.waiting import LIMIT_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

_OTHER_VERSION = bytearray(framed(hello()))
_OTHER_VERSION[4] = 7

#: What a stranger says first, and what the log must say of it.
STRANGE = {
    "garbage": (b"GET / HTTP/1.1\r\n" + bytes(range(256)), "not a Janus frame"),
    "another version of the frame": (bytes(_OTHER_VERSION), f"frame version 7, this side speaks {FRAME_VERSION}"),
    "a frame cut short": (framed(hello())[:-10], "truncated frame"),
    "a header cut short": (framed()[:20], "truncated frame"),
    "an absurd length": (framed(payload_len=1 << 62), "exceeds the limit"),
    "more than a stranger may say": (framed(bytes(80_000)), "exceeds the limit"),
    "a tensor": (framed(bytes(256), kind=Kind.DISPATCH), "DISPATCH frame before the handshake"),
    "no message": (framed(b"\xc1\xc1"), "not a control message"),
    "a message with an unknown field": (
        framed(msgpack.packb({"type": "leave", "reason": "", "x": 1})),
        "unknown field",
    ),
    "an order without a handshake": (framed(msgpack.packb({"type": "leave", "reason": ""})), "unexpected Leave"),
}


@pytest.mark.parametrize("role", ROLES)
async def test_strangers_are_named_and_dropped(role: str, scene: Scene) -> None:
    for data, words in STRANGE.values():
        seen = len(scene.cluster.log(f"{role}-0"))
        stranger = await Stranger.at(scene.port(role))
        stranger.say(data)
        await logged(scene.cluster, f"{role}-0", "handshake_failed", "ProtocolViolation", words, before=seen)
        async with asyncio.timeout(LIMIT_S):
            await stranger.dropped.wait()
        stranger.close()


@pytest.mark.parametrize("role", ROLES)
async def test_raw_bytes_on_the_socket_keep_nobody_out(role: str, scene: Scene) -> None:
    port = scene.port(role)
    for data in (b"", b"\x00" * 3, b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 300, framed(payload_len=1 << 40)):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    silent = [socket.create_connection((HOST, port)) for _ in range(30)]
    async with Peer.at(scene.cluster, port) as peer:
        assert peer.link.peer.instance == f"{role}-0"
    for each in silent:
        each.close()


REFUSALS: dict[str, dict[str, Any]] = {
    "wrong_secret": {"secret": b"not the secret of this cluster"},
    "wrong_protocol": {"identity": identity(protocol=99)},
    "wrong_model": {"identity": identity(fingerprint="another model")},
    "wrong_dtype": {"identity": identity(dtype="bfloat16")},
}


@pytest.mark.parametrize("role", ROLES)
async def test_a_refusal_is_named_on_both_sides(role: str, scene: Scene) -> None:
    wrong_role = {"identity": identity("expert" if role == "attention" else "gateway")}
    cases = REFUSALS | ({"wrong_role": wrong_role} if role != "controller" else {})
    for code, fields in cases.items():
        seen = len(scene.cluster.log(f"{role}-0"))
        given = {"identity": identity(), "secret": scene.cluster.secret, "handler": Peer(), **fields}
        with pytest.raises(PeerRefused) as refused:
            await connect("ucx", HOST, scene.port(role), timeout_s=LIMIT_S, **given)
        assert refused.value.code == code
        await logged(scene.cluster, f"{role}-0", f"refused ({code})", before=seen)


@pytest.mark.parametrize("role", ROLES)
async def test_a_peer_with_the_secret_that_speaks_nonsense_is_named(role: str, scene: Scene) -> None:
    cases: list[tuple[Callable[[Peer], None], str]] = [
        (lambda peer: peer.say_raw(b"\xc1\xc1"), "not a control message"),
        (lambda peer: peer.say_raw(msgpack.packb({"type": "nobody"})), "not a control message"),
        (lambda peer: peer.say_raw(msgpack.packb({"type": "leave", "reason": 7})), "not a control message"),
        (lambda peer: peer.say_raw(b"x" * 10, payload_len=4000), "truncated frame"),
        (lambda peer: peer.say_raw(b"", payload_len=1 << 60), "exceeds the limit"),
    ]
    for say, words in cases:
        seen = len(scene.cluster.log(f"{role}-0"))
        async with Peer.at(scene.cluster, scene.port(role)) as peer:
            say(peer)
            async with asyncio.timeout(LIMIT_S):
                await peer.lost.wait()
        await logged(scene.cluster, f"{role}-0", "link_down", words, before=seen)


@pytest.mark.parametrize("role", ROLES)
async def test_messages_for_somebody_else_are_named(role: str, scene: Scene) -> None:
    elsewhere = Tokens(deltas=[])
    seen = len(scene.cluster.log(f"{role}-0"))
    async with Peer.at(scene.cluster, scene.port(role)) as peer:
        peer.link.post_message(elsewhere)
        await logged(scene.cluster, f"{role}-0", "unexpected_message", "Tokens", before=seen)
        assert not peer.link.closed


#: Fields of a dispatch that differ from a good one, and what the expert instance must say.
DISPATCHES: dict[str, tuple[dict[str, Any], str, str]] = {
    "columns": ({"cols": 47}, "bad_frame", "columns"),
    "type": ({"dtype": 2}, "bad_frame", "this instance serves"),
    "no type": ({"dtype": 0}, "bad_frame", "untyped"),
    "layer": ({"layer": 999}, "bad_frame", "MoE layer 999"),
    "no rows": ({"rows": 0}, "bad_frame", "both must be positive"),
    "no choices": ({"top_k": 0}, "bad_frame", "both must be positive"),
    "more rows than came": ({"rows": 4_000_000}, "bad_frame", "its header describes"),
    "an epoch long gone": ({"epoch": 0}, "replica_missing", "epoch 0"),
    "a slot too high": ({"slots": 4000}, "replica_missing", "slots"),
    "a negative slot": ({"slots": -7}, "replica_missing", "slots"),
    "no slot at all": ({"slots": -1}, "replica_missing", "slots"),
    "another kind of frame": ({"kind": Kind.COMBINE}, "bad_frame", "COMBINE"),
}


async def test_a_malformed_dispatch_is_answered_by_name(lab: Lab, scene: Scene) -> None:
    config = lab.oracle(NAMED[0]).model.config
    async with Peer.at(scene.cluster, scene.port("expert")) as peer:
        for number, (changes, code, words) in enumerate(DISPATCHES.values(), start=1):
            fields = {
                "kind": Kind.DISPATCH,
                "epoch": 1,
                "layer": 0,
                "dtype": dtype_code(torch.float32),
                "top_k": 2,
                "rows": 3,
                "cols": config.hidden_size,
                **changes,
            }
            layout = DispatchLayout(3, config.hidden_size, 2, torch.float32)
            frame = peer.link.allocate(layout.nbytes)
            frame.payload[:] = 0
            layout.views(frame.payload)[1][:] = np.int32(fields.pop("slots", 0))
            peer.link.post(frame, request_id=number, **fields)
            answered, message = await peer.next()
            assert isinstance(message, DispatchRejected)
            assert (answered, message.code) == (number, code)
            assert words in message.problem
        assert not peer.link.closed
    await logged(scene.cluster, "expert-0", "dispatch_rejected", "bad_frame")


def _greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **fields})


SUBMITS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt_ids": []}, "no tokens"),
    "a token that is none": ({"prompt_ids": [5, 4_000]}, "token id outside"),
    "a negative token": ({"prompt_ids": [-1]}, "token id outside"),
    "a token too large for the machine": ({"prompt_ids": [1 << 62]}, "token id outside"),
    "an emitted token that is none": ({"prompt_ids": [5], "emitted_ids": [9_999]}, "token id outside"),
    "a prompt beyond the context": ({"prompt_ids": [5] * 600}, "shorten the prompt"),
    "no tokens wanted": ({"params": _greedy(max_tokens=0)}, "max_tokens"),
    "a negative temperature": ({"params": _greedy(temperature=-1.0)}, "temperature"),
    "a temperature that is no number": ({"params": _greedy(temperature=float("nan"))}, "temperature"),
    "too many log-probabilities": ({"params": _greedy(logprobs=10_000)}, "logprobs"),
}


async def test_a_malformed_request_is_answered_by_name(scene: Scene) -> None:
    async with Peer.at(scene.cluster, scene.port("attention")) as peer:
        for name, (changes, words) in SUBMITS.items():
            fields = {"prompt_ids": [5, 6], "params": _greedy(), **changes}
            peer.link.post_message(Submit(request_id=name, **fields))
            _, message = await peer.next()
            assert isinstance(message, Tokens)
            (delta,) = message.deltas
            assert (delta.request_id, delta.finish_reason, delta.status) == (name, "error", 400)
            assert words in delta.problem
        assert not peer.link.closed


async def test_a_request_id_in_use_stays_with_its_owner(scene: Scene) -> None:
    """Also when another peer names it: the first one's tokens must not go astray."""
    port = scene.port("attention")
    submit = Submit(request_id="twice", prompt_ids=[5, 6, 7], params=_greedy(max_tokens=40, ignore_eos=True))
    async with Peer.at(scene.cluster, port) as owner, Peer.at(scene.cluster, port, identity(instance="other")) as other:
        owner.link.post_message(submit)
        _, first = await owner.next()
        assert isinstance(first, Tokens)
        other.link.post_message(submit)
        _, refusal = await other.next()
        assert isinstance(refusal, Tokens)
        assert (refusal.deltas[0].status, refusal.deltas[0].finish_reason) == (400, "error")
        assert "in use" in refusal.deltas[0].problem
        tokens, finish = len(first.deltas[0].token_ids), first.deltas[0].finish_reason
        while finish is None:
            _, more = await owner.next()
            assert isinstance(more, Tokens)
            tokens, finish = tokens + len(more.deltas[0].token_ids), more.deltas[0].finish_reason
        assert (tokens, finish) == (40, "length")


async def test_the_controller_keeps_its_registry_clean(scene: Scene) -> None:
    cluster, port = scene.cluster, scene.port("controller")
    before = cluster.status().view
    impostor = identity("expert", "expert-0", incarnation="impostor")
    async with Peer.at(cluster, port, impostor) as peer:
        answer = await peer.link.call(Register(host=HOST, port=1, pid=1, slots=8), timeout_s=LIMIT_S)
        assert isinstance(answer, Fatal)
        assert "registered already" in answer.problem
    await logged(cluster, "controller-0", "duplicate_refused", "expert-0")
    async with Peer.at(cluster, port) as peer:
        answer = await peer.link.call(Register(host=HOST, port=1, pid=1), timeout_s=LIMIT_S)
        assert isinstance(answer, Fatal), "a tool is no member"
        peer.link.post_message(Heartbeat(state="failed", reason="not even registered"))
        peer.link.post_message(PlacementLoaded(epoch=99, replicas=1, bytes_read=1, seconds=1.0))
        report = await peer.link.call(StatusRequest(), timeout_s=LIMIT_S)
        assert isinstance(report, StatusReport)
        assert report.view == before


async def test_a_flood_of_connections_keeps_nobody_out(scene: Scene) -> None:
    for role in ROLES:
        strangers = await asyncio.gather(*(Stranger.at(scene.port(role)) for _ in range(20)))
        async with Peer.at(scene.cluster, scene.port(role)) as peer:
            assert not peer.link.closed
        for stranger in strangers:
            stranger.close()
