"""Which instances ``janus up`` starts, with what arguments: pure, so that a test can read it as a table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from janus.config import UpOptions
from janus.config.fields import option_fields
from janus.config.options import ProcessOptions
from janus.config.overrides import overrides
from janus.config.scaling import ScalingOptions
from janus.messages.control import Role

#: ``python -m`` name of each role's service.
MODULES: dict[Role, str] = {
    "controller": "janus_placement_controller",
    "gateway": "janus_gateway",
    "attention": "janus_attention_server",
    "expert": "janus_expert_server",
}
#: Requests come in at the gateway: it drains first, and nobody loses a peer that it still needs.
STOP_ORDER: tuple[Role, ...] = ("gateway", "attention", "expert", "controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One instance to start. ``arguments`` maps option keys (``http_port``) to values."""

    role: Role
    name: str
    threads: int
    arguments: dict[str, Any]
    #: Descriptors that it inherits.
    fds: tuple[int, ...] = ()

    def sibling(self, name: str) -> InstanceSpec:
        """An instance just like this one, by another name."""
        return replace(self, name=name)

    def having(self, **arguments: Any) -> InstanceSpec:
        """This one with further arguments, or other values for those it has."""
        return replace(self, arguments={**self.arguments, **arguments})

    def listening_on(self, fd: int) -> InstanceSpec:
        """This gateway with a listening socket handed down to it."""
        return replace(self.having(http_fd=fd), fds=(fd,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One running instance, as it announced itself."""

    role: Role
    name: str
    pid: int
    port: int
    ops_port: int
    #: Gateways only.
    http_port: int = 0
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """An instance that ended without being told to. ``status`` is negative for a signal."""

    role: Role
    name: str
    pid: int
    status: int


def plan_instances(options: UpOptions, *, cores: int, fixed: dict[str, Collection[str]]) -> list[InstanceSpec]:
    """Return every instance of the cluster, the controller first.

    Args:
        cores: CPU cores that may be used.
        fixed: role -> option keys that its environment or the configuration file sets, and that are left to them.
            What ``--set`` says of a role decides before these.
    """
    experts = 0 if options.monolithic else options.experts
    attention_threads, expert_threads = share_threads(
        cores, attention=options.attention, experts=experts, wanted=options.threads
    )
    model = str(options.model.resolve())
    own = overrides(options.set)
    shared = {item.key: getattr(options, item.name) for item in option_fields(ProcessOptions)}
    compute = {"model": model, "dtype": options.dtype, "device": options.device}
    plans: list[tuple[Role, int, int, dict[str, Any]]] = [
        (
            "controller",
            1,
            1,
            {
                "model": model,
                "expect_attention": options.attention,
                "expect_experts": experts,
                "expect_gateways": options.gateways,
                "slots_per_instance": options.slots_per_instance,
                "placement": options.placement,
                "activations": str(Path(options.activations).resolve()) if options.activations else "",
                **scaling_arguments(options.scaling),
            },
        ),
        ("gateway", options.gateways, 1, {"model": model, "http_host": options.host, "http_port": options.port}),
        (
            "attention",
            options.attention,
            attention_threads,
            {
                **compute,
                "threads": attention_threads,
                "experts": "local" if options.monolithic else "remote",
                "scheduler": options.scheduler,
                "micro_batches": options.micro_batches,
                "exchange": options.exchange,
                "gate": options.gate,
            },
        ),
        ("expert", experts, expert_threads, {**compute, "threads": expert_threads, "gate": options.gate}),
    ]
    return [
        InstanceSpec(
            role=role,
            name=f"{role}-{index}",
            threads=own.get(role, {}).get("threads") or threads,
            arguments={
                **{key: value for key, value in (shared | arguments).items() if key not in fixed.get(role, ())},
                **own.get(role, {}),
            },
        )
        for role, count, threads, arguments in plans
        for index in range(count)
    ]


def scaling_arguments(options: ScalingOptions) -> dict[str, Any]:
    """Return the controller's arguments for ``options``; none when nothing scales by itself."""
    if options.autoscale == "off":
        return {}
    given = {item.key: getattr(options, item.name) for item in option_fields(ScalingOptions)}
    if options.hardware and Path(options.hardware).is_file():
        given["hardware"] = str(Path(options.hardware).resolve())
    return {key: value for key, value in given.items() if value != ""}


def share_threads(cores: int, *, attention: int, experts: int, wanted: int) -> tuple[int, int]:
    """Return threads per attention instance and per expert instance.

    The two pools take turns within a layer, so each gets all cores, shared among its own instances only.
    """
    if wanted > 0:
        return wanted, wanted
    return max(1, cores // max(1, attention)), max(1, cores // max(1, experts))
