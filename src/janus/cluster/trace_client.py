"""Fetches and sends traces from and to a placement-controller's operations endpoint; see docs/trace.md."""

from __future__ import annotations

import time
from typing import Any

import httpx

from janus.cluster.state import RunDirectory
from janus.core.trace import Trace
from janus.errors import ConfigError, JanusError, TraceError
from janus.runtime import proof

_PATH = "/trace"
_TIMEOUT_S = 30.0


class TraceClient:
    """One controller, by the cluster's name on this machine, or by address and secret."""

    def __init__(self, *, name: str = "default", controller_ops: str = "", secret: str = "") -> None:
        """Raises ConfigError when no cluster of that name runs, or a secret is needed and not given."""
        if controller_ops:
            if not secret:
                raise ConfigError(
                    "--secret-file", "is needed with --controller-ops", "give the file with the cluster's secret"
                )
            self._url = controller_ops.rstrip("/")
        else:
            directory = RunDirectory(name)
            self._url = directory.read().controller_ops
            secret = secret or directory.secret()
        self._secret = secret.encode()

    def fetch(self) -> Trace:
        """Return what the router of this cluster chose lately.

        Raises:
            JanusError: the controller does not answer, or refuses.
            TraceError: it answers with something else.
        """
        return Trace.from_bytes(self._ask("GET", b"").content)

    def send(self, trace: Trace) -> dict[str, Any]:
        """Add the tokens of ``trace`` to what the cluster has sampled; returns the controller's answer.

        Raises:
            JanusError: the controller does not answer, or refuses.
            TraceError: the trace is of another model.
        """
        answer: dict[str, Any] = self._ask("PUT", trace.to_bytes()).json()
        return answer

    def _ask(self, method: str, body: bytes) -> httpx.Response:
        header = proof.prove(self._secret, method, _PATH, body, now=time.time())
        try:
            with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
                response = client.request(method, f"{self._url}{_PATH}", content=body, headers={proof.HEADER: header})
        except httpx.HTTPError as error:
            raise JanusError(f"{self._url}: the controller does not answer ({error}); see janus doctor") from error
        if response.status_code == 200:
            return response
        try:
            problem = str(response.json()["problem"])
        except (ValueError, KeyError, TypeError):
            problem = f"answered {response.status_code}; is this the --controller-ops of a placement-controller?"
        raise (TraceError if response.status_code == 409 else JanusError)(f"{self._url}: {problem}")
