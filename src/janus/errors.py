"""Every error that Janus raises on purpose.

    JanusError
    ├── ConfigError            an option, file or environment variable is wrong; names the field and the remedy
    ├── LaunchError            an instance did not start; names it and carries its last log lines
    ├── CheckpointError        a model directory cannot be served; names the file or tensor
    ├── TraceError             a file of sampled routing is damaged, or of another model than the cluster's
    ├── RequestError           one request cannot be (further) served; carries the HTTP status that the client sees
    │   ├── InvalidRequest     400: the client's mistake, names the parameter
    │   ├── Overloaded         429: admission is full, carries retry_after_s
    │   └── Unavailable        503: the cluster cannot serve now, carries retry_after_s
    ├── LinkError              a connection between two instances; names the peer
    │   ├── LinkClosed         we closed it
    │   ├── LinkBroken         the peer, or the network, did
    │   ├── LinkBusy           no credit is left for a send that may not wait
    │   ├── DeadlineExceeded   a wait reached its deadline; the link itself may be fine
    │   ├── ProtocolViolation  the peer sent bytes that are no frame of ours
    │   └── PeerRefused        the handshake ended in a refusal; carries its code
    └── DispatchError          a layer's experts did not all answer
        ├── InstanceLost       an expert instance died or fell silent during a dispatch
        └── ReplicaMissing     an instance was asked for a replica that it does not hold (stale epoch)

Raise the most specific one, chained with ``from`` where there is a cause. Nothing relabels ``asyncio.CancelledError``.
"""

from __future__ import annotations


class JanusError(Exception):
    """Base of everything that Janus raises on purpose."""


class ConfigError(JanusError):
    """An option is wrong. ``field`` is its name as the user wrote it, ``remedy`` what to do."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class CheckpointError(JanusError):
    """A model directory cannot be served. ``where`` names the file or the tensor."""

    def __init__(self, where: str, problem: str, remedy: str = "check the files or choose another --model") -> None:
        super().__init__(f"{where}: {problem}; {remedy}")
        self.where = where
        self.problem = problem
        self.remedy = remedy


class TraceError(JanusError):
    """A trace cannot be used; says what is wrong with it, and, of another model's, what differs."""


class LaunchError(JanusError):
    """Instance ``instance`` did not start. ``log_tail`` holds its last log lines, ``log`` the file's path."""

    def __init__(self, instance: str, problem: str, *, log: str = "", log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(f"{instance}: {problem}")
        self.instance = instance
        self.problem = problem
        self.log = log
        self.log_tail = log_tail


class RequestError(JanusError):
    """One request cannot be served. ``status`` is the HTTP status, ``code`` a stable machine-readable word."""

    status: int = 500
    code: str = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class InvalidRequest(RequestError):
    """The client's mistake; ``param`` names the offending field."""

    status = 400
    code = "invalid_request"


class Overloaded(RequestError):
    """Admission is full. The client may come back after ``retry_after_s`` seconds."""

    status = 429
    code = "overloaded"


class Unavailable(RequestError):
    """The cluster cannot serve this now (starting, draining, or an instance is lost)."""

    status = 503
    code = "unavailable"


class LinkError(JanusError):
    """Something about the connection to ``peer`` (an instance name or ``host:port``)."""

    def __init__(self, peer: str, problem: str) -> None:
        super().__init__(f"{peer}: {problem}")
        self.peer = peer
        self.problem = problem


class LinkClosed(LinkError):
    """This side closed the link before or during the operation."""


class LinkBroken(LinkError):
    """The peer died, closed, fell silent or cannot be reached."""


class LinkBusy(LinkError):
    """No send credit is left; the peer is not consuming."""


class DeadlineExceeded(LinkError):
    """A wait on the peer reached its deadline."""


class ProtocolViolation(LinkError):
    """The peer sent bytes that are no valid frame; the link is dropped."""


class PeerRefused(LinkError):
    """The handshake was refused. ``code`` is one of ``janus.messages.control.RefusalCode``."""

    def __init__(self, peer: str, code: str, problem: str) -> None:
        super().__init__(peer, f"refused ({code}): {problem}")
        self.code = code


class DispatchError(JanusError):
    """The experts of one layer did not all answer. ``instances`` names those that did not."""

    def __init__(self, problem: str, *, instances: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.instances = instances


class InstanceLost(DispatchError):
    """An expert instance died, or did not answer within the dispatch deadline."""


class ReplicaMissing(DispatchError):
    """An expert instance does not hold a replica that the dispatch asked for (its epoch is stale)."""
