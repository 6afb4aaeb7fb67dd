"""``janus trace``: what the router of a cluster chose for sampled tokens, out to a file, in from one, and shown."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from janus.config.fields import option
from janus.errors import ConfigError, TraceError
from janus_cli.console import output, tell

if TYPE_CHECKING:
    from janus.cluster.trace_client import TraceClient
    from janus.core.trace import Trace

_FILE = "Trace file; safetensors, see docs/trace.md."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """Which cluster."""

    name: str = option("default", help="Name of the cluster, as given to janus up.")
    controller_ops: str = option(
        "", help="Operations endpoint of a controller, instead of a cluster of this machine.", unit="url"
    )
    secret: str = option(
        "", help="File with the cluster secret.", secret=True, default_text="that of the cluster of this machine"
    )

    def client(self) -> TraceClient:
        from janus.cluster.trace_client import TraceClient

        return TraceClient(name=self.name, controller_ops=self.controller_ops, secret=self.secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceExportOptions:
    """Write which experts the router of a running cluster chose lately, for sampled tokens, to a file."""

    file: Path = option(help=_FILE, positional=True)
    cluster: _Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceImportOptions:
    """Let a running cluster place its experts by a trace, until it has sampled as much itself.

    A trace of another model is refused.
    """

    file: Path = option(help=_FILE, positional=True)
    cluster: _Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShowOptions:
    """Show how uneven a trace is, layer by layer."""

    file: Path = option(help=_FILE, positional=True)


def export(options: TraceExportOptions) -> int:
    """Write the file."""
    trace = options.cluster.client().fetch()
    try:
        options.file.write_bytes(trace.to_bytes())
    except OSError as error:
        raise ConfigError("FILE", f"{options.file}: {error.strerror}", "name a file that can be written") from error
    tell(f"{options.file}: {_summary(trace)}")
    if not trace.tokens:
        tell("nothing has been sampled yet; send requests and try again in a second")
    return 0


def import_(options: TraceImportOptions) -> int:
    """Send the file."""
    trace = read(options.file)
    answer = options.cluster.client().send(trace)
    tell(f"imported {trace.tokens} tokens; the cluster now has {answer['window_tokens']} in its window")
    return 0


def show(options: TraceShowOptions) -> int:
    """Print the file's skew."""
    from janus.core.trace_skew import layer_skews

    trace, console = read(options.file), output()
    console.print(_summary(trace))
    table = Table(box=None, pad_edge=False)
    for column in ("MoE layer", "used", "busiest", "its share", "top tenth", "half by", "busiest/mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for skew in layer_skews(trace):
        table.add_row(
            str(skew.layer),
            str(skew.used),
            str(skew.busiest),
            f"{skew.busiest_share:.1%}",
            f"{skew.top_tenth_share:.1%}",
            str(skew.half),
            f"{skew.imbalance:.2f}",
        )
    console.print(table)
    return 0


def read(path: Path) -> Trace:
    """Return the trace in a file.

    Raises:
        ConfigError: it cannot be read.
        TraceError: it is no trace; names the file.
    """
    from janus.core.trace import Trace

    try:
        return Trace.from_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError("FILE", f"{path}: {error.strerror}", "name a readable file") from error
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _summary(trace: Trace) -> str:
    date = datetime.datetime.fromtimestamp(trace.saved_at).astimezone().isoformat(timespec="seconds")
    shape = f"{trace.num_layers} MoE layers of {trace.num_experts} experts, {trace.top_k} per token"
    return f"{trace.tokens} tokens, {shape}; model {trace.fingerprint[:12]}, sampled until {date}"
