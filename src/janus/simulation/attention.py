"""One simulated attention instance: the batcher that serves, and steps that take their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus.core.batcher import Action, StepPlan
from janus.core.batcher_config import BatcherStats
from janus.errors import RequestError, Unavailable
from janus.messages.control import Submit
from janus.simulation.agenda import Agenda, Event
from janus.simulation.batching import SteadyBatcher
from janus.simulation.config import ClusterConfig
from janus.simulation.runs import Run
from janus.simulation.timing import StepClock

#: (instance, actions, when): what the batcher tells the gateway.
Deliver = Callable[["AttentionInstance", Sequence[Action], float], None]
#: A run whose middle is further from its mean than this share of a step is no straight line, and is cut.
_STRAIGHT = 1e-6


@dataclass(slots=True, kw_only=True)
class _Step:
    """One step that is planned: computed, or waiting for its experts."""

    plan: StepPlan
    begun_s: float
    #: When it is over; while it waits, when it gives up.
    due_s: float
    event: Event
    computing: bool = True


class AttentionInstance:
    """Computes steps for as long as it has requests. Every method is called at the agenda's ``now``."""

    def __init__(
        self,
        name: str,
        config: ClusterConfig,
        *,
        agenda: Agenda,
        clock: StepClock,
        deliver: Deliver,
        on_rows: Callable[[], None],
    ) -> None:
        """``on_rows``: what all instances compute together has changed."""
        self.name = name
        self.batcher = SteadyBatcher(config.batcher)
        self._config = config
        self._agenda = agenda
        self._clock = clock
        self._deliver = deliver
        self._on_rows = on_rows
        self._run: Run | None = None
        self._run_ends: Event | None = None
        self._step: _Step | None = None
        #: Rows of what it computes: streams that decode, prompt tokens.
        self._rows = (0, 0)
        #: What it wants of a host that it shares.
        self._wanted_s = 0.0
        #: Every expert can be reached; otherwise steps wait.
        self.experts_ready = True
        #: It has died: nothing happens here any more.
        self.dead = False
        #: Tokens that came out so far, and seconds in which something was computed.
        self.tokens = 0
        self.busy_s = 0.0

    # -- commands ------------------------------------------------------------------------------------------------

    def submit(self, request: Submit) -> list[Action]:
        """Queue a request; returns what the batcher says at once."""
        self.settle()
        actions = self.batcher.submit(request, eos_token_ids=(), now=self._agenda.now)
        self._begin()
        return actions

    def cancel(self, request_id: str) -> None:
        """Forget a request."""
        self.settle()
        self.batcher.cancel(request_id)
        self._begin()

    def drain(self) -> None:
        """Take nothing new."""
        self.batcher.drain()

    def abort(self, error: RequestError) -> None:
        """End every request with ``error``."""
        self.settle()
        self._deliver(self, self.batcher.abort(error), self._agenda.now)
        self._begin()

    def die(self) -> None:
        """Stop in the middle of whatever it does; what it has sent has arrived."""
        self.settle()
        self.dead = True
        if self._step is not None:
            self._close(self._step)
        self._use(0, 0)

    def late(self, seconds: float) -> None:
        """What is computed now takes so much longer: a layer is sent again to other replicas."""
        self.settle()
        step = self._step
        if step is not None and step.computing:
            step.event.cancel()
            step.due_s += seconds
            step.event = self._agenda.at(step.due_s, self._step_over)

    def lose_experts(self) -> None:
        """Some expert is nowhere: what is computed now has failed, and waits to be computed again."""
        self.settle()
        self.experts_ready = False
        if self._step is not None and self._step.computing:
            self._wait(self._step)

    def regain_experts(self) -> None:
        """Every expert can be reached again: a step that waited is planned anew."""
        self.experts_ready = True
        step = self._step
        if step is None or step.computing:
            return
        self._close(step)
        self._deliver(self, self.batcher.step_failed(step.plan, retry=True, now=self._agenda.now), self._agenda.now)
        self._begin()

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it has no request at all."""
        return not self.batcher.has_requests

    def unseen_tokens(self) -> int:
        """Tokens that have come out by now of the run that goes on, and were not delivered yet."""
        return 0 if self._run is None else self._run.streams * self._run.done_by(self._agenda.now)

    def most_unseen_tokens(self) -> float:
        """At least as many as ``unseen_tokens``, and quicker: as if every step were as short as the first."""
        run = self._run
        return 0.0 if run is None else run.streams * (1.0 + (self._agenda.now - run.start_s) / run.first_s)

    def stats(self) -> BatcherStats:
        """What the batcher says; the run that goes on is not in it."""
        return self.batcher.stats()

    # -- runs ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring the batcher up to now: deliver what has come out, and plan the step that is under way."""
        run = self._run
        if run is None:
            return
        done = run.done_by(self._agenda.now)
        self._end_run(done)
        if done < run.steps:
            begun, ends = run.end_s(done), run.end_s(done + 1)
            plan = self.batcher.plan(begun)
            assert plan is not None  # the run says that there is one
            event = self._agenda.at(ends, self._step_over)
            self._step = _Step(plan=plan, begun_s=begun, due_s=ends, event=event)

    def retime(self) -> None:
        """What others compute has changed: from the next step on, steps take another time."""
        run = self._run
        if run is None or self._run_ends is None:
            return
        done = run.done_by(self._agenda.now)
        if done + 1 < run.steps:
            run.steps = done + 1
            self._run_ends.cancel()
            self._run_ends = self._agenda.at(run.end_s(), self._run_over)

    def _start_run(self, steps: int) -> None:
        streams = self.batcher.num_running
        context = self.batcher.context_tokens / streams
        self._use(streams, 0, context)
        first = self._clock.step_s(decode=streams, context=context)
        last = self._clock.step_s(decode=streams, context=context + steps - 1)
        # A step mostly grows evenly with its context; where the context is hidden behind something, it does not.
        while steps > 2 and not self._is_straight(streams, context, steps, first, last):
            steps //= 2
            last = self._clock.step_s(decode=streams, context=context + steps - 1)
        more = (last - first) / (steps - 1)
        run = Run(start_s=self._agenda.now, steps=steps, first_s=first, more_s=more, streams=streams)
        self._run, self._run_ends = run, self._agenda.at(run.end_s(), self._run_over)

    def _is_straight(self, streams: int, context: float, steps: int, first: float, last: float) -> bool:
        middle = self._clock.step_s(decode=streams, context=context + (steps - 1) / 2)
        return abs(middle - (first + last) / 2) <= _STRAIGHT * first

    def _run_over(self) -> None:
        if self._run is not None:
            self._end_run(self._run.steps)
            self._begin()

    def _end_run(self, done: int) -> None:
        run, self._run = self._run, None
        assert run is not None and self._run_ends is not None
        self._run_ends.cancel()
        if done:
            self.tokens += done * run.streams
            self.busy_s += run.length_s(done)
            self._deliver(self, self.batcher.run_steady(done), run.end_s(done))

    # -- single steps --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Compute what there is to compute, unless something is being computed."""
        if self.dead or self._run is not None or self._step is not None:
            return
        now = self._agenda.now
        backlog_s = 0.0 if self._clock.host is None else self._clock.host.backlog_s(now)
        # While requests are in the way, steps are not alike.
        steady = self.batcher.steady_steps() if self.experts_ready and not backlog_s else 0
        if steady > 1:
            self._start_run(steady)
            return
        plan = self.batcher.plan(now)
        if plan is None:
            self._use(0, 0)
            return
        decode = plan.num_decode
        prefill = len(plan.token_ids) - decode
        chunks = plan.chunks
        context = sum(chunk.start + 1 for chunk in chunks[:decode]) / max(1, decode)
        self._use(decode, prefill, context)
        # A prompt token looks back on those before it: half of its own chunk, on average, and all of the earlier ones.
        seen = sum((c.start + len(c.token_ids) / 2) * len(c.token_ids) for c in chunks[decode:]) / max(1, prefill)
        due = now + self._clock.step_s(
            decode=decode, prefill=prefill, context=context, prefill_context=seen, backlog_s=backlog_s
        )
        self._step = _Step(plan=plan, begun_s=now, due_s=due, event=self._agenda.at(due, self._step_over))
        if not self.experts_ready:
            self._wait(self._step)

    def _step_over(self) -> None:
        step = self._step
        assert step is not None
        self._close(step)
        self.tokens += len(step.plan.sampling)
        self.busy_s += self._agenda.now - step.begun_s
        sampled = [view.position for view in step.plan.sampling]
        self._deliver(self, self.batcher.step_done(step.plan, sampled), self._agenda.now)
        self._begin()

    def _wait(self, step: _Step) -> None:
        """The step computes nothing until every expert is back, or it gives up."""
        step.event.cancel()
        step.computing = False
        self._use(0, 0)
        since = step.plan.failing_since
        begun = self._agenda.now if since is None else since
        step.due_s = begun + self._config.recovery_timeout_s
        step.event = self._agenda.at(step.due_s, self._give_up)

    def _give_up(self) -> None:
        """As the engine does: no request can be computed without its experts."""
        step = self._step
        assert step is not None
        self._close(step)
        refusal = Unavailable("experts are unavailable", code="experts_unavailable", retry_after_s=2.0)
        actions = self.batcher.step_failed(step.plan, retry=True, now=self._agenda.now)
        self._deliver(self, [*actions, *self.batcher.abort(refusal)], self._agenda.now)
        self._begin()

    def _close(self, step: _Step) -> None:
        step.event.cancel()
        self._step = None

    def _use(self, decode: int, prefill: int, context: float = 0.0) -> None:
        """It computes so many rows from now on, of ``context`` tokens each; none: nothing."""
        if (decode, prefill) == self._rows:
            return
        before, self._rows = self._rows, (decode, prefill)
        if any(before):
            self._clock.end(decode=before[0], prefill=before[1], wanted_s=self._wanted_s)
        if decode or prefill:
            self._wanted_s = self._clock.begin(decode=decode, prefill=prefill, context=context)
        self._on_rows()
