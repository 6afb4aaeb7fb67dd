"""Continuous batching: which tokens of which requests the next step of one attention instance computes.

Decode comes first, so that running streams keep their pace; what remains of the step's token budget goes to prefill,
in chunks, in order of arrival. A request gets the blocks of its whole prompt when it starts, so that a prefill never
stops half-way, and one block at a time while it decodes. When no block is left, the request that arrived last loses its
blocks (preemption) and is computed anew from prompt and output when there is room again; no token is lost or repeated.

Several steps may be in flight at once (micro-batches): they never share a request, and each takes its share of the
decode tokens and of the budget (core/sharing.py).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from janus.core.batcher_config import BatcherConfig, BatcherStats, why_too_large
from janus.core.kv import KvTable
from janus.core.request import Accept, Action, Emit, Finish, Reject, Request, SamplingView, ended, failed
from janus.core.sharing import in_turn, share_of
from janus.core.step import Chunk, StepBuilder, StepPlan
from janus.errors import InvalidRequest, Overloaded, RequestError, Unavailable
from janus.messages.control import Submit, TokenDelta, TokenLogprob

__all__ = [
    "Accept",
    "Action",
    "Batcher",
    "BatcherConfig",
    "BatcherStats",
    "Chunk",
    "Emit",
    "Finish",
    "Reject",
    "SamplingView",
    "StepPlan",
]

_by_arrival = attrgetter("arrival")


class Batcher:
    """The batching state machine of one attention instance. Every accepted request gets exactly one ``Finish``."""

    def __init__(self, config: BatcherConfig) -> None:
        self.config = config
        self._kv = KvTable(
            max_running=config.max_running,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
        )
        # In order of arrival, both. Preempted requests come before all that never ran, as they arrived earlier.
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        #: Accepted, and neither finished nor cancelled.
        self._requests: dict[str, Request] = {}
        self._in_flight: dict[int, StepPlan] = {}
        self._arrivals = 0
        self._steps = 0
        self._preemptions = 0
        self._failed_steps = 0
        self._failed_in_a_row = 0
        self._failing_since: float | None = None
        self._draining = False

    # -- requests --------------------------------------------------------------------------------------------------

    def submit(self, request: Submit, *, eos_token_ids: Sequence[int], now: float) -> list[Action]:
        """Queue ``request``, or refuse it by name. Its parameters have passed ``janus.core.sampling.validate``.

        A request that resumes with all its tokens already emitted is accepted and finished at once.
        """
        error = self._refusal(request)
        if error is not None:
            return [Reject(request.request_id, error)]
        self._arrivals += 1
        accepted = Request(
            request,
            arrival=self._arrivals,
            eos_token_ids=eos_token_ids,
            max_model_len=self.config.max_model_len,
            now=now,
        )
        actions: list[Action] = [Accept(request.request_id)]
        if len(accepted.tokens) >= accepted.max_total:
            return actions + ended(accepted, "length", token_ids=[])
        self._requests[request.request_id] = accepted
        self._waiting.append(accepted)
        return actions

    def cancel(self, request_id: str) -> list[Action]:
        """Forget a request. One that is part of a step in flight keeps its blocks until that step has ended."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        if request.step_id:
            request.cancelled = True
        elif request.row < 0:
            self._waiting.remove(request)
        else:
            self._release(request)
        return [Finish(request_id, "cancelled", len(request.output_ids))]

    def drain(self) -> list[Action]:
        """Refuse new requests from now on; those accepted go on to their end."""
        self._draining = True
        return []

    def abort(self, error: RequestError, *, failing_since: float | None = None) -> list[Action]:
        """End every request with ``error``, at once. A step in flight is closed as ever, and its tokens dropped.

        With ``failing_since``, only requests of which no step has succeeded since then.
        """
        actions: list[Action] = []
        for request in tuple(self._requests.values()):
            if failing_since is not None and (request.failing_since is None or request.failing_since > failing_since):
                continue
            self.cancel(request.request_id)
            actions += failed(request, error)
        return actions

    # -- steps -----------------------------------------------------------------------------------------------------

    def plan(self, now: float, *, share: int = 1) -> StepPlan | None:
        """Return the next step, or ``None`` when nothing can be computed before another call changes the state.

        Close each plan with exactly one of ``step_done`` and ``step_failed``.

        Args:
            now: monotonic seconds.
            share: micro-batches that take turns. The step takes one part in ``share`` of the running streams and of
                the token budget, so that as many steps in flight compute together what a single one would.
        """
        builder = StepBuilder(step_id=self._steps + 1, token_budget=share_of(self.config.token_budget, share))
        self._add_decodes(builder, share)
        self._add_prefills(builder, now)
        if not builder.chunks:
            return None
        self._steps += 1
        plan = builder.build(
            tables=self._kv.tables,
            block_size=self.config.block_size,
            attempt=self._failed_in_a_row + 1,
            failing_since=self._failing_since,
        )
        self._in_flight[plan.step_id] = plan
        return plan

    def step_done(
        self,
        plan: StepPlan,
        sampled: Sequence[int] | npt.NDArray[np.int64],
        logprobs: Sequence[TokenLogprob | None] | None = None,
    ) -> list[Action]:
        """Take the tokens of a step. ``sampled[i]`` (and ``logprobs[i]``) belong to ``plan.sample_rows[i]``.

        Raises:
            ValueError: the plan is not in flight, or the number of tokens is wrong; nothing has changed.
        """
        token_ids: list[int] = sampled.tolist() if isinstance(sampled, np.ndarray) else list(sampled)
        wanted = len(plan.sampling)
        if len(token_ids) != wanted or (logprobs is not None and len(logprobs) != wanted):
            raise ValueError(f"step {plan.step_id} samples {wanted} tokens, {len(token_ids)} came back")
        self._close(plan)
        self._failed_in_a_row = 0
        self._failing_since = None
        actions: list[Action] = []
        row = -1
        for chunk, request in zip(plan.chunks, plan.requests, strict=True):
            row += chunk.sample
            request.step_id = 0
            request.failing_since = None
            request.computed += len(chunk.token_ids)
            if request.cancelled:
                self._release(request)
            elif chunk.sample:
                self._advance(request, token_ids[row], None if logprobs is None else logprobs[row], actions)
        return actions

    def step_failed(
        self, plan: StepPlan, *, retry: bool, error: RequestError | None = None, now: float
    ) -> list[Action]:
        """Take back a step of which nothing was sampled.

        With ``retry`` its requests stay, and later steps repeat its tokens. What earlier steps computed is still good;
        what this one may have written is overwritten by the repetition before anything reads it. ``attempt`` and
        ``failing_since`` of the next plan tell the caller when to give up. Without ``retry`` the requests end with
        ``error``.

        Raises:
            ValueError: the plan is not in flight, or an error is needed and missing; nothing has changed.
        """
        if not retry and error is None:
            raise ValueError("a step that is not retried needs the error that its clients will read")
        self._close(plan)
        self._failed_steps += 1
        self._failed_in_a_row += 1
        if self._failing_since is None:
            self._failing_since = now
        actions: list[Action] = []
        for request in plan.requests:
            request.step_id = 0
            if request.failing_since is None:
                request.failing_since = now
            if request.cancelled:
                self._release(request)
            elif not retry and error is not None:
                self._release(request)
                del self._requests[request.request_id]
                actions += failed(request, error)
        return actions

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        """Whether any request is waiting or running, or a step in flight is not closed."""
        return bool(self._requests or self._in_flight)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    def stats(self) -> BatcherStats:
        """Return a snapshot."""
        return BatcherStats(
            running=len(self._running),
            waiting=len(self._waiting),
            in_flight=len(self._in_flight),
            blocks_used=self._kv.num_used,
            blocks_total=self._kv.num_blocks,
            preemptions=self._preemptions,
            steps=self._steps,
            failed_steps=self._failed_steps,
            failing_since=self._failing_since,
            draining=self._draining,
        )

    def check(self) -> None:
        """Raise ``AssertionError`` unless every invariant of the state holds. For tests."""
        self._kv.check(self._running)
        for name, queue in (("running", self._running), ("waiting", list(self._waiting))):
            if queue != sorted(queue, key=_by_arrival):
                raise AssertionError(f"{name} is not in order of arrival")
        if any(r.row >= 0 or r.blocks or r.step_id for r in self._waiting):
            raise AssertionError("a waiting request holds a row, blocks or a step")
        live = [r for r in (*self._running, *self._waiting) if not r.cancelled]
        if {r.request_id: r for r in live} != self._requests:
            raise AssertionError("a live request is unknown, or a known one lost")
        if {r.step_id for r in self._running} - {0} - set(self._in_flight):
            raise AssertionError("a request believes that it is in a step that is not in flight")

    # -- parts of submit -------------------------------------------------------------------------------------------

    def _refusal(self, request: Submit) -> RequestError | None:
        if self._draining:
            return Unavailable("this attention instance is draining and takes no new requests", code="draining")
        if request.request_id in self._requests:
            return InvalidRequest(f"request id {request.request_id!r} is in use", param="request_id")
        misfit = why_too_large(self.config, prompt=len(request.prompt_ids), max_tokens=request.params.max_tokens)
        if misfit is None and len(self._waiting) >= self.config.max_waiting:
            return Overloaded(f"{self.config.max_waiting} requests wait on this attention instance already")
        return misfit

    # -- parts of plan ---------------------------------------------------------------------------------------------

    def _add_decodes(self, builder: StepBuilder, share: int) -> None:
        decoding = [request for request in self._running if request.decodes]
        free = [request for request in decoding if not request.step_id]
        limit = share_of(len(decoding), share)
        # Beyond the limit only in place of one that got no block: a later request never keeps an earlier one waiting.
        for request in in_turn(free, limit):
            if request.row < 0:  # preempted for one before it
                continue
            if builder.left == 0 or builder.num_decode == limit:
                return
            if request.computed < request.capacity or self._grow(request, builder):
                builder.add_decode(request)

    def _add_prefills(self, builder: StepBuilder, now: float) -> None:
        for request in self._running:
            if builder.left == 0:
                return
            if not request.step_id and not request.decodes:
                builder.add_prefill(request)
        # One block stays spare for each running request: without it a newcomer would be preempted as soon as a running
        # stream crosses into its next block, its prefill for nothing. It also keeps a request that was preempted above
        # from taking its blocks back.
        while self._waiting and builder.left:
            request = self._waiting[0]
            if not self._kv.admit(request, spare=len(self._running)):
                return
            self._waiting.popleft()
            insort(self._running, request, key=_by_arrival)
            if not request.started:
                request.started = True
                builder.started.append((request.request_id, now - request.submitted_at))
            builder.add_prefill(request)

    def _grow(self, request: Request, builder: StepBuilder) -> bool:
        """Give a running request its next block; preempt for it if need be. False: it sits this step out.

        Preempted are only requests that arrived later and are in no step. So the oldest request moves at the latest
        when a step has ended, whose requests are free to be preempted, and every other one gets there in its turn.
        """
        while not self._kv.grow(request):
            victim = next(r for r in reversed(self._running) if not r.step_id)  # at the latest, ``request`` itself
            if victim is request:
                return False
            self._preempt(victim)
            builder.preempted.append(victim.request_id)
        return True

    def _preempt(self, request: Request) -> None:
        self._release(request)
        self._preemptions += 1
        request.computed = 0
        # All that have run before are at the head, in order of arrival; there are at most max_running of them.
        index = 0
        while index < len(self._waiting) and self._waiting[index].arrival < request.arrival:
            index += 1
        self._waiting.insert(index, request)

    # -- parts of step_done and step_failed ------------------------------------------------------------------------

    def _close(self, plan: StepPlan) -> None:
        if self._in_flight.get(plan.step_id) is not plan:
            raise ValueError(f"step {plan.step_id} is not in flight")
        del self._in_flight[plan.step_id]

    def _advance(self, request: Request, token_id: int, logprob: TokenLogprob | None, actions: list[Action]) -> None:
        """Take one sampled token: emit it, or end the request."""
        index = len(request.output_ids)
        if token_id in request.stop_ids and index >= request.params.min_tokens:
            self._release(request)
            del self._requests[request.request_id]
            actions += ended(request, "stop", token_ids=[], stop_token_id=token_id)
            return
        request.tokens.append(token_id)
        request.output_ids.append(token_id)
        logprobs = None if logprob is None else [logprob]
        if len(request.tokens) >= request.max_total:
            self._release(request)
            del self._requests[request.request_id]
            actions += ended(request, "length", token_ids=[token_id], logprobs=logprobs)
            return
        actions.append(
            Emit(TokenDelta(request_id=request.request_id, index=index, token_ids=[token_id], logprobs=logprobs))
        )

    def _release(self, request: Request) -> None:
        """Take row and blocks back from a running request."""
        self._kv.release(request)
        self._running.remove(request)
