"""What the gateway lets in, and which attention instance gets it.

Outstanding work is bounded in requests and in tokens; what would exceed either is refused at once, with the time at
which a place is likely. Nothing queues here. A request costs its prompt and the tokens that it may still produce.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from janus.errors import ConfigError, Overloaded, Unavailable
from janus.messages.control import ClusterView

#: Completions that the rate is measured over, at most.
RATE_WINDOW = 64
#: Seconds that a refused client is told to stay away, at least and at most.
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Bounds over all attention instances together."""

    max_requests: int
    #: Prompt tokens not yet computed plus output tokens not yet produced. A request larger than this alone is let in
    #: when nothing else is outstanding, so that no request is refused for ever.
    max_tokens: int

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionStats:
    """A snapshot for metrics. Counts since the start: ``admitted``, ``refused``."""

    requests: int
    tokens: int
    admitted: int
    refused: int
    #: {attention instance: (requests, tokens)} outstanding.
    per_instance: dict[str, tuple[int, int]]


@dataclass(slots=True)
class _Load:
    requests: int = 0
    tokens: int = 0
    last_chosen: int = 0


@dataclass(slots=True)
class _Ticket:
    instance: str
    prompt: int
    #: Output tokens still to come, at most.
    output: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.output


def why_not_serving(view: ClusterView | None) -> str:
    """Return why the cluster of ``view`` cannot serve, naming what is missing; empty when it can."""
    if view is None:
        return "the placement-controller has not answered yet"
    # An attention instance says "ready" when it reaches every expert, on expert-servers or, with local experts, in its
    # own process; in the latter case there is never a placement.
    if any(member.role == "attention" and member.state == "ready" for member in view.members):
        return ""
    missing = f"; missing: {', '.join(view.missing)}" if view.missing else ""
    if view.placement is None:
        return f"no placement is in force: not every expert is loaded{missing}"
    return f"no attention instance is ready{missing}"


class Admission:
    """Counts outstanding work and spreads it: least outstanding tokens first."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.config = config
        self._loads: dict[str, _Load] = {}
        self._ready: tuple[str, ...] = ()
        self._why_not = why_not_serving(None)
        self._tickets: dict[str, _Ticket] = {}
        self._tokens = 0
        self._choices = 0
        self._admitted = 0
        self._refused = 0
        self._draining = False
        self._completions: deque[float] = deque(maxlen=RATE_WINDOW)
        #: When the last refused client is expected back.
        self._promised = float("-inf")

    def update(self, view: ClusterView) -> None:
        """Follow the cluster. Requests on instances that are gone stay counted until moved or released."""
        self._why_not = why_not_serving(view)
        self._ready = tuple(m.instance for m in view.members if m.role == "attention" and m.state == "ready")
        used = {ticket.instance for ticket in self._tickets.values()}
        self._loads = {name: self._loads.get(name) or _Load() for name in {*self._ready, *used}}

    def drain(self) -> None:
        """Refuse everything new from now on."""
        self._draining = True

    @property
    def why_not_ready(self) -> str:
        """Why new requests are refused with 503 now; empty when they are not."""
        return "the gateway is draining" if self._draining else self._why_not

    def admit(self, request_id: str, *, prompt_tokens: int, max_tokens: int, now: float) -> str:
        """Let a request in and return its attention instance. ``release`` it when it has ended, however it has.

        Raises:
            Unavailable: nothing can serve it now; the message says what is missing.
            Overloaded: it would exceed a bound; ``retry_after_s`` follows from the rate at which requests complete.
            ValueError: the id is in use.
        """
        if request_id in self._tickets:
            raise ValueError(f"request id {request_id!r} is in use")
        ticket = _Ticket("", prompt_tokens, max_tokens)
        try:
            self._require_serving()
            self._require_room(ticket, now)
            self._assign(request_id, ticket, self._choose(()))
        except (Unavailable, Overloaded):
            self._refused += 1
            raise
        self._admitted += 1
        return ticket.instance

    def move(self, request_id: str, *, avoid: Collection[str], resumed_tokens: int = 0) -> str:
        """Give a request that is in to another instance and return it; ``resumed_tokens`` are to be computed anew.

        Raises:
            Unavailable: no instance but those to ``avoid`` is ready; the request stays counted where it was.
            KeyError: the request is not in.
        """
        ticket = self._tickets[request_id]
        chosen = self._choose(avoid)
        self._unassign(request_id)
        ticket.prompt = resumed_tokens or ticket.prompt
        self._assign(request_id, ticket, chosen)
        return chosen

    def progress(self, request_id: str, tokens: int) -> None:
        """Take ``tokens`` more output tokens of a request off what is outstanding (with the first, its prompt)."""
        ticket = self._tickets.get(request_id)
        if ticket is None or tokens <= 0:
            return
        done = ticket.prompt + min(tokens, ticket.output)
        ticket.prompt = 0
        ticket.output -= min(tokens, ticket.output)
        self._tokens -= done
        self._loads[ticket.instance].tokens -= done

    def release(self, request_id: str, *, now: float) -> None:
        """Forget a request that has finished, failed or been cancelled. Unknown ids are ignored."""
        if request_id in self._tickets:
            ticket = self._unassign(request_id)
            if ticket.instance not in self._ready and self._loads[ticket.instance].requests == 0:
                del self._loads[ticket.instance]
            self._completions.append(now)
            if not self._tickets:
                self._completions.clear()  # time without work says nothing about how fast work is done

    def on(self, instance: str) -> list[str]:
        """Return the requests on ``instance``, oldest first: those to move when it dies."""
        return [request_id for request_id, ticket in self._tickets.items() if ticket.instance == instance]

    def outstanding(self, instance: str) -> int:
        """Return the tokens that are outstanding on ``instance``; 0 for one that has no requests."""
        load = self._loads.get(instance)
        return 0 if load is None else load.tokens

    def stats(self) -> AdmissionStats:
        """Return a snapshot."""
        return AdmissionStats(
            requests=len(self._tickets),
            tokens=self._tokens,
            admitted=self._admitted,
            refused=self._refused,
            per_instance={name: (load.requests, load.tokens) for name, load in sorted(self._loads.items())},
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def _require_serving(self) -> None:
        if self._draining:
            raise Unavailable("the gateway is draining; send the request elsewhere", code="draining")
        if self._why_not:
            raise Unavailable(f"cannot serve now: {self._why_not}", retry_after_s=MIN_RETRY_S)

    def _require_room(self, ticket: _Ticket, now: float) -> None:
        requests, tokens = len(self._tickets), self._tokens
        if requests >= self.config.max_requests:
            problem = f"{requests} requests are in progress, the limit of this gateway"
        elif requests and tokens + ticket.tokens > self.config.max_tokens:
            problem = (
                f"{tokens} tokens are outstanding and this request may need {ticket.tokens}; "
                f"the limit of this gateway is {self.config.max_tokens}"
            )
        else:
            return
        retry_s = self._retry_after_s(now)
        raise Overloaded(f"{problem}; retry in {retry_s:.0f} s", retry_after_s=retry_s)

    def _retry_after_s(self, now: float) -> float:
        """Return when a place is likely to be free for this client, given those already sent away.

        Each refused client is promised the next completion after the one promised before, so that they do not all
        come back at the same moment.
        """
        interval = MIN_RETRY_S
        if len(self._completions) > 1:
            interval = (now - self._completions[0]) / (len(self._completions) - 1)
        self._promised = max(self._promised, now) + interval
        retry_s = min(max(self._promised - now, MIN_RETRY_S), MAX_RETRY_S)
        self._promised = min(self._promised, now + MAX_RETRY_S)
        return retry_s

    def _choose(self, avoid: Collection[str]) -> str:
        names = [name for name in self._ready if name not in avoid]
        if not names:
            problem = self._why_not or f"no attention instance is ready besides {', '.join(sorted(avoid))}"
            raise Unavailable(f"cannot serve now: {problem}", retry_after_s=MIN_RETRY_S)
        loads = self._loads
        # Among equals the one that was idle longest, so that a trickle of requests warms all instances.
        return min(names, key=lambda name: (loads[name].tokens, loads[name].requests, loads[name].last_chosen))

    def _assign(self, request_id: str, ticket: _Ticket, instance: str) -> None:
        self._choices += 1
        load = self._loads[instance]
        load.last_chosen = self._choices
        load.requests += 1
        load.tokens += ticket.tokens
        self._tokens += ticket.tokens
        ticket.instance = instance
        self._tickets[request_id] = ticket

    def _unassign(self, request_id: str) -> _Ticket:
        ticket = self._tickets.pop(request_id)
        load = self._loads[ticket.instance]
        load.requests -= 1
        load.tokens -= ticket.tokens
        self._tokens -= ticket.tokens
        return ticket
