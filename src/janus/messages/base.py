"""What every message is: a frozen struct, strict about its fields, and the words that several of them use.

The wire form is a msgpack map whose key ``type`` names the message. Unknown fields are refused: both sides of a link
run the same protocol version, which the handshake has checked.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Role: TypeAlias = Literal["controller", "gateway", "attention", "expert", "tool"]
ROLES: tuple[Role, ...] = ("controller", "gateway", "attention", "expert", "tool")


# frozen is repeated on every message because type checkers do not inherit it.
class TaggedMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base: keyword-only, immutable, strict."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who one end of a link is. ``incarnation`` is random per process start, so a restart is never mistaken."""

    protocol: int
    role: Role
    instance: str
    node: str
    incarnation: str
    #: ``Checkpoint.fingerprint``; empty where a role has no model (controller, tools).
    fingerprint: str = ""
    #: ``float32`` or ``bfloat16``; empty where a role has no model.
    dtype: str = ""
