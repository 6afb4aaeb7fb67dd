"""What ``janus doctor`` asks of this machine: which transports can be used, and what UCX can do here."""

from __future__ import annotations

import re
import socket
from dataclasses import asdict, dataclass
from typing import Any

from janus.errors import ConfigError
from janus.transport.ucx import FEATURES, import_ucxx, prepare_environment
from janus.transport.wire import TransportKind

#: UCX's names of transports that move data by RDMA (InfiniBand, RoCE, EFA).
_RDMA = re.compile(r"(rc|ud|dc|gga|srd)(_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class UcxReport:
    """What UCX offers here."""

    #: Empty when an engine can be made.
    problem: str
    ucxx_version: str
    ucx_version: str
    #: As UCX names them, with their devices: "tcp/eth0", "posix/memory", "rc_mlx5/mlx5_0:1".
    transports: tuple[str, ...]
    #: Whether one of them is RDMA. False with the UCX of the Python packages, which is built without verbs.
    rdma: bool
    #: Whether one of them moves GPU memory.
    cuda: bool
    #: The UCX variables that Janus runs with.
    environment: dict[str, str]


def ucx_report() -> UcxReport:
    """Load UCX, make a context and say what it found. Takes about a second in a fresh process."""
    environment = prepare_environment()
    problem = ucxx_version = ucx_version = ""
    transports: tuple[str, ...] = ()
    try:
        ucxx = import_ucxx()
        ucxx_version = str(ucxx.__version__)
        api = ucxx._lib.libucxx
        ucx_version = ".".join(str(part) for part in api.get_ucx_version())
        context = api.UCXContext({}, feature_flags=tuple(api.Feature[feature] for feature in FEATURES))
        transports = parse_transports(context.info)
        if not transports:
            problem = "UCX found no transport; check UCX_TLS and UCX_NET_DEVICES"
    except ConfigError as error:
        problem = str(error)
    except Exception as error:  # ucxx raises a family of unrelated classes
        problem = f"UCX cannot start: {error}; check the UCX_ variables of the environment"
    return UcxReport(
        problem=problem,
        ucxx_version=ucxx_version,
        ucx_version=ucx_version,
        transports=transports,
        rdma=any(_RDMA.match(name) for name in transports),
        cuda=any(name.startswith("cuda_") for name in transports),
        environment=environment,
    )


def parse_transports(context_info: str) -> tuple[str, ...]:
    """Return the transports that ``UCXContext.info`` lists as resources, in its order."""
    return tuple(re.findall(r"resource \d+ .*-- (\S+/\S+)", context_info))


def available_transports(report: UcxReport) -> tuple[TransportKind, ...]:
    """Return the kinds of links that can be made here; "ucx" first if it is among them."""
    return ("tcp", "inproc") if report.problem else ("ucx", "tcp", "inproc")


def port_problem(host: str, port: int) -> str:
    """Return why ``host:port`` cannot be listened on, "" if it can. Port 0 always can."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = infos[0]
        with socket.socket(family, kind, proto) as probe_socket:
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe_socket.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def probe() -> dict[str, Any]:
    """Return ``ucx_report`` as JSON types, for use from another process."""
    return asdict(ucx_report())
