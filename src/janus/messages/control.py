"""Every control message, and ``Message``, any of them: one module per pair that speaks."""

from __future__ import annotations

from typing import TypeAlias

from janus.messages.base import ROLES, Identity, Role
from janus.messages.exchange import DispatchRejected, ExchangeWay, FetchReplica, RejectionCode, ReplicaRefused
from janus.messages.handshake import Challenge, Hello, Proof, RefusalCode, Refused, Welcome
from janus.messages.membership import (
    ClusterView,
    Fatal,
    Heartbeat,
    InstanceState,
    Leave,
    LoadPlacement,
    Member,
    PlacementLoaded,
    PlacementTable,
    Register,
    Registered,
    RoutingSample,
    Traffic,
)
from janus.messages.operations import Failure, Move, ScalingStatus, SetExpected, StatusReport, StatusRequest
from janus.messages.requests import Cancel, FinishReason, SamplingParams, Submit, TokenDelta, TokenLogprob, Tokens

__all__ = [
    "ROLES",
    "Cancel",
    "Challenge",
    "ClusterView",
    "DispatchRejected",
    "ExchangeWay",
    "Failure",
    "Fatal",
    "FetchReplica",
    "FinishReason",
    "Heartbeat",
    "Hello",
    "Identity",
    "InstanceState",
    "Leave",
    "LoadPlacement",
    "Member",
    "Message",
    "Move",
    "PlacementLoaded",
    "PlacementTable",
    "Proof",
    "RefusalCode",
    "Refused",
    "Register",
    "Registered",
    "RejectionCode",
    "ReplicaRefused",
    "Role",
    "RoutingSample",
    "SamplingParams",
    "ScalingStatus",
    "SetExpected",
    "StatusReport",
    "StatusRequest",
    "Submit",
    "TokenDelta",
    "TokenLogprob",
    "Tokens",
    "Traffic",
    "Welcome",
]

Message: TypeAlias = (
    Hello
    | Challenge
    | Proof
    | Welcome
    | Refused
    | Register
    | Registered
    | Heartbeat
    | ClusterView
    | LoadPlacement
    | PlacementLoaded
    | RoutingSample
    | Traffic
    | Leave
    | Fatal
    | Submit
    | Cancel
    | Tokens
    | DispatchRejected
    | ExchangeWay
    | FetchReplica
    | ReplicaRefused
    | SetExpected
    | StatusRequest
    | StatusReport
)
