"""The options of the commands that look at a cluster; those of ``janus up`` are ``janus.config.UpOptions``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.config.fields import check_ranges, option
from janus.config.options import DType, split_address
from janus.errors import ConfigError

_NAME = "Name of the cluster, as given to janus up."
_JSON = "Print JSON, for programs."


def check_url(field: str, url: str) -> None:
    """Raise ConfigError unless ``url`` is one of HTTP, or empty."""
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(field, f"{url!r} is no URL", f"give http://HOST:PORT, e.g. http://{url}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions:
    """Show instances, their state and why, load, placement epoch, and who is missing.

    Ends with status 1 when something is not as it should be.
    """

    name: str = option("default", help=_NAME)
    controller_ops: str = option(
        "", help="Operations endpoint of a controller, instead of a cluster of this machine.", unit="url"
    )
    layers: bool = option(False, help="Add the activated experts per MoE layer and instance.")
    json: bool = option(False, help=_JSON)

    def __post_init__(self) -> None:
        check_url("--controller-ops", self.controller_ops)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownOptions:
    """Stop a cluster that ``janus up`` runs elsewhere: drain, then end every process."""

    name: str = option("default", help=_NAME)
    timeout_s: float = option(60.0, help="How long to wait for an orderly stop.", unit="seconds", minimum=0)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOptions:
    """Add instances to a running cluster, or take some away; returns when the cluster has the numbers asked for.

    N is the number wanted, +N and -N change the present one. Those that leave finish what they have.
    """

    experts: str = option("", help="Expert instances.", unit="N|+N|-N", default_text="as they are")
    attention: str = option("", help="Attention instances.", unit="N|+N|-N", default_text="as they are")
    gateways: str = option("", help="Gateways.", unit="N|+N|-N", default_text="as they are")
    name: str = option("default", help=_NAME)

    def body(self) -> dict[str, str]:
        """What is asked for."""
        wanted = {"experts": self.experts, "attention": self.attention, "gateways": self.gateways}
        return {field: text for field, text in wanted.items() if text}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOptions:
    """Let one instance finish what it has, hand its experts on and leave; janus restart starts it again."""

    instance: str = option(help="Its name, as in janus status.", positional=True)
    name: str = option("default", help=_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartOptions:
    """Replace instances by new processes, one after the other, while the cluster serves.

    Each drains first. Where the others of its role could not serve without it, one more is added for the time.
    """

    instances: tuple[str, ...] = option(
        (), help="Names, as in janus status.", default_text="with --rolling: all", positional=True
    )
    rolling: bool = option(False, help="Restart every instance in turn.")
    in_place: bool = option(False, help="Add no further instance; where the others cannot serve alone, requests wait.")
    name: str = option("default", help=_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; request fields of the same names."""

    max_tokens: int = option(200, help="Longest answer.", unit="tokens", minimum=1)
    temperature: float = option(0.8, help="0 takes the likeliest token always; more is more varied.", minimum=0)
    top_p: float = option(0.9, help="Share of the probability to sample from.", minimum=0, maximum=1)
    repetition_penalty: float = option(1.1, help="Above 1, tokens already used become less likely.", minimum=0.01)
    seed: int | None = option(None, help="Makes an answer repeatable.", default_text="random")

    def __post_init__(self) -> None:
        check_ranges(self)

    def body(self) -> dict[str, Any]:
        """The fields of a request, without those that are not set."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Stream text from a running cluster, and show tokens per second."""

    prompt: str = option("", help="Continue this text and exit.", default_text="none = read prompts in a loop")
    name: str = option("default", help=_NAME)
    url: str = option("", help="Endpoint, instead of a cluster of this machine.", unit="url")
    turns: bool = option(False, help="Talk in turns with the model's chat template, instead of continuing a text.")
    sampling: Sampling

    def __post_init__(self) -> None:
        check_url("--url", self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """Say in seconds what would keep a start from working, and what to do about it.

    Ends with status 1 when something would.
    """

    model: Path | None = option(None, help="Model directory to check.")
    attention: int = option(1, help="Attention instances planned.", unit="instances", minimum=1)
    experts: int = option(2, help="Expert instances planned.", unit="instances", minimum=1)
    dtype: DType = option("float32", help="Type of weights planned.")
    host: str = option("127.0.0.1", help="Address planned for the HTTP endpoint.", unit="address")
    port: int = option(8000, help="Port planned for the HTTP endpoint.", unit="port", minimum=0, maximum=65535)
    controller: str = option("", help="Controller that must be reachable.", unit="host:port")
    peers: str = option("", help="Other instances that must be reachable, separated by commas.", unit="host:port")
    json: bool = option(False, help=_JSON)

    def __post_init__(self) -> None:
        check_ranges(self)
        for field, address in self.addresses():
            split_address(field, address)

    def addresses(self) -> list[tuple[str, str]]:
        """``(option, host:port)`` of everything that must be reachable."""
        named = [("--controller", self.controller)] if self.controller else []
        return named + [("--peers", peer.strip()) for peer in self.peers.split(",") if peer.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Start a small cluster, stream a completion, show where its experts ran, and how to go on."""

    model: Path = option(Path("models/janus-tiny"), help="Model directory.")
    attention: int = option(1, help="Attention instances.", unit="instances", minimum=1)
    experts: int = option(2, help="Expert instances.", unit="instances", minimum=1)
    port: int = option(8000, help="Port of the HTTP endpoint.", unit="port", default_text="8000; 0 = any", minimum=0)
    prompt: str = option("Tonight, I ask the Congress", help="Text to continue.")
    keep: bool | None = option(None, help="Go on serving afterwards.", default_text="on a terminal")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOptions:
    """Show the version."""
