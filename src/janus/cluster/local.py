"""Instances as subprocesses of this one, each in its own session, with its own log file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import structlog

from janus.cluster.environment import child_environment
from janus.cluster.forking import NURSERY_LOG, Forked, Nursery, NurseryGone
from janus.cluster.instances import MODULES, Exited, InstanceSpec, Started
from janus.cluster.output import MAX_LINE_BYTES, Output, tail
from janus.errors import LaunchError
from janus.messages.control import Role
from janus.runtime.tasks import OwnedTasks

_log = structlog.get_logger()

_MAX_EXITS = 4096
#: A process that was killed and is not gone by then is stuck in the kernel, in a driver or a file system.
_REAP_LIMIT_S = 10.0
#: Roles that are forked from a process that has loaded torch, and what else they load. The others are light.
FORKED: frozenset[Role] = frozenset({"attention", "expert"})
PRELOADED = ("janus_attention_server.service", "janus_expert_server.service")


@dataclass(slots=True)
class _Child:
    spec: InstanceSpec
    process: Process | Forked
    log: Path
    announced: asyncio.Future[dict[str, Any]]
    stopping: bool = False
    #: Reads its output and waits for its end; done once the process is reaped.
    keeper: asyncio.Task[None] | None = None


class LocalLauncher:
    """A ``Launcher`` of subprocesses. Use as an async context manager; leaving it ends every child by force.

    Children run in sessions of their own, so that Ctrl-C in a terminal reaches this process alone, which then stops
    them in order. They end themselves when this process is gone (``janus.runtime.parent``).
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        secret: str,
        environ: Mapping[str, str],
        config: Path | None = None,
        echo: Callable[[str, str], None] | None = None,
        preload: Collection[str] | None = PRELOADED,
    ) -> None:
        """Args:
        echo: called with (instance, log line) when logs are to be shown as they come; they always go to files.
        preload: modules that the process that forks loads; ``None``: every instance starts from nothing.
        """
        self._log_dir = log_dir
        self._secret = secret
        self._environ = dict(environ)
        self._config = config
        self._echo = echo
        self._preload = preload
        self._nursery: Nursery | None = None
        #: Held while one is started.
        self._opening = asyncio.Lock()
        self._children: dict[str, _Child] = {}
        self._tasks = OwnedTasks()
        self._exits: asyncio.Queue[Exited] = asyncio.Queue(_MAX_EXITS)

    async def __aenter__(self) -> LocalLauncher:
        if self._preload:
            await self._nurse()  # it loads while the first instances, which are none of its, start
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, spec: InstanceSpec, *, timeout_s: float) -> Started:
        """See ``Launcher.start``."""
        log = self._log_dir / f"{spec.name}.log"
        try:
            async with asyncio.timeout(timeout_s):
                child = await self._spawn(spec, log)
                line = await asyncio.shield(child.announced)
        except TimeoutError:
            problem = f"did not say within {timeout_s:g} s where it listens"
            raise LaunchError(spec.name, problem, log=str(log), log_tail=tail(log)) from None
        return Started(
            role=spec.role,
            name=spec.name,
            pid=child.process.pid,
            port=int(line["port"]),
            ops_port=int(line["ops_port"]),
            http_port=int(line.get("http_port") or spec.arguments.get("http_port") or 0),
            log=child.log,
        )

    async def stop(self, name: str, *, timeout_s: float) -> None:
        """See ``Launcher.stop``."""
        child = self._children.get(name)
        if child is None or child.keeper is None:
            return
        if not child.stopping:
            # Only once: to a service, a second SIGTERM means to end without finishing anything.
            child.stopping = True
            _signal(child, signal.SIGTERM)
        ended, _ = await asyncio.wait({child.keeper}, timeout=timeout_s)
        if not ended:
            _signal(child, signal.SIGKILL)
            await self._reaped(child)

    def kill(self, name: str) -> None:
        """See ``Launcher.kill``."""
        child = self._children.get(name)
        if child is not None:
            _signal(child, signal.SIGKILL)

    async def watch(self) -> Exited:
        """See ``Launcher.watch``."""
        return await self._exits.get()

    async def close(self) -> None:
        """See ``Launcher.close``."""
        for child in self._children.values():
            child.stopping = True
            _signal(child, signal.SIGKILL)
        await self._reaped(*self._children.values())
        await self._tasks.close()
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            await nursery.close()

    async def _reaped(self, *children: _Child) -> None:
        keepers = {child.keeper: child for child in children if child.keeper is not None}
        if not keepers:
            return
        _, late = await asyncio.wait(keepers, timeout=_REAP_LIMIT_S)
        for keeper in late:
            child = keepers[keeper]
            _log.error("process_does_not_end", child=child.spec.name, pid=child.process.pid, limit_s=_REAP_LIMIT_S)

    async def _spawn(self, spec: InstanceSpec, log: Path) -> _Child:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(log.open("ab", buffering=0))
            try:
                process = await self._process(spec, sink)
            except OSError as error:  # no memory, or too many processes
                raise LaunchError(spec.name, f"no process could be made ({error.strerror})", log=str(log)) from error
            except NurseryGone as error:
                own = self._log_dir / NURSERY_LOG
                raise LaunchError(spec.name, str(error), log=str(own), log_tail=tail(own)) from error
            announced = asyncio.get_running_loop().create_future()
            child = _Child(spec, process, log, announced)
            child.keeper = self._tasks.start(
                self._keep(child, sink), name=f"keep[{spec.name}]", failed=partial(_unwatched, child)
            )
            stack.pop_all()  # the keeper closes the file
        self._children[spec.name] = child
        return child

    async def _process(self, spec: InstanceSpec, sink: IO[bytes]) -> Process | Forked:
        # Straight to the file unless lines are shown: then a launcher that is stuck never blocks a server.
        environ = self._environment(spec.role, spec.threads)
        if self._preload is not None and spec.role in FORKED:
            nursery = await self._nurse()
            return await nursery.spawn(
                MODULES[spec.role],
                self._arguments(spec, parent_pid=nursery.process.pid),
                environ=environ,
                stderr=None if self._echo else sink.fileno(),
                fds=spec.fds,
                limit=MAX_LINE_BYTES,
            )
        return await asyncio.create_subprocess_exec(
            *self._command(spec),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE if self._echo else sink,
            env=environ,
            start_new_session=True,
            pass_fds=spec.fds,
            limit=MAX_LINE_BYTES,
        )

    def _command(self, spec: InstanceSpec) -> list[str]:
        return [sys.executable, "-m", MODULES[spec.role], *self._arguments(spec, parent_pid=os.getpid())]

    async def _nurse(self) -> Nursery:
        """The process that forks; another one where it has ended."""
        async with self._opening:
            if self._nursery is not None and self._nursery.gone:
                gone, self._nursery = self._nursery, None
                await gone.close()
            if self._nursery is None:
                environ = self._environment("expert", 1)
                self._nursery = await Nursery.open(tuple(self._preload or ()), environ=environ, log_dir=self._log_dir)
            return self._nursery

    def _environment(self, role: Role, threads: int) -> dict[str, str]:
        return child_environment(role, threads, secret=self._secret, base=self._environ)

    def _arguments(self, spec: InstanceSpec, *, parent_pid: int) -> list[str]:
        options = {**spec.arguments, "name": spec.name, "parent_pid": parent_pid}
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return words + (["--config", str(self._config)] if self._config else [])

    async def _keep(self, child: _Child, sink: IO[bytes]) -> None:
        """Own one process: store its output, learn where it listens, reap it, report its end."""
        process, name = child.process, child.spec.name
        with sink:
            assert process.stdout is not None
            output = Output(sink, show=None if self._echo is None else partial(self._echo, name))
            async with asyncio.TaskGroup() as group:
                group.create_task(output.announcement(process.stdout, child.announced), name=f"stdout[{name}]")
                if process.stderr is not None:
                    group.create_task(output.log(process.stderr), name=f"stderr[{name}]")
            status = await process.wait()
        if not child.announced.done():
            problem = f"ended with {describe_status(status)} before it listened"
            error = LaunchError(name, problem, log=str(child.log), log_tail=tail(child.log))
            child.announced.set_exception(error)
            child.announced.exception()  # taken: whoever started it may have given up
        elif not child.stopping:
            self._exits.put_nowait(Exited(role=child.spec.role, name=name, pid=process.pid, status=status))


def _unwatched(child: _Child, error: BaseException) -> None:
    """Whoever waits for where it listens is told that it will not be known."""
    if not child.announced.done():
        child.announced.set_exception(
            LaunchError(child.spec.name, f"cannot be watched ({type(error).__name__}: {error})", log=str(child.log))
        )
        child.announced.exception()  # taken: whoever started it may have given up


def describe_status(status: int) -> str:
    """``status 1``, or ``signal SIGKILL`` for a negative status."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _signal(child: _Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(number)


def port_arguments(role: Role, started: Started) -> dict[str, int]:
    """Arguments with which a restarted instance listens where its peers still look for it."""
    if role == "controller":
        return {"port": started.port, "ops_port": started.ops_port}
    return {"http_port": started.http_port} if role == "gateway" else {}
