"""The engine of an attention instance: plan a step, run the model, sample, publish. On the step loop only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import torch

from janus.core.batcher import Action, Batcher, BatcherStats, Emit, Finish, StepPlan
from janus.core.micro_batches import MicroBatchPolicy, StepSample
from janus.core.sampling import validate
from janus.errors import DispatchError, InvalidRequest, ReplicaMissing, RequestError, Unavailable
from janus.exchange.contract import ExpertExchange
from janus.messages.control import Submit, TokenDelta
from janus.model.attention_model import AttentionModel
from janus.model.kv_cache import PagedKVCache
from janus.model.sampler import sample
from janus.runtime.forward import ForwardPass
from janus.runtime.routing_sampler import RoutingSampler
from janus.runtime.step_news import StepNews, refusal
from janus.runtime.step_times import StepTimes, Stopwatch, Turns

log = structlog.get_logger()

#: How long a stale epoch may take to be replaced before the dispatch is tried again.
_REPLAN_WAIT_S = 0.25


class AttentionEngine:
    """Continuous batching over one model and one exchange; the only writer of every request's state."""

    def __init__(
        self,
        *,
        model: AttentionModel,
        kv: PagedKVCache,
        batcher: Batcher,
        exchange: ExpertExchange[Any],
        micro_batches: MicroBatchPolicy,
        recovery_timeout_s: float,
        publish: Callable[[StepNews], None],
        routing: RoutingSampler | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """``micro_batches`` decides how many steps are in flight at the same time, by what ``clock_ns`` measures.

        ``routing`` is shown what the router chooses; ``None`` samples nothing.
        """
        self._model = model
        self._batcher = batcher
        self._exchange = exchange
        self._policy = micro_batches
        self._clock_ns = clock_ns
        self._recovery_timeout_s = recovery_timeout_s
        self._publish_news = publish
        self._eos = tuple(model.config.eos_token_ids)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.times = StepTimes()
        self._turns = Turns(self.times)
        self._forward = ForwardPass(
            model=model,
            kv=kv,
            exchange=exchange,
            routing=routing or RoutingSampler(0),
            turns=self._turns,
            clock_ns=clock_ns,
        )
        #: What the policy chose last.
        self.micro_batches = 1
        #: Steps that are not over; one that waits for experts to come back is among them.
        self._in_flight = 0
        #: Of them, those that compute prompts.
        self._prompts = 0
        #: Since when as many steps are in flight as chosen, with nothing out of the ordinary.
        self._settled_ns = 0

    # -- commands ------------------------------------------------------------------------------------------------

    def submit(self, message: Submit) -> None:
        """Queue a request, or answer it with a refusal."""
        try:
            self._check(message)
            actions = self._batcher.submit(message, eos_token_ids=self._eos, now=time.monotonic())
        except RequestError as error:
            actions = []
            self._publish([refusal(message, error)], [])
        self._act(actions, message)
        if self._batcher.has_requests:
            self._idle.clear()
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """Forget a request."""
        self._act(self._batcher.cancel(request_id))
        self._wake.set()

    async def drain(self, timeout_s: float) -> None:
        """Refuse what is new, finish what is there; what is left after ``timeout_s`` ends with an error."""
        self._batcher.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._act(self._batcher.abort(Unavailable("the attention instance is shutting down", code="draining")))

    def stats(self) -> BatcherStats:
        """A snapshot of the batcher; may be read from another thread."""
        return self._batcher.stats()

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Step for as long as there is something to compute; runs until cancelled."""
        # Entered once: the mode belongs to the thread, and everything on this loop is inference.
        with torch.inference_mode():
            async with asyncio.TaskGroup() as tasks:
                while True:
                    started = self._clock_ns()
                    plan = self._plan()
                    if plan is None:
                        if not self._batcher.has_requests:
                            self._idle.set()
                        self._wake.clear()
                        await self._wake.wait()
                        continue
                    self.times.plan_ns += self._clock_ns() - started
                    if self.micro_batches == 1:
                        await self._step(plan, started)  # a task of its own would gain nothing
                    else:
                        tasks.create_task(self._step(plan, started), name=f"step[{plan.step_id}]")
                    await asyncio.sleep(0)  # commands come in between steps, also when the exchange never suspends

    def _plan(self) -> StepPlan | None:
        """The next step, unless as many are in flight as should be, or nothing is left to compute."""
        chosen = self._policy.choose(self._batcher.num_running)
        if chosen != self.micro_batches:
            self.micro_batches = chosen
            self._unsettle()
        if self._in_flight >= chosen:
            return None
        plan = self._batcher.plan(time.monotonic(), share=chosen)
        if plan is None:
            self._unsettle()
            return None
        self._in_flight += 1
        self._prompts += plan.has_prompts
        if self._in_flight < chosen or plan.has_prompts:
            self._unsettle()
        return plan

    async def _step(self, plan: StepPlan, started_ns: int) -> None:
        try:
            await self._compute(plan, started_ns)
        finally:
            self._in_flight -= 1
            self._prompts -= plan.has_prompts
            if plan.has_prompts:
                self._unsettle()
            self._wake.set()

    async def _compute(self, plan: StepPlan, started_ns: int) -> None:
        watch = Stopwatch(self.times, self._clock_ns)
        chosen, idle_ns = self.micro_batches, self.times.idle_ns
        try:
            if not self._exchange.ready():
                await self._wait_for_experts(plan)
            self._turns.begin(self._clock_ns())
            try:
                logits = await self._forward.run(plan, watch)
                ids, logprobs = sample(logits, plan.sampling)
            finally:
                self._turns.end(watch.lap("sample_ns"))
        except DispatchError as error:
            await self._failed(plan, error)
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # A bug or a device error: the requests of this step end by name, the server goes on.
            log.exception("step_failed", step=plan.step_id)
            message = f"the step failed on the attention instance: {type(error).__name__}"
            actions = self._batcher.step_failed(
                plan, retry=False, error=RequestError(message, code="step_failed"), now=time.monotonic()
            )
            self._act(actions)
            return
        streams = self._batcher.num_running
        actions = self._batcher.step_done(plan, ids, logprobs)
        self.times.steps += 1
        self.times.tokens += len(plan.sampling)
        step_ns = self._clock_ns() - started_ns
        self.times.total_ns += step_ns
        self._policy.record(
            StepSample(
                micro_batches=chosen,
                streams=streams,
                step_s=step_ns / 1e9,
                idle_s=(self.times.idle_ns - idle_ns) / 1e9,
                settled=started_ns > self._settled_ns and not self._prompts,
            )
        )
        self._act(actions, step=plan, step_s=step_ns / 1e9)
        watch.lap("publish_ns")

    def _unsettle(self) -> None:
        self._settled_ns = self._clock_ns()

    # -- failure -------------------------------------------------------------------------------------------------

    async def _wait_for_experts(self, plan: StepPlan) -> None:
        self._unsettle()
        since = plan.failing_since
        spent = 0.0 if since is None else time.monotonic() - since
        await self._exchange.wait_ready(max(0.0, self._recovery_timeout_s - spent))

    async def _failed(self, plan: StepPlan, error: DispatchError) -> None:
        """Put the step's requests back, or, when the experts stay away for too long, refuse them by name."""
        self._unsettle()
        now = time.monotonic()
        since = plan.failing_since
        lasted = 0.0 if since is None else now - since
        if lasted >= self._recovery_timeout_s:
            self._refuse(plan, error)
            return
        try:
            await self._exchange.wait_ready(self._recovery_timeout_s - lasted)
        except DispatchError as lost:
            self._refuse(plan, lost)
            return
        log.warning("step_retried", step=plan.step_id, attempt=plan.attempt, problem=str(error))
        self._act(self._batcher.step_failed(plan, retry=True, now=now))
        if isinstance(error, ReplicaMissing):
            await self._exchange.wait_changed(_REPLAN_WAIT_S)

    def _refuse(self, plan: StepPlan, error: DispatchError) -> None:
        """End every request, as none can be computed without its experts; where others succeed, those that never do."""
        others_succeed = self._batcher.stats().failing_since != plan.failing_since
        refusal = Unavailable(f"experts are unavailable: {error}", code="experts_unavailable", retry_after_s=2.0)
        log.error("requests_refused", step=plan.step_id, attempt=plan.attempt, problem=str(error))
        self._act(self._batcher.step_failed(plan, retry=True, now=time.monotonic()))
        self._act(self._batcher.abort(refusal, failing_since=plan.failing_since if others_succeed else None))

    # -- news ----------------------------------------------------------------------------------------------------

    def _check(self, message: Submit) -> None:
        config = self._model.config
        validate(message.params, config.vocab_size)
        if any(not 0 <= token < config.vocab_size for token in (*message.prompt_ids, *message.emitted_ids)):
            raise InvalidRequest(
                f"the prompt has a token id outside 0..{config.vocab_size - 1}; use the model's own tokenizer",
                param="prompt",
            )

    def _act(
        self,
        actions: Sequence[Action],
        origin: Submit | None = None,
        *,
        step: StepPlan | None = None,
        step_s: float = 0.0,
    ) -> None:
        deltas: list[TokenDelta] = []
        finished: list[Finish] = []
        for action in actions:
            if isinstance(action, Emit):
                deltas.append(action.delta)
            elif isinstance(action, Finish):
                finished.append(action)
            elif origin is not None and (error := getattr(action, "error", None)) is not None:
                deltas.append(refusal(origin, error))
        if deltas or finished or step is not None:
            self._publish(deltas, finished, step, step_s)

    def _publish(
        self, deltas: list[TokenDelta], finished: list[Finish], step: StepPlan | None = None, step_s: float = 0.0
    ) -> None:
        self._publish_news(
            StepNews(
                deltas=deltas,
                finished=finished,
                stats=self._batcher.stats(),
                activated=self._exchange.activated() if step is not None else {},
                step_s=step_s,
                rows=0 if step is None else len(step.token_ids),
                sampled=0 if step is None else len(step.sampling),
                queue_s=() if step is None else tuple(waited for _, waited in step.started),
                preempted=0 if step is None else len(step.preempted),
            )
        )
