"""Beside the tensors of the exchange: rejections, the way to exchange, and replicas that are handed on."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from janus.messages.base import TaggedMessage

RejectionCode: TypeAlias = Literal["replica_missing", "instance_lost", "bad_frame", "draining", "internal"]


class DispatchRejected(TaggedMessage, frozen=True, tag="dispatch_rejected"):
    """Instead of a combine frame with the same request id: from whoever a dispatch was sent to, to whoever sent it."""

    code: RejectionCode
    problem: str
    #: With "instance_lost": the instances that did not answer, by name.
    instances: list[str] = msgspec.field(default_factory=list)


class ExchangeWay(TaggedMessage, frozen=True, tag="exchange_way"):
    """First attention instance -> the others: how to exchange dispatches of this size from now on.

    To its siblings directly; to those on other nodes, which it is not linked to, through an expert instance.
    """

    #: Size class: ``janus.core.exchange_chooser.ModeChooser.size``.
    size: Annotated[int, msgspec.Meta(ge=0, le=64)]
    way: Literal["direct", "aggregated", "two-phase"]
    #: Whose choice it is; empty = that of whoever sends this.
    by: str = ""


class FetchReplica(TaggedMessage, frozen=True, tag="fetch_replica"):
    """Send me a piece of an expert that you hold. Answered by a frame of kind REPLICA, or by ``ReplicaRefused``."""

    moe_layer: int
    expert: int
    #: The piece, in bytes of the expert as it lies in the memory of both.
    offset: int
    nbytes: int
    #: ``ExpertBank.layout`` of the asking instance.
    layout: str


class ReplicaRefused(TaggedMessage, frozen=True, tag="replica_refused"):
    """Instead of the piece: read it elsewhere."""

    code: Literal["not_here", "layout", "busy", "bad_request"]
    problem: str
