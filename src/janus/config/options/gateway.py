"""The options of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from janus.config.fields import option
from janus.config.options.common import ServiceOptions, check_host
from janus.config.options.shared import COMPUTE
from janus.messages.control import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions(ServiceOptions):
    """``janus-gateway``: the OpenAI-compatible HTTP endpoint."""

    SERVICE: ClassVar[Role] = "gateway"

    model: Path = option(
        help="Model directory in Hugging Face format; only config and tokenizer are read.", panel=COMPUTE
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

    def __post_init__(self) -> None:
        ServiceOptions.__post_init__(self)  # super() has no class cell under slots=True
        check_host("--http-host", self.http_host)
