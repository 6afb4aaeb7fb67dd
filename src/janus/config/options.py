"""The options of the four services. Field names carry the unit; the help of each is the documentation."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from janus.config.fields import check_ranges, option
from janus.config.scaling import ScalingOptions
from janus.errors import ConfigError
from janus.messages.control import Role

DType: TypeAlias = Literal["float32", "bfloat16"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Transport: TypeAlias = Literal["ucx", "tcp"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["console", "json"]
MicroBatches: TypeAlias = Literal["auto", "1", "2", "3", "4"]
ExchangeName: TypeAlias = Literal["auto", "direct", "aggregated", "two-phase"]
GateSide: TypeAlias = Literal["attention", "expert"]
LoadSource: TypeAlias = Literal["auto", "disk", "peer"]
PlacementName: TypeAlias = Literal["static", "eplb", "activation-aware"]
SchedulerName: TypeAlias = Literal["aebs", "aebs-greedy", "token-balanced", "random", "static"]

_NET, _LOG, _COMPUTE, _PROCESS = "Network", "Logs", "Model and compute", "Process"
_MIN_SECRET = 8
#: What --kv-cache takes at most when it is not given.
MAX_DEFAULT_KV_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """What every service takes."""

    controller: str = option(
        "",
        help="Where the placement-controller listens. Start order does not matter.",
        unit="host:port",
        default_text="required",
        panel=_NET,
    )
    host: str = option("127.0.0.1", help="Address that other instances reach this one at.", unit="address", panel=_NET)
    port: int = option(
        0, help="UCX port.", unit="port", default_text="0 = any free one", minimum=0, maximum=65535, panel=_NET
    )
    ops_port: int = option(
        0,
        help="HTTP port of /health, /live, /ready and /metrics.",
        unit="port",
        default_text="0 = any free one; -1 = none",
        minimum=-1,
        maximum=65535,
        panel=_NET,
    )
    transport: Transport = option(
        "ucx", help="How instances talk. tcp needs no UCX and is for diagnosis; all instances use the same.", panel=_NET
    )
    secret: str = option(
        "",
        help="File with the cluster secret, which every instance must prove. Or set JANUS_SECRET.",
        secret=True,
        default_text="required",
        panel=_NET,
    )
    node: str = option(
        factory=socket.gethostname,
        help="Host group of this instance; instances with the same one share a machine.",
        default_text="host name",
        panel=_PROCESS,
    )
    name: str = option(
        "", help="Name of this instance, unique in the cluster.", default_text="ROLE-NODE-PID", panel=_PROCESS
    )
    drain_timeout_s: float = option(
        10.0,
        help="After SIGTERM, how long requests in flight may take to finish.",
        unit="seconds",
        minimum=0,
        panel=_PROCESS,
    )
    parent_pid: int = option(
        0, help="Exit when this process is gone.", unit="pid", default_text="0 = none", minimum=0, panel=_PROCESS
    )
    log_level: LogLevel = option("info", help="Least severe event that is logged.", panel=_LOG)
    log_format: LogFormat = option("console", help="Form of the log lines on stderr.", panel=_LOG)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.controller:
            split_address("--controller", self.controller)
        if not self.host:
            raise ConfigError("--host", "is empty", "give the address that the other instances reach, e.g. 127.0.0.1")
        if self.secret and len(self.secret) < _MIN_SECRET:
            raise ConfigError(
                "--secret-file", f"the secret is shorter than {_MIN_SECRET} characters", "use a longer, random one"
            )

    @property
    def controller_address(self) -> tuple[str, int]:
        """``(host, port)`` of the placement-controller."""
        return split_address("--controller", self.controller)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Base of the services' options: fills the instance's name in, and demands what every service needs."""

    #: The role in messages, and the word in ``JANUS_<SERVICE>_<OPTION>`` and in the TOML section.
    SERVICE: ClassVar[Role]

    common: CommonOptions

    def __post_init__(self) -> None:
        check_ranges(self)
        common = self.common
        if not common.controller and self.SERVICE != "controller":
            raise ConfigError("--controller", "is not given", "pass --controller HOST:PORT of the placement-controller")
        if not common.secret:
            raise ConfigError(
                "--secret-file", "no cluster secret is given", "pass --secret-file PATH or set JANUS_SECRET"
            )
        if not common.name:
            name = f"{self.SERVICE}-{common.node}-{os.getpid()}"
            object.__setattr__(self, "common", replace(common, name=name))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions(ServiceOptions):
    """``janus-gateway``: the OpenAI-compatible HTTP endpoint."""

    SERVICE: ClassVar[Role] = "gateway"

    model: Path = option(
        help="Model directory in Hugging Face format; only config and tokenizer are read.", panel=_COMPUTE
    )
    http_host: str = option("127.0.0.1", help="Address that the HTTP endpoint listens on.", unit="address")
    http_port: int = option(
        8000, help="Port of the HTTP endpoint.", unit="port", default_text="8000; 0 = any", minimum=0, maximum=65535
    )
    http_fd: int = option(
        -1,
        help="File descriptor of a listening socket that was handed down, instead of --http-host and --http-port. "
        "Gateways that share one take turns: connections wait in it while one of them is replaced.",
        unit="descriptor",
        default_text="-1 = none, or the socket that systemd passes (LISTEN_FDS)",
        minimum=-1,
    )
    api_key: str = option(
        "",
        help="File with the key that clients must send as a bearer token. Or set JANUS_GATEWAY_API_KEY.",
        secret=True,
        default_text="no key needed",
    )
    served_model_name: str = option("", help="Name that clients ask for.", default_text="the model directory's name")
    max_queue: int = option(
        256, help="Requests that may be in flight or queued; one more is answered 429.", unit="requests", minimum=1
    )
    max_outstanding_tokens: int = option(
        262_144,
        help="Prompt and output tokens that admitted requests may still need, over all of them; above it 429.",
        unit="tokens",
        minimum=1,
    )
    default_max_tokens: int = option(
        4096,
        help="Output tokens of a chat request that gives no max_tokens, where the context leaves as many.",
        unit="tokens",
        minimum=1,
    )
    max_body_bytes: int = option(4 << 20, help="Largest HTTP body.", unit="bytes", default_text="4MiB", minimum=1024)
    request_timeout_s: float = option(
        600.0, help="Longest time that one request may take.", unit="seconds", minimum=0.001
    )
    attention_silence_s: float = option(
        1.5,
        help="How long an attention instance may be silent before its requests are resumed on another one.",
        unit="seconds",
        minimum=0.1,
    )
    recovery_timeout_s: float = option(
        10.0,
        help="How long a request whose attention instance was lost may wait for another one before it fails (503).",
        unit="seconds",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions(ServiceOptions):
    """``janus-attention-server``: attention layers, router, KV cache, requests."""

    SERVICE: ClassVar[Role] = "attention"

    model: Path = option(help="Model directory in Hugging Face format.", panel=_COMPUTE)
    dtype: DType = option("float32", help="Type of weights, KV cache and activations.", panel=_COMPUTE)
    device: Device = option("auto", help="Where to compute; auto takes a GPU when there is one.", panel=_COMPUTE)
    threads: int = option(
        0, help="CPU threads of the model.", unit="threads", default_text="0 = all cores", minimum=0, panel=_COMPUTE
    )
    experts: Literal["remote", "local"] = option(
        "remote", help="remote: on expert-servers; local: in this process (monolithic).", panel=_COMPUTE
    )
    scheduler: SchedulerName = option(
        "aebs",
        help="Which replica serves an activated expert. aebs: the busiest instance reads the fewest experts possible; "
        "aebs-greedy: the same by a quick rule; token-balanced: tokens in turn over all replicas; random; "
        "static: the first replica.",
        panel=_COMPUTE,
    )
    micro_batches: MicroBatches = option(
        "auto",
        help="Parts that the running sequences are split into, so that one computes attention while the others are "
        "with the experts. auto: more than one where measurement shows that it pays.",
        panel=_COMPUTE,
    )
    exchange: ExchangeName = option(
        "auto",
        help="How activations reach the experts. direct: a message per expert instance; aggregated: the instances of a "
        "node send as one; two-phase: that, and one message per expert node; auto: whatever takes the least time.",
        panel=_NET,
    )
    gate: GateSide = option(
        "attention",
        help="Who chooses the experts. attention: this instance, and sends rows to where they are needed; "
        "expert: every expert instance, from all activations.",
        panel=_COMPUTE,
    )
    max_running: int = option(64, help="Sequences that may be generated at the same time.", unit="sequences", minimum=1)
    token_budget: int = option(
        512, help="Tokens in one step; longer prompts are prefilled in chunks.", unit="tokens", minimum=1
    )
    kv_cache_bytes: int = option(
        0,
        help="Memory for the KV cache.",
        unit="bytes",
        default_text="0 = room for --max-running of the longest sequences, at most 1GiB",
        minimum=0,
    )
    kv_blocks: int = option(
        0, help="Blocks in the KV cache, instead of --kv-cache.", unit="blocks", default_text="0 = by size", minimum=0
    )
    block_size: int = option(16, help="Tokens in one KV block.", unit="tokens", minimum=1, maximum=1024)
    max_model_len: int = option(
        0, help="Longest prompt plus output.", unit="tokens", default_text="0 = the model's limit", minimum=0
    )
    dispatch_timeout_s: float = option(
        5.0, help="How long experts may take for one layer before they count as lost.", unit="seconds", minimum=0.001
    )
    routing_sample_rate: int = option(
        64,
        help="Tokens whose experts are reported to the controller, which places replicas by them.",
        unit="tokens/s",
        default_text="64; 0 = none",
        minimum=0,
        maximum=65536,
    )
    recovery_timeout_s: float = option(
        10.0,
        help="How long requests wait for lost experts to come back before they are refused (503).",
        unit="seconds",
        minimum=0,
    )

    def __post_init__(self) -> None:
        ServiceOptions.__post_init__(self)  # super() has no class cell under slots=True
        if self.token_budget < self.max_running:
            raise ConfigError(
                "--token-budget",
                f"{self.token_budget} is less than --max-running {self.max_running}",
                "every running sequence needs one token per step; raise it or lower --max-running",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOptions(ServiceOptions):
    """``janus-expert-server``: experts, and nothing else."""

    SERVICE: ClassVar[Role] = "expert"

    model: Path = option(
        help="Model directory in Hugging Face format; only this instance's experts are read.", panel=_COMPUTE
    )
    dtype: DType = option(
        "float32", help="Type of weights and activations; the same on every instance.", panel=_COMPUTE
    )
    device: Device = option("auto", help="Where to compute; auto takes a GPU when there is one.", panel=_COMPUTE)
    threads: int = option(
        0, help="CPU threads of the experts.", unit="threads", default_text="0 = all cores", minimum=0, panel=_COMPUTE
    )
    gate: GateSide = option(
        "attention", help="Who chooses the experts: the attention instances, or expert instances too.", panel=_COMPUTE
    )
    slots: int = option(
        0,
        help="Experts that this instance can hold per MoE layer.",
        unit="slots",
        default_text="0 = an even share, chosen by the controller",
        minimum=0,
    )
    speed: float = option(
        1.0,
        help="How fast this instance is beside others: one of 2 is given twice as many experts to activate.",
        unit="factor",
        minimum=0.01,
        panel=_COMPUTE,
    )
    load_source: LoadSource = option(
        "auto",
        help="Where replicas are loaded from while the cluster serves. disk: the model directory; peer: another expert "
        "instance that has them, else the model directory; auto: whichever has been faster.",
    )
    load_rate_bytes: int = option(
        0,
        help="Bytes per second that replicas are loaded at, and sent to other instances at.",
        unit="bytes/s",
        default_text="0 = no limit",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerOptions(ServiceOptions):
    """``janus-placement-controller``: registry and placement, never on the token path."""

    SERVICE: ClassVar[Role] = "controller"
    #: It is the controller; there is none to connect to.
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"controller"})

    model: Path = option(help="Model directory in Hugging Face format; only config.json is read.", panel=_COMPUTE)
    expect_attention: int = option(
        1, help="Attention instances to wait for, and to name when missing.", unit="instances", minimum=0
    )
    expect_experts: int = option(
        1, help="Expert instances to wait for before the first placement.", unit="instances", minimum=0
    )
    expect_gateways: int = option(
        1, help="Gateways to wait for, and to name when missing.", unit="instances", minimum=0
    )
    slots_per_instance: int = option(
        0, help="Slots per expert instance and MoE layer.", unit="slots", default_text="0 = an even share", minimum=0
    )
    placement: PlacementName = option(
        "activation-aware",
        help="Where replicas go. static: evenly; eplb: the same number of tokens everywhere; activation-aware: the "
        "busiest instance activates as few distinct experts as possible.",
        panel=_COMPUTE,
    )
    rebalance_s: float = option(
        30.0,
        help="How often the placement is compared with the best one for what the router chose lately.",
        unit="seconds",
        default_text="30; 0 = never",
        minimum=0,
        panel=_COMPUTE,
    )
    rebalance_gain: float = option(
        0.03,
        help="Replicas are moved when a_max, the experts that the busiest instance activates, falls by this share.",
        unit="share",
        minimum=0,
        maximum=1,
        panel=_COMPUTE,
    )
    activations: str = option(
        "",
        help='JSON file with how often each expert was activated, {"activations": [[count per expert] per MoE layer]}: '
        "spare slots go to the busiest experts. Counts until as much has been sampled.",
        default_text="none: all alike",
        panel=_COMPUTE,
    )
    state_dir: str = option(
        "",
        help="Directory in which what the router chose lately is kept, so that a restart begins with it.",
        default_text="none = kept in memory only",
        panel=_PROCESS,
    )
    activations_max_age_s: float = option(
        0.0,
        help="Begin without what an earlier controller kept if it is older than this.",
        unit="seconds",
        default_text="0 = however old",
        minimum=0,
        panel=_PROCESS,
    )
    heartbeat_s: float = option(
        0.5, help="How often instances report; eight missed reports mark one as failed.", unit="seconds", minimum=0.01
    )
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    control_socket: str = option(
        "",
        help="Control socket of the janus up that runs the cluster: instances are added and removed through it.",
        unit="path",
        default_text="none; janus up gives its own",
        panel=_PROCESS,
    )

    def __post_init__(self) -> None:
        ServiceOptions.__post_init__(self)  # super() has no class cell under slots=True
        if self.scaling.autoscale == "on" and not (self.control_socket or self.scaling.scale_command):
            raise ConfigError(
                "--autoscale",
                "there is nothing to add and remove instances with",
                "give --scale-command, run the cluster with janus up, or use --autoscale dry-run",
            )


def split_address(field: str, address: str) -> tuple[str, int]:
    """Return ``(host, port)`` of ``"host:port"``; IPv6 addresses in brackets.

    Raises:
        ConfigError: not of that form, or the port is not in 1..65535.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(field, f"{address!r} is not HOST:PORT", "give host and port, e.g. 127.0.0.1:7700")
    return host, int(port)
