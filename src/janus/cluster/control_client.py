"""Asks a running ``janus up`` to change its cluster, over its control socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from janus.cluster.state import RunDirectory
from janus.errors import ConfigError, JanusError, LaunchError
from janus.runtime.sockets import unix_address

_CONNECT_TIMEOUT_S = 5.0


class ControlClient:
    """The cluster ``name`` of this machine and user."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError when no such cluster runs."""
        directory = RunDirectory(name)
        directory.read()
        self._name = name
        self._path = directory.control_socket

    def ask(self, operation: str, body: dict[str, Any], tell: Callable[[str], None]) -> None:
        """Have ``operation`` (``scale``, ``drain``, ``restart``) done; returns when it is, ``tell`` hears of it.

        Interrupted, the operation goes on: it is the cluster's.

        Raises:
            ConfigError, LaunchError, JanusError: as the operation ended.
        """
        # No read timeout: the operations have deadlines of their own.
        timeout = httpx.Timeout(_CONNECT_TIMEOUT_S, read=None)
        try:
            with self._client(timeout) as client, client.stream("POST", f"/{operation}", json=body) as response:
                if response.status_code != 200:
                    raise _error(json.loads(response.read())["error"])
                for line in response.iter_lines():
                    event = json.loads(line)
                    if "line" in event:
                        tell(event["line"])
                    elif "error" in event:
                        raise _error(event["error"])
                    else:
                        return
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from error
        raise JanusError(f"cluster {self._name} ended before {operation} was done")

    def instances(self) -> dict[str, Any]:
        """What ``GET /instances`` says.

        Raises:
            JanusError: the cluster does not answer.
        """
        try:
            with self._client(httpx.Timeout(_CONNECT_TIMEOUT_S)) as client:
                found: dict[str, Any] = client.get("/instances").raise_for_status().json()
                return found
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from error

    @contextmanager
    def _client(self, timeout: httpx.Timeout) -> Iterator[httpx.Client]:
        if not self._path.exists():
            raise self._unreachable("no socket")
        with (
            unix_address(self._path) as address,
            httpx.Client(
                # There is no TLS on a Unix socket, and to load certificates takes 20 ms.
                transport=httpx.HTTPTransport(uds=address, verify=False),
                base_url="http://janus",
                timeout=timeout,
            ) as client,
        ):
            yield client

    def _unreachable(self, problem: str) -> JanusError:
        return JanusError(
            f"cluster {self._name} does not take operations ({problem}: {self._path}); "
            "it does so from its ready: line until it stops"
        )


def _error(found: dict[str, Any]) -> JanusError:
    if "field" in found:
        return ConfigError(found["field"], found["problem"], found["remedy"])
    if "instance" in found:
        tail = tuple(found["log_tail"])
        return LaunchError(found["instance"], found["problem"], log=found["log"], log_tail=tail)
    return JanusError(found["message"])
