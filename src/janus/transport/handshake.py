"""The handshake: both sides prove that they know the cluster secret before either believes the other.

    connector -> listener   Hello(identity, nonce)
    listener  -> connector  Challenge(identity, nonce, proof)     proof: HMAC-SHA256, label "listener"
    connector -> listener   Proof(proof, credits)                 proof: HMAC-SHA256, label "connector"
    listener  -> connector  Welcome(credits)

Both proofs cover both nonces and both identities, so neither can be replayed, and carry different labels, so neither
can be reflected. Either side may answer with ``Refused`` instead. What a stranger learns is the listener's identity.

Sans-IO: messages in, messages out; ``janus.transport.endpoint`` moves them.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from janus.messages.codec import PROTOCOL_VERSION
from janus.messages.control import Challenge, Hello, Identity, Message, Proof, Refused, Welcome

NONCE_BYTES = 32

#: Decides whether a peer that knows the secret may join: ``None``, or why not.
Admit = Callable[[Identity], Refused | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one received message leads to: a message to send, and possibly the end of the handshake."""

    send: Message | None = None
    #: The handshake has succeeded: the peer, and how many frames it lets us send unanswered.
    peer: Identity | None = None
    credits: int = 0
    #: The handshake has failed by a refusal of ours (then ``send`` carries it) or of the peer's.
    refused: Refused | None = None


def prove(
    secret: bytes,
    label: Literal["listener", "connector"],
    *,
    connector: Identity,
    listener: Identity,
    connector_nonce: bytes,
    listener_nonce: bytes,
) -> bytes:
    """Return the proof of ``secret``: 32 bytes, HMAC-SHA256 over the length-prefixed fields."""
    mac = hmac.new(secret, digestmod="sha256")
    for part in (
        b"janus-" + label.encode(),
        connector_nonce,
        listener_nonce,
        msgspec.msgpack.encode(connector),
        msgspec.msgpack.encode(listener),
    ):
        mac.update(len(part).to_bytes(4, "big") + part)
    return mac.digest()


def mismatch(ours: Identity, theirs: Identity) -> Refused | None:
    """Return why two identities cannot work together, if they cannot."""
    if ours.fingerprint and theirs.fingerprint and ours.fingerprint != theirs.fingerprint:
        problem = f"{theirs.instance} serves model {theirs.fingerprint}, {ours.instance} serves {ours.fingerprint}"
        return Refused(code="wrong_model", problem=problem)
    if ours.dtype and theirs.dtype and ours.dtype != theirs.dtype:
        problem = f"{theirs.instance} computes in {theirs.dtype}, {ours.instance} in {ours.dtype}"
        return Refused(code="wrong_dtype", problem=problem)
    return None


def _refuse(refused: Refused) -> Step:
    return Step(send=refused, refused=refused)


def _wrong_protocol(theirs: Identity) -> Refused | None:
    if theirs.protocol == PROTOCOL_VERSION:
        return None
    problem = f"{theirs.instance} speaks protocol {theirs.protocol}, this side {PROTOCOL_VERSION}; install one version"
    return Refused(code="wrong_protocol", problem=problem)


def _wrong_secret(theirs: Identity) -> Refused:
    problem = f"{theirs.instance} does not know this cluster's secret; give every instance the same one"
    return Refused(code="wrong_secret", problem=problem)


class Connector:
    """The connecting side."""

    def __init__(self, identity: Identity, secret: bytes, *, credits: int) -> None:
        self._identity = identity
        self._secret = secret
        self._credits = credits
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._listener: Identity | None = None

    def hello(self) -> Hello:
        """Return the first message."""
        return Hello(identity=self._identity, nonce=self._nonce)

    def receive(self, message: Message) -> Step:
        """Take the listener's next message. Raises ``ValueError`` when it is out of turn or malformed."""
        if isinstance(message, Refused):
            return Step(refused=message)
        if isinstance(message, Challenge) and self._listener is None:
            return self._challenged(message)
        if isinstance(message, Welcome) and self._listener is not None:
            if message.credits < 1:
                raise ValueError("welcome without credits")
            return Step(peer=self._listener, credits=message.credits)
        raise ValueError(f"unexpected {type(message).__name__} during the handshake")

    def _challenged(self, challenge: Challenge) -> Step:
        _check_nonce(challenge.nonce)
        theirs = challenge.identity
        if (refused := _wrong_protocol(theirs)) is not None:
            return _refuse(refused)

        def proof(label: Literal["listener", "connector"]) -> bytes:
            return prove(
                self._secret,
                label,
                connector=self._identity,
                listener=theirs,
                connector_nonce=self._nonce,
                listener_nonce=challenge.nonce,
            )

        if not hmac.compare_digest(challenge.proof, proof("listener")):
            return _refuse(_wrong_secret(theirs))
        if (refused := mismatch(self._identity, theirs)) is not None:
            return _refuse(refused)
        self._listener = theirs
        return Step(send=Proof(proof=proof("connector"), credits=self._credits))


class Listener:
    """The listening side."""

    def __init__(self, identity: Identity, secret: bytes, *, credits: int, admit: Admit) -> None:
        self._identity = identity
        self._secret = secret
        self._credits = credits
        self._admit = admit
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._hello: Hello | None = None

    def receive(self, message: Message) -> Step:
        """Take the connector's next message. Raises ``ValueError`` when it is out of turn or malformed."""
        if isinstance(message, Refused):
            return Step(refused=message)
        if isinstance(message, Hello) and self._hello is None:
            return self._greeted(message)
        if isinstance(message, Proof) and self._hello is not None:
            return self._proven(message, self._hello)
        raise ValueError(f"unexpected {type(message).__name__} during the handshake")

    def _prove(self, label: Literal["listener", "connector"], hello: Hello) -> bytes:
        return prove(
            self._secret,
            label,
            connector=hello.identity,
            listener=self._identity,
            connector_nonce=hello.nonce,
            listener_nonce=self._nonce,
        )

    def _greeted(self, hello: Hello) -> Step:
        _check_nonce(hello.nonce)
        if (refused := _wrong_protocol(hello.identity)) is not None:
            return _refuse(refused)
        self._hello = hello
        return Step(
            send=Challenge(identity=self._identity, nonce=self._nonce, proof=self._prove("listener", hello)),
        )

    def _proven(self, message: Proof, hello: Hello) -> Step:
        if not hmac.compare_digest(message.proof, self._prove("connector", hello)):
            return _refuse(_wrong_secret(hello.identity))
        if message.credits < 1:
            raise ValueError("proof without credits")
        # Only now: what follows tells about this cluster, and ``admit`` may remember the peer.
        refused = mismatch(self._identity, hello.identity) or self._admit(hello.identity)
        if refused is not None:
            return _refuse(refused)
        return Step(send=Welcome(credits=self._credits), peer=hello.identity, credits=message.credits)


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"nonce of {len(nonce)} bytes, expected {NONCE_BYTES}")
