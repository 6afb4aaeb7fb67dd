"""``janus up`` without its command line: one cluster from start to stop, under this process's signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from janus.cluster.checks.network import check_port
from janus.cluster.environment import fixed_options, usable_cores
from janus.cluster.groups import one_error
from janus.cluster.instances import plan_instances
from janus.cluster.local import PRELOADED, LocalLauncher
from janus.cluster.state import RunDirectory
from janus.cluster.supervisor import Supervisor
from janus.config import CommonOptions, UpOptions
from janus.config.sources import load_config
from janus.errors import ConfigError
from janus.runtime import logs
from janus.runtime.sockets import BACKLOG, open_tcp

#: Called once the cluster serves, with the supervisor; the cluster stops when it returns.
Session = Callable[[Supervisor], Awaitable[None]]


async def run_up(
    options: UpOptions,
    *,
    config: Path | None,
    tell: Callable[[str], None],
    session: Session,
    launcher_type: Callable[..., LocalLauncher] = LocalLauncher,
) -> None:
    """Start the cluster, run ``session`` on it, stop it in order.

    ``launcher_type`` makes the launcher, from the arguments of ``LocalLauncher``. SIGINT or SIGTERM ends the start or
    the session and drains; a second one ends everything by force.

    Raises:
        ConfigError: the model directory is none, the port is taken, or a cluster of this name runs already.
        LaunchError: an instance did not start.
    """
    if not (options.model / "config.json").is_file():
        raise ConfigError("--model", f"{options.model} has no config.json", "give a Hugging Face model directory")
    port = check_port(options.host, options.port)
    if port.level == "problem":
        raise ConfigError("--port", f"{options.port} {port.detail}", port.remedy)
    tables = load_config(config) if config else {}
    # What this process does is told to the user; its libraries only speak of trouble, and never on stdout.
    logs.configure(CommonOptions(name="up", log_level="warning", log_format=options.log_format), role="supervisor")
    secret = secrets.token_urlsafe(32)
    fixed = fixed_options(os.environ, tables)
    specs = plan_instances(options, cores=usable_cores(), fixed=fixed)
    with (
        RunDirectory(options.name) as directory,
        _endpoint(options, fixed["gateway"]) as listener,
        _stop_signals() as (stop, force),
    ):
        if listener is not None:
            specs = [spec.listening_on(listener.fileno()) if spec.role == "gateway" else spec for spec in specs]
        if "state_dir" not in fixed["controller"]:
            kept = {"state_dir": str(directory.path)}
            specs = [
                replace(spec, arguments=kept | spec.arguments) if spec.role == "controller" else spec for spec in specs
            ]
        control = str(directory.control_socket)
        specs = [spec.having(control_socket=control) if spec.role == "controller" else spec for spec in specs]
        secret_file = directory.write_secret(secret)
        async with launcher_type(
            log_dir=directory.path,
            secret=secret,
            environ=os.environ,
            config=config,
            echo=_echo if options.verbose else None,
            preload=PRELOADED if options.preload else None,
        ) as launcher:
            supervisor = Supervisor(options, specs, launcher, directory, secret_file, tell, listener)
            try:
                await _until(stop, _serve(supervisor, session))
            finally:
                tell("stopping; press Ctrl-C again to end everything at once" if sys.stderr.isatty() else "stopping")
                if not await _until(force, supervisor.stop()):
                    tell("forced: every instance is ended at once")


@contextlib.contextmanager
def _endpoint(options: UpOptions, fixed: Collection[str]) -> Iterator[socket.socket | None]:
    """Yield the HTTP endpoint's socket, listening: connections wait in it while a gateway is replaced.

    ``None`` where the environment or the configuration file says where gateways listen; then each opens its own.
    """
    if {"http_host", "http_port", "http_fd"} & set(fixed):
        yield None
        return
    with open_tcp(options.host, options.port, "--port") as listener:
        listener.listen(BACKLOG)
        yield listener


async def _serve(supervisor: Supervisor, session: Session) -> None:
    await supervisor.start()
    async with asyncio.TaskGroup() as group:
        keeper = group.create_task(supervisor.keep(), name="keep")
        await session(supervisor)
        keeper.cancel()


async def _until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work`` to its end or until ``event``; returns whether it reached its end. Raises what ``work`` raises."""
    task = asyncio.create_task(work, name="work")
    waiter = asyncio.create_task(event.wait(), name="stop-signal")
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        finished = task.done()
        for each in (task, waiter):
            each.cancel()
        await asyncio.wait({task, waiter})
    if task.cancelled():
        return False
    with one_error():
        task.result()
    return finished


@contextlib.contextmanager
def _stop_signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Yield two events: set by the first SIGINT or SIGTERM, and by the second."""
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield first, second
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _echo(instance: str, line: str) -> None:
    print(f"{instance:>14} | {line}", file=sys.stderr, flush=True)
