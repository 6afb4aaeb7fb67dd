"""Options of every executable: parsed once, checked once, frozen; never patched afterwards.

``options`` holds the dataclasses, ``sources`` fills them from command line, environment and TOML, ``cli`` builds the
typer commands. Only ``cli`` imports typer, so that pure code may import this package.
"""

from janus.config.cluster import UpOptions
from janus.config.options import (
    AttentionOptions,
    CommonOptions,
    ControllerOptions,
    ExpertOptions,
    GatewayOptions,
    ServiceOptions,
)

__all__ = [
    "AttentionOptions",
    "CommonOptions",
    "ControllerOptions",
    "ExpertOptions",
    "GatewayOptions",
    "ServiceOptions",
    "UpOptions",
]
