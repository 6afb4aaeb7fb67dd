"""The control messages, one frozen struct each.

The wire form is a msgpack map whose key ``type`` names the message. Unknown fields are refused: both sides of a link
run the same protocol version, which the handshake has checked.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Role: TypeAlias = Literal["controller", "gateway", "attention", "expert", "tool"]
ROLES: tuple[Role, ...] = ("controller", "gateway", "attention", "expert", "tool")

#: Why a handshake is refused; stable words that tools may match.
RefusalCode: TypeAlias = Literal[
    "wrong_secret", "wrong_protocol", "wrong_model", "wrong_dtype", "wrong_role", "duplicate_instance", "draining"
]

#: ``joining``: registered, not yet able to serve. ``draining``: finishes what it has, takes nothing new.
InstanceState: TypeAlias = Literal["joining", "ready", "draining", "failed"]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


# frozen is repeated on every message because type checkers do not inherit it.
class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
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


# -- handshake: see janus.transport.handshake ---------------------------------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    """Connecting side, first: who it is, and a nonce for the other side to prove the secret over."""

    identity: Identity
    nonce: bytes


class Challenge(_Message, frozen=True, tag="challenge"):
    """Listening side: who it is, its own nonce, and its proof of the secret over both nonces and identities."""

    identity: Identity
    nonce: bytes
    proof: bytes


class Proof(_Message, frozen=True, tag="proof"):
    """Connecting side: its proof of the secret. ``credits``: frames that the listener may send before it must wait."""

    proof: bytes
    credits: int


class Welcome(_Message, frozen=True, tag="welcome"):
    """Listening side: the link is up. ``credits``: frames that the peer may send before it must wait."""

    credits: int


class Refused(_Message, frozen=True, tag="refused"):
    """Either side: the link will not come up, and why."""

    code: RefusalCode
    problem: str


# -- membership: every instance <-> placement-controller -----------------------------------------------------------


class PlacementTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wire form of ``janus.core.placement.Placement``: which logical expert sits in which slot."""

    epoch: int
    num_experts: int
    instances: list[str]
    #: ``slots[layer][instance][slot]`` = logical expert id, -1 for an empty slot; one row per MoE layer, in order.
    slots: list[list[list[int]]]
    #: The node of each of ``instances``; empty when they are not known, and then all count as one node.
    nodes: list[str] = []


class Register(_Message, frozen=True, tag="register"):
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
    loaded_epochs: list[int] = []
    #: HTTP port of /health and /metrics, 0 for none.
    ops_port: int = 0
    #: Attention instances: the placement that they plan with, from which a controller that has restarted learns it.
    placement: PlacementTable | None = None


class Registered(_Message, frozen=True, tag="registered"):
    """The controller's answer. Heartbeats are expected every ``heartbeat_s`` seconds from now on."""

    heartbeat_s: float


class Heartbeat(_Message, frozen=True, tag="heartbeat"):
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


class Traffic(_Message, frozen=True, tag="traffic"):
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
    tpot: list[tuple[int, int]] = []
    ttft: list[tuple[int, int]] = []


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


class ClusterView(_Message, frozen=True, tag="cluster_view"):
    """Controller -> every instance, on every change: who is there, who is missing, and the placement in force."""

    version: int
    members: list[Member]
    #: Instances that the controller expects and that have not registered, by name.
    missing: list[str]
    #: The epoch in force; ``None`` until every expert has a loaded replica.
    placement: PlacementTable | None
    #: Epochs below this one are in use by nobody: what they alone hold may be given back.
    oldest_epoch: int = 0


class LoadPlacement(_Message, frozen=True, tag="load_placement"):
    """Controller -> expert instance: load your slots of this table, keep what older epochs need, then report."""

    table: PlacementTable


class PlacementLoaded(_Message, frozen=True, tag="placement_loaded"):
    """Expert instance -> controller: every replica of ``epoch`` that concerns me is in memory (or ``error``)."""

    epoch: int
    replicas: int
    #: From the checkpoint.
    bytes_read: int
    seconds: float
    #: From other expert instances.
    bytes_from_peers: int = 0
    error: str = ""


class RoutingSample(_Message, frozen=True, tag="routing_sample"):
    """Instance -> controller, at most once per second: what the router chose for some of the tokens since the last."""

    #: MoE layers L, tokens S and experts per token K of ``expert_ids``.
    layers: int
    tokens: int
    top_k: int
    #: uint16[L, S, K], little-endian: logical expert ids of the sampled tokens.
    expert_ids: bytes
    #: Tokens routed since the last sample, of which S were sampled.
    seen: int


class Leave(_Message, frozen=True, tag="leave"):
    """Instance -> controller: I drain; send me nothing new."""

    reason: str


class Fatal(_Message, frozen=True, tag="fatal"):
    """Controller -> instance: you cannot be part of this cluster; stop and show ``problem`` to the user."""

    problem: str


# -- requests: gateway <-> attention instance ----------------------------------------------------------------------


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen. Ranges are checked once, in ``janus.core.sampling.validate``."""

    temperature: float = 1.0
    top_p: float = 1.0
    #: 0 = off.
    top_k: int = 0
    min_p: float = 0.0
    #: With a seed, the tokens depend on prompt, parameters and seed alone, not on batch, server or time.
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    #: ``None`` = none wanted; n = the chosen token's and the n most likely ones' log-probabilities.
    logprobs: int | None = None


class Submit(_Message, frozen=True, tag="submit"):
    """Gateway -> attention instance: generate. ``emitted_ids`` is non-empty when the request resumes elsewhere."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    emitted_ids: list[int] = msgspec.field(default_factory=list)


class Cancel(_Message, frozen=True, tag="cancel"):
    """Gateway -> attention instance: forget the request. No answer; late tokens are dropped by the gateway."""

    request_id: str


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Natural-log probabilities of one position, from the unmodified distribution (before temperature, penalties)."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """News of one request. Exactly one delta with ``finish_reason`` ends it."""

    request_id: str
    #: Position of the first of ``token_ids`` in the output, counted from 0 over all attempts.
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    #: The stop token that ended it, when one did.
    stop_token_id: int | None = None
    #: With ``finish_reason == "error"``: an HTTP status, a stable code and a sentence for the client.
    status: int = 0
    code: str = ""
    problem: str = ""
    retry_after_s: float | None = None


class Tokens(_Message, frozen=True, tag="tokens"):
    """Attention instance -> gateway: all news of one step, in one message."""

    deltas: list[TokenDelta]
    #: Share of the instance's KV cache in use after the step, 0..1.
    kv_usage: float = 0.0


# -- errors that answer a frame ------------------------------------------------------------------------------------


RejectionCode: TypeAlias = Literal["replica_missing", "instance_lost", "bad_frame", "draining", "internal"]


class DispatchRejected(_Message, frozen=True, tag="dispatch_rejected"):
    """Instead of a combine frame with the same request id: from whoever a dispatch was sent to, to whoever sent it."""

    code: RejectionCode
    problem: str
    #: With "instance_lost": the instances that did not answer, by name.
    instances: list[str] = []


class ExchangeWay(_Message, frozen=True, tag="exchange_way"):
    """First attention instance of a node -> the others: how to exchange dispatches of this size from now on."""

    #: Size class: ``janus.core.exchange_chooser.ModeChooser.size``.
    size: int
    way: Literal["direct", "aggregated", "two-phase"]


# -- replicas: expert instance <-> expert instance ------------------------------------------------------------------


class FetchReplica(_Message, frozen=True, tag="fetch_replica"):
    """Send me a piece of an expert that you hold. Answered by a frame of kind REPLICA, or by ``ReplicaRefused``."""

    moe_layer: int
    expert: int
    #: The piece, in bytes of the expert as it lies in the memory of both.
    offset: int
    nbytes: int
    #: ``ExpertBank.layout`` of the asking instance.
    layout: str


class ReplicaRefused(_Message, frozen=True, tag="replica_refused"):
    """Instead of the piece: read it elsewhere."""

    code: Literal["not_here", "layout", "busy", "bad_request"]
    problem: str


# -- tools ---------------------------------------------------------------------------------------------------------


class SetExpected(_Message, frozen=True, tag="set_expected"):
    """Tool -> controller: how many instances of each role the cluster should have from now on.

    Answered with ``ClusterView``. Those beyond the number may leave without being missed.
    """

    gateways: int
    attention: int
    experts: int


class Move(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last change of the placement, as ``janus status`` shows it."""

    epoch: int
    #: Why: "start", "join", "leave", "death", "balance".
    reason: str
    #: "loading", "in force", "rolled back".
    outcome: str
    #: Replicas that were to be loaded, bytes that were, and seconds from issue to outcome.
    replicas: int
    bytes_read: int = 0
    seconds: float = 0.0
    problem: str = ""
    #: What the policy expected of it: mean a_max per layer before and after; 0 = it did not look.
    a_max_before: float = 0.0
    a_max_after: float = 0.0


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last instance that failed."""

    instance: str
    why: str
    #: Seconds ago.
    age_s: float


class StatusRequest(_Message, frozen=True, tag="status_request"):
    """Tool -> controller: everything that ``janus status`` shows."""


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the autoscaler does, as ``janus status`` shows it."""

    #: "dry-run" or "on".
    mode: str
    #: The last decision: numbers before and after as "2A4E", why, and seconds ago. Empty before the first one.
    present: str = ""
    wanted: str = ""
    reason: str = ""
    why: str = ""
    age_s: float = 0.0
    #: What is being done now; empty when nothing is.
    operation: str = ""
    #: Why the last operation failed; empty when it did not.
    problem: str = ""


class StatusReport(_Message, frozen=True, tag="status_report"):
    """Controller -> tool. ``heartbeats``: the last one of each instance, with its age in seconds."""

    view: ClusterView
    heartbeats: dict[str, Heartbeat]
    heartbeat_age_s: dict[str, float]
    started_s: float
    last_move: Move | None = None
    last_failure: Failure | None = None
    #: Why the cluster is not as it should be, one sentence per cause; empty when all is well.
    degraded: list[str] = msgspec.field(default_factory=list)
    #: ``replicas[layer][expert]`` of the placement in force.
    replicas: list[list[int]] = msgspec.field(default_factory=list)
    #: ``None`` where nothing scales by itself.
    scaling: ScalingStatus | None = None


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
