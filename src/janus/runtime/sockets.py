"""Listening sockets of HTTP endpoints: opened here, or handed down by whoever started this process.

A socket that ``janus up`` (or systemd) holds outlives the gateways that accept from it: while one of them is replaced,
connections wait in its backlog instead of being refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from janus.errors import ConfigError

#: Connections that may wait to be accepted; the kernel lowers it to its own limit (net.core.somaxconn).
BACKLOG = 2048
#: The first descriptor that systemd hands down, see sd_listen_fds(3).
_SYSTEMD_FIRST_FD = 3


def open_tcp(host: str, port: int, field: str) -> socket.socket:
    """Return a bound TCP socket that does not listen yet. ``field`` is the option to change when the port is taken.

    Raises:
        ConfigError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            field, f"cannot listen on {host}:{port} ({error.strerror})", "choose another port, or 0 for any free one"
        ) from error
    return listener


def open_unix(path: Path) -> socket.socket:
    """Return a Unix socket bound to ``path``, for this user alone, that does not listen yet; replaces what is there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with unix_address(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    return listener


@contextlib.contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """Yield a name of ``path`` that a Unix socket can be bound or connected to while inside.

    The kernel takes 107 bytes, and run directories may be deeper than that.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def handed_down(fd: int, *, environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """Return the listening TCP socket that this process was started with: descriptor ``fd``, or, for -1, systemd's.

    Raises:
        ConfigError: the descriptor is not a listening stream socket, or systemd passes more than one.
    """
    field = "--http-fd"
    if fd < 0:
        if environ.get("LISTEN_PID") != str(os.getpid()):
            return None  # meant for another process, or not there at all
        count = environ.get("LISTEN_FDS", "0")
        if count != "1":
            raise ConfigError("LISTEN_FDS", f"{count} sockets are handed down", "pass exactly one ListenStream")
        fd, field = _SYSTEMD_FIRST_FD, "LISTEN_FDS"
    remedy = "hand down a TCP socket that listens"
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(field, f"descriptor {fd} is not a socket ({error.strerror})", remedy) from error
    listens = (
        listener.family in (socket.AF_INET, socket.AF_INET6)
        and listener.type == socket.SOCK_STREAM
        and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
    if not listens:
        listener.detach()
        raise ConfigError(field, f"descriptor {fd} is not a listening TCP socket", remedy)
    os.set_inheritable(fd, False)
    return listener
