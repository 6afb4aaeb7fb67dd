"""Ports of this machine, and peers elsewhere."""

from __future__ import annotations

import errno
import socket

import psutil

from janus.cluster.checks.finding import Finding, ok, problem
from janus.config.options import split_address

_CONNECT_TIMEOUT_S = 2.0


def check_port(host: str, port: int) -> Finding:
    """Whether the HTTP endpoint could listen; names who listens there already."""
    name = f"port {port}"
    if port == 0:
        return ok("port", "any free one will be taken")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return ok(name, f"free on {host}")
        except PermissionError:
            return problem(name, "needs privileges", "use a port above 1023")
        except OverflowError:
            return problem(name, "is no port", "use a port from 1 to 65535")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = listener_on(port) or "a process that this user may not see"
                return problem(name, f"taken by {owner}", f"stop it, or choose another: --port {port + 1}")
            return problem(
                name, f"cannot listen on {host}: {error.strerror}", "give an address of this machine: --host"
            )


def listener_on(port: int) -> str:
    """``name (pid N)`` of the process that listens on TCP ``port``, or nothing where /proc does not tell."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return ""


def check_peer(option: str, address: str) -> Finding:
    """Whether something listens at ``address``; the secret is proved only when a link is opened."""
    name = f"peer {address}"
    try:
        with socket.create_connection(split_address(option, address), timeout=_CONNECT_TIMEOUT_S):
            return ok(name, "reachable")
    except socket.gaierror:
        return problem(name, "the host name is not known", "check the name, or give an address")
    except TimeoutError:
        return problem(name, f"no answer in {_CONNECT_TIMEOUT_S:g} s", "check the network and the firewall between")
    except ConnectionRefusedError:
        return problem(name, "nobody listens there", "start that instance, or check the port")
    except OSError as error:
        return problem(name, f"unreachable: {error.strerror}", "check the address and the route")
