"""Between every instance and the placement-controller: who is there, and which placement is in force."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from janus.messages.base import Role, TaggedMessage

#: ``joining``: registered, not yet able to serve. ``draining``: finishes what it has, takes nothing new.
InstanceState: TypeAlias = Literal["joining", "ready", "draining", "failed"]


class PlacementTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wire form of ``janus.core.placement.Placement``: which logical expert sits in which slot."""

    epoch: int
    num_experts: int
    instances: list[str]
    #: ``slots[layer][instance][slot]`` = logical expert id, -1 for an empty slot; one row per MoE layer, in order.
    slots: list[list[list[int]]]
    #: The node of each of ``instances``; empty when they are not known, and then all count as one node.
    nodes: list[str] = msgspec.field(default_factory=list)


class Register(TaggedMessage, frozen=True, tag="register"):
    """An instance offers itself. Sent after every (re)connect to the controller."""

    host: str
    port: int
    pid: int
    #: Expert instances: replicas that fit per MoE layer. 0: as many as the controller wants, or another role.
    slots: int = 0
    #: Expert instances: replicas per MoE layer that its memory holds, where ``slots`` leaves it open; 0 = unknown.
    capacity: int = 0
    #: Expert instances: how fast it is beside others, 1 = like them. An instance of 2 may activate twice the experts.
    speed: float = 1.0
    #: Expert instances: the epoch whose replicas are loaded, 0 for none (a controller that restarts asks no reload).
    loaded_epoch: int = 0
    #: Expert instances: every epoch whose replicas are loaded. A newer one of them says nothing about an older.
    loaded_epochs: list[int] = msgspec.field(default_factory=list)
    #: HTTP port of /health and /metrics, 0 for none.
    ops_port: int = 0
    #: Attention instances: the placement that they plan with, from which a controller that has restarted learns it.
    placement: PlacementTable | None = None


class Registered(TaggedMessage, frozen=True, tag="registered"):
    """The controller's answer. Heartbeats are expected every ``heartbeat_s`` seconds from now on."""

    heartbeat_s: float


class Heartbeat(TaggedMessage, frozen=True, tag="heartbeat"):
    """Instance -> controller, every ``heartbeat_s``: its state and load, as ``janus status`` shows them."""

    state: InstanceState
    #: Why it is not ready, or degraded, in words; empty when all is well.
    reason: str = ""
    #: Names of instances that it should be linked to and is not.
    unreachable: list[str] = msgspec.field(default_factory=list)
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    loaded_epoch: int = 0
    #: Attention instances: the oldest epoch that a dispatch of this instance may still name, 0 for none.
    oldest_epoch: int = 0
    #: Attention instances: expert instances whose answers are too late, by name.
    suspects: list[str] = msgspec.field(default_factory=list)
    #: Dispatches that this instance has sent, or has to answer, and that are not over.
    in_flight: int = 0
    #: Expert instances: dispatches and rows served so far. Attention instances: steps and tokens so far.
    steps: int = 0
    tokens: int = 0
    rss_bytes: int = 0
    #: Attention instances: activated experts in the last step, ``{expert instance: [count per MoE layer]}``.
    activated: dict[str, list[int]] = msgspec.field(default_factory=dict)
    #: Attention instances: the scheduler in use, and the share of its choices that are proven to be the best possible;
    #: ``None`` where it does not look.
    scheduler: str = ""
    proven_share: float | None = None
    #: Attention instances: sequences that may run at the same time. Seconds so far in which steps computed, and in
    #: which all that were in flight waited for their experts. Expert instances: seconds so far that they computed.
    max_running: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0


class Traffic(TaggedMessage, frozen=True, tag="traffic"):
    """Gateway -> controller, once per second: what clients asked for and saw, summed up since the gateway started.

    Sums and not differences: a report that is lost takes nothing with it.
    """

    #: Sequences that arrived, those of them that were refused for want of room, and those that ended with an answer.
    arrived: int = 0
    refused: int = 0
    finished: int = 0
    #: Tokens of the prompts that arrived, of the answers that ended, and all that came out.
    prompt_tokens: int = 0
    answer_tokens: int = 0
    output_tokens: int = 0
    #: Seconds between tokens of a sequence, summed up, and how many tokens that is: TPOT, as a mean over tokens.
    gaps_s: float = 0.0
    gaps: int = 0
    #: Seconds to first tokens, summed up, and how many.
    first_s: float = 0.0
    firsts: int = 0
    #: ``janus.core.latency.LatencyHistogram`` of TPOT over stretches of a sequence, and of TTFT.
    tpot: list[tuple[int, int]] = msgspec.field(default_factory=list)
    ttft: list[tuple[int, int]] = msgspec.field(default_factory=list)


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One registered instance, as the controller knows it."""

    role: Role
    instance: str
    node: str
    host: str
    port: int
    incarnation: str
    state: InstanceState
    slots: int = 0
    ops_port: int = 0


class ClusterView(TaggedMessage, frozen=True, tag="cluster_view"):
    """Controller -> every instance, on every change: who is there, who is missing, and the placement in force."""

    version: int
    members: list[Member]
    #: Instances that the controller expects and that have not registered, by name.
    missing: list[str]
    #: The epoch in force; ``None`` until every expert has a loaded replica.
    placement: PlacementTable | None
    #: Epochs below this one are in use by nobody: what they alone hold may be given back.
    oldest_epoch: int = 0


class LoadPlacement(TaggedMessage, frozen=True, tag="load_placement"):
    """Controller -> expert instance: load your slots of this table, keep what older epochs need, then report."""

    table: PlacementTable


class PlacementLoaded(TaggedMessage, frozen=True, tag="placement_loaded"):
    """Expert instance -> controller: every replica of ``epoch`` that concerns me is in memory (or ``error``)."""

    epoch: int
    replicas: int
    #: From the checkpoint.
    bytes_read: int
    seconds: float
    #: From other expert instances.
    bytes_from_peers: int = 0
    error: str = ""


class RoutingSample(TaggedMessage, frozen=True, tag="routing_sample"):
    """Instance -> controller, at most once per second: what the router chose for some of the tokens since the last."""

    #: MoE layers L, tokens S and experts per token K of ``expert_ids``.
    layers: int
    tokens: int
    top_k: int
    #: uint16[L, S, K], little-endian: logical expert ids of the sampled tokens.
    expert_ids: bytes
    #: Tokens routed since the last sample, of which S were sampled.
    seen: int


class Leave(TaggedMessage, frozen=True, tag="leave"):
    """Instance -> controller: I drain; send me nothing new."""

    reason: str


class Fatal(TaggedMessage, frozen=True, tag="fatal"):
    """Controller -> instance: you cannot be part of this cluster; stop and show ``problem`` to the user."""

    problem: str
