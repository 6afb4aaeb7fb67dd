"""The messages of the handshake; see janus.transport.handshake."""

from __future__ import annotations

from typing import Literal, TypeAlias

from janus.messages.base import Identity, TaggedMessage

#: Why a handshake is refused; stable words that tools may match.
RefusalCode: TypeAlias = Literal[
    "wrong_secret", "wrong_protocol", "wrong_model", "wrong_dtype", "wrong_role", "duplicate_instance", "draining"
]


class Hello(TaggedMessage, frozen=True, tag="hello"):
    """Connecting side, first: who it is, and a nonce for the other side to prove the secret over."""

    identity: Identity
    nonce: bytes


class Challenge(TaggedMessage, frozen=True, tag="challenge"):
    """Listening side: who it is, its own nonce, and its proof of the secret over both nonces and identities."""

    identity: Identity
    nonce: bytes
    proof: bytes


class Proof(TaggedMessage, frozen=True, tag="proof"):
    """Connecting side: its proof of the secret. ``credits``: frames that the listener may send before it must wait."""

    proof: bytes
    credits: int


class Welcome(TaggedMessage, frozen=True, tag="welcome"):
    """Listening side: the link is up. ``credits``: frames that the peer may send before it must wait."""

    credits: int


class Refused(TaggedMessage, frozen=True, tag="refused"):
    """Either side: the link will not come up, and why."""

    code: RefusalCode
    problem: str
