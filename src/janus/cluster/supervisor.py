"""Starts a whole cluster, keeps it running, changes it on demand, and stops it in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from janus.cluster.controller_tool import ControllerTool
from janus.cluster.fleet import CONTROLLER, Fleet
from janus.cluster.groups import one_error
from janus.cluster.hung import HungWatch
from janus.cluster.instances import InstanceSpec
from janus.cluster.jobs import Jobs
from janus.cluster.launcher import Launcher
from janus.cluster.local import describe_status
from janus.cluster.operations import Operations
from janus.cluster.output import tail
from janus.cluster.sizes import Sizes
from janus.cluster.state import ClusterState, InstanceState, RunDirectory
from janus.cluster.status import fetch_status, what_is_missing
from janus.config import UpOptions
from janus.errors import DeadlineExceeded, LaunchError, LinkError
from janus.transport.endpoint import load

#: Seconds between two looks at the gateways' /ready, and how often progress is told.
_POLL_S = 0.1
#: Seconds between two looks at who hangs.
_HUNG_POLL_S = 1.0


@dataclass(slots=True)
class Supervisor:
    """One cluster. ``tell`` takes lines for the user; ``start``, ``keep``, ``stop`` are called in this order.

    ``start`` and ``keep`` may be cancelled at any point; ``stop`` then still stops whatever runs.
    """

    options: UpOptions
    specs: list[InstanceSpec]
    launcher: Launcher
    directory: RunDirectory
    secret_file: Path
    tell: Callable[[str], None]
    #: The HTTP endpoint's socket, which gateways inherit; ``None``: each opens its own.
    listener: socket.socket | None = None
    fleet: Fleet = field(init=False)
    jobs: Jobs = field(init=False)
    operations: Operations = field(init=False)
    _hung: HungWatch = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.jobs = Jobs(self.tell)
        self.fleet = Fleet(
            launcher=self.launcher,
            start_timeout_s=options.start_timeout_s,
            drain_timeout_s=options.drain_timeout_s,
            tell=self.jobs.tell,
            changed=self._write_state,
        )
        controller = ControllerTool(
            find=lambda: self.fleet.controller,
            transport=options.transport,
            secret=self.secret_file.read_text().strip(),
        )
        self.operations = Operations(
            fleet=self.fleet,
            controller=controller,
            sizes=Sizes(
                gateways=options.gateways,
                attention=options.attention,
                experts=0 if options.monolithic else options.experts,
            ),
            tell=self.jobs.tell,
            ready_timeout_s=options.start_timeout_s,
        )
        self._hung = HungWatch(options.hung_after_s)

    @property
    def url(self) -> str:
        """Base URL of the OpenAI-compatible endpoint, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.options.host, self.options.host)
        if self.listener is not None:
            return f"http://{host}:{self.listener.getsockname()[1]}"
        return f"http://{host}:{self.fleet.http_port}"

    @property
    def controller_ops(self) -> str:
        """Base URL of the controller's operations endpoint."""
        return f"http://127.0.0.1:{self.fleet.controller.ops_port}"

    async def start(self) -> None:
        """Start every instance and return once requests will be served.

        Raises:
            LaunchError: an instance ended, or the cluster was not ready within ``start_timeout_s``.
        """
        deadline = asyncio.get_running_loop().time() + self.options.start_timeout_s
        controller, *others = self.specs
        await self.fleet.start(controller)
        with one_error():
            async with asyncio.TaskGroup() as group:
                for spec in others:
                    group.create_task(self.fleet.start(spec), name=f"start[{spec.name}]")
        with one_error():
            await self._watch_until_ready(deadline)

    async def keep(self) -> None:
        """Run until cancelled: take operations, restart instances that end or hang when the options say so."""
        # The HTTP stack takes a second to load, and the instances are what the user waits for.
        from janus.cluster.control import ControlApi
        from janus.runtime.http import HttpServer
        from janus.runtime.sockets import open_unix

        async with asyncio.TaskGroup() as group:
            api = ControlApi(operations=self.operations, fleet=self.fleet, jobs=self.jobs, group=group)
            server = HttpServer(api.app(), listener=open_unix(self.directory.control_socket))
            await server.start()
            # Operations need it, and it takes half a second, in which this loop should hear of instances that end.
            group.create_task(asyncio.to_thread(load, self.options.transport), name="load-transport")
            try:
                if self.options.hung_after_s and self.options.restart != "never":
                    group.create_task(self._watch_hung(), name="watch-hung")
                while True:
                    exited = await self.launcher.watch()
                    if self.options.restart == "never":
                        self.jobs.tell(f"{exited.name} ended with {describe_status(exited.status)}; not restarted")
                        self.fleet.lost(exited)
                    else:
                        self.fleet.revive(exited, group)
            finally:
                self.jobs.cancel()
                await server.close()

    async def stop(self) -> None:
        """Stop every instance, role by role, so that none loses a peer that it still needs."""
        if self.listener is not None:
            # From here on new connections are refused when the last gateway is gone, and do not wait for nobody.
            self.listener.close()
        await self.fleet.stop_all()

    # -- start ---------------------------------------------------------------------------------------------------

    async def _watch_until_ready(self, deadline: float) -> None:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._fail_on_exit(), name="watch-start")
            await self._until_ready(deadline)
            watcher.cancel()

    async def _until_ready(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        missing = told = "not asked yet"
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while not await self._gateways_ready(client):
                missing = await self._missing()
                if missing != told:
                    self.tell(f"waiting: {missing}")
                    told = missing
                if loop.time() > deadline:
                    problem = f"not ready after {self.options.start_timeout_s:g} s: {missing}"
                    raise LaunchError(f"cluster {self.options.name}", problem, log=str(self.directory.path))
                await asyncio.sleep(_POLL_S)

    async def _gateways_ready(self, client: httpx.AsyncClient) -> bool:
        """Whether each serves; asked one by one, where they share the endpoint's socket."""
        for each in self.fleet.running():
            if each.role == "gateway" and not await _is_ready(client, f"http://127.0.0.1:{each.ops_port}"):
                return False
        return True

    async def _missing(self) -> str:
        try:
            return what_is_missing(await fetch_status(self.controller_ops))
        except (httpx.HTTPError, ValueError) as error:
            return f"the controller does not answer ({type(error).__name__})"

    async def _fail_on_exit(self) -> None:
        exited = await self.launcher.watch()
        log = self.directory.path / f"{exited.name}.log"
        problem = f"ended with {describe_status(exited.status)} during the start"
        raise LaunchError(exited.name, problem, log=str(log), log_tail=tail(log))

    # -- keep ----------------------------------------------------------------------------------------------------

    async def _watch_hung(self) -> None:
        """End what the controller has given up, and the controller when it answers nothing; it is restarted then."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_HUNG_POLL_S)
            controller = self.fleet.started(CONTROLLER)
            if controller is None:
                continue
            try:
                report = await self.operations.controller.status()
            except DeadlineExceeded:
                hung = [controller] if self._hung.silent(controller, now=loop.time()) else []
            except LinkError:
                continue  # it starts, or ends: others see to that
            else:
                hung = self._hung.hung(report, self.fleet.running(), now=loop.time())
            for each in hung:
                why = "answers nothing" if each.role == "controller" else "was given up by the controller"
                self.jobs.tell(f"{each.name} hangs: it {why}, and its process {each.pid} lives; it is ended by force")
                self.launcher.kill(each.name)

    def _write_state(self) -> None:
        running = self.fleet.running()
        controller = self.fleet.controller
        self.directory.write(
            ClusterState(
                name=self.options.name,
                pid=os.getpid(),
                url=self.url,
                controller=f"127.0.0.1:{controller.port}",
                controller_ops=self.controller_ops,
                secret_file=str(self.secret_file),
                model=str(self.options.model.resolve()),
                served_model_name=self.options.model.resolve().name,
                instances=[
                    InstanceState(
                        role=started.role,
                        name=started.name,
                        pid=started.pid,
                        port=started.port,
                        ops_port=started.ops_port,
                        log=str(started.log),
                    )
                    for started in running
                ],
            )
        )


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/ready")).status_code == 200
    except httpx.HTTPError:
        return False
