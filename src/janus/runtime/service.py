"""The frame around every service: loop, logs, signals, the end of the parent, exit status.

First SIGTERM or SIGINT: ``context.stop`` is set and the service drains. Second: the process ends at once, status 1.
A service that does not get its drain done ends at ``drain_timeout_s`` plus a grace, whatever it is stuck in.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

import structlog
import uvloop

from janus.config.options import CommonOptions
from janus.errors import JanusError
from janus.messages import PROTOCOL_VERSION
from janus.messages.control import Identity, Role
from janus.runtime import logs
from janus.runtime.health import Health
from janus.runtime.parent import end_with_parent

log = structlog.get_logger()

#: Seconds beyond the drain limit after which a service that still runs is ended by force.
_GRACE_S = 5.0


@dataclass(slots=True)
class ServiceContext:
    """What a service's ``main`` is given."""

    role: Role
    common: CommonOptions
    health: Health = field(default_factory=Health)
    #: Set by the first signal, or by the service itself when it cannot go on.
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def secret(self) -> bytes:
        """The cluster secret."""
        return self.common.secret.encode()

    def identity(self, *, fingerprint: str = "", dtype: str = "") -> Identity:
        """Who this process is, as its links will say."""
        return Identity(
            protocol=PROTOCOL_VERSION,
            role=self.role,
            instance=self.common.name,
            node=self.common.node,
            incarnation=self.incarnation,
            fingerprint=fingerprint,
            dtype=dtype,
        )

    def announce(self, *, port: int, ops_port: int, **more_ports: int) -> None:
        """Tell whoever started this process, on stdout, where it listens (a gateway also has an ``http_port``)."""
        ports = {"port": port, "ops_port": ops_port, **more_ports}
        print(json.dumps({"event": "listening", "instance": self.common.name, **ports}), flush=True)
        log.info("listening", **ports)


def run(main: Callable[[ServiceContext], Awaitable[None]], *, role: Role, common: CommonOptions) -> NoReturn:
    """Run ``main`` until it returns, and end the process: with status 0, or 1 when it failed."""
    status = _run(main, role, common)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed. Taking torch apart object by object would cost much more CPU than all the rest.
    os._exit(status)


def _run(main: Callable[[ServiceContext], Awaitable[None]], role: Role, common: CommonOptions) -> int:
    logs.configure(common, role=role)
    end_with_parent(common.parent_pid)
    # The control loop and the step loop share the interpreter; 5 ms, the default, is a whole decode step.
    sys.setswitchinterval(0.0005)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(main, role, common))
    except JanusError as error:
        log.error("service_failed", error=type(error).__name__, problem=str(error))
        return 1
    except Exception:
        log.exception("service_crashed")
        return 1
    return 0


async def _supervise(main: Callable[[ServiceContext], Awaitable[None]], role: Role, common: CommonOptions) -> None:
    context = ServiceContext(role, common)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if context.stop.is_set():
            log.warning("forced_exit", signal=number.name)
            os._exit(1)
        log.info("draining", signal=number.name, limit_s=common.drain_timeout_s)
        _end_after(common.drain_timeout_s + _GRACE_S)
        context.health.set("draining", f"received {number.name}")
        context.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await main(context)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    log.info("stopped")


def _end_after(seconds: float) -> None:
    def force() -> None:
        log.error("drain_overran", limit_s=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, force)
    timer.daemon = True
    timer.start()
