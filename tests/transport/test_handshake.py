"""The handshake as two state machines talking: who is believed, who is refused, and with which code."""

from __future__ import annotations

import msgspec
import pytest

from janus.messages.control import Challenge, Hello, Identity, Leave, Message, Proof, Refused, Welcome
from janus.transport.handshake import Connector, Listener, Step
from tests.transport.helpers import identity

ATTENTION = identity(fingerprint="f1", dtype="float32")
EXPERT = identity("expert", "expert-0", fingerprint="f1", dtype="float32")


def admit_all(_: Identity) -> None:
    return None


def connector(me: Identity = ATTENTION, secret: bytes = b"s") -> Connector:
    return Connector(me, secret, credits=11)


def listener(me: Identity = EXPERT, secret: bytes = b"s", admit: object = admit_all) -> Listener:
    return Listener(me, secret, credits=22, admit=admit)  # type: ignore[arg-type]


def converse(left: Connector, right: Listener) -> tuple[Step, Step, list[Message]]:
    """Run a handshake; return the last step of each side and all messages."""
    said: list[Message] = [left.hello()]
    steps = {"left": Step(), "right": Step()}
    turn = "right"
    while True:
        step = (right if turn == "right" else left).receive(said[-1])
        steps[turn] = step
        if step.send is None:
            return steps["left"], steps["right"], said
        said.append(step.send)
        turn = "left" if turn == "right" else "right"


def test_success_tells_each_side_who_the_other_is_and_its_credits() -> None:
    left, right, said = converse(connector(), listener())
    assert (left.peer, left.credits, left.refused) == (EXPERT, 22, None)
    assert (right.peer, right.credits, right.refused) == (ATTENTION, 11, None)
    assert [type(m) for m in said] == [Hello, Challenge, Proof, Welcome]
    assert b"s" not in (said[1].proof, said[2].proof)  # type: ignore[union-attr]


REFUSALS = {
    "wrong_secret": (connector(secret=b"other"), listener()),
    "wrong_protocol": (connector(msgspec.structs.replace(ATTENTION, protocol=99)), listener()),
    "wrong_model": (connector(msgspec.structs.replace(ATTENTION, fingerprint="f2")), listener()),
    "wrong_dtype": (connector(msgspec.structs.replace(ATTENTION, dtype="bfloat16")), listener()),
    "duplicate_instance": (
        connector(),
        listener(admit=lambda _: Refused(code="duplicate_instance", problem="attention-0 is here already")),
    ),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_both_sides_learn_of_a_refusal_by_code(code: str) -> None:
    left, right, _ = converse(*REFUSALS[code])
    for step in (left, right):
        assert step.peer is None and step.refused is not None
        assert step.refused.code == code
        assert step.refused.problem


def test_admit_is_asked_only_about_peers_that_know_the_secret() -> None:
    asked: list[str] = []

    def admit(peer: Identity) -> None:
        asked.append(peer.instance)

    # A stranger that skips the check of our proof and guesses its own.
    right = listener(admit=admit)
    right.receive(connector(secret=b"stranger").hello())
    step = right.receive(Proof(proof=bytes(32), credits=1))
    assert step.refused is not None and step.refused.code == "wrong_secret"
    assert asked == []
    converse(connector(), listener(admit=admit))
    assert asked == ["attention-0"]


def test_empty_fingerprint_or_dtype_matches_everything() -> None:
    left, right, _ = converse(connector(identity("tool", "status")), listener())
    assert left.peer == EXPERT and right.peer is not None


def test_a_proof_cannot_be_reflected_or_replayed() -> None:
    # Reflection: answer the listener with its own proof.
    right = listener()
    challenge = right.receive(connector(secret=b"stranger").hello()).send
    assert isinstance(challenge, Challenge)
    step = right.receive(Proof(proof=challenge.proof, credits=1))
    assert step.refused is not None and step.refused.code == "wrong_secret"
    # Replay: the messages of a good handshake, said to a listener with another nonce.
    _, _, said = converse(connector(), listener())
    right = listener()
    right.receive(said[0])
    step = right.receive(said[2])
    assert step.refused is not None and step.refused.code == "wrong_secret"
    # Another identity under the same proof.
    left = connector()
    right = listener()
    hello = left.hello()
    right.receive(Hello(identity=identity(instance="attention-9"), nonce=hello.nonce))
    honest = listener().receive(hello).send
    assert isinstance(honest, Challenge)
    proof = left.receive(honest).send
    assert isinstance(proof, Proof)
    step = right.receive(proof)
    assert step.refused is not None and step.refused.code == "wrong_secret"


def test_messages_out_of_turn_or_malformed_are_named() -> None:
    for message in (Leave(reason="x"), Welcome(credits=1), Proof(proof=b"", credits=1)):
        with pytest.raises(ValueError, match=f"unexpected {type(message).__name__}"):
            listener().receive(message)
    with pytest.raises(ValueError, match="unexpected Welcome"):
        connector().receive(Welcome(credits=5))
    with pytest.raises(ValueError, match="nonce of 3 bytes"):
        listener().receive(Hello(identity=ATTENTION, nonce=b"abc"))
    right = listener()
    right.receive(connector().hello())
    with pytest.raises(ValueError, match="unexpected Hello"):
        right.receive(connector().hello())
