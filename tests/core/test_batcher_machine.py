"""Random histories of a batcher: no token lost, repeated or misplaced, no block lost, no request forgotten."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from janus.core.batcher import Accept, Batcher, Finish, Reject, StepPlan
from janus.errors import RequestError, Unavailable
from janus.messages.control import Submit
from tests.core.batcher_harness import EOS, VOCAB, Client, FakeModel, config, reference, run_to_end, submit

MAX_IN_FLIGHT = 3
tokens = st.integers(min_value=0, max_value=VOCAB - 1)


class BatcherMachine(RuleBasedStateMachine):
    plans: Bundle[StepPlan] = Bundle("plans")

    @initialize(
        max_running=st.integers(1, 5),
        budget=st.integers(0, 9),
        block_size=st.integers(1, 4),
        num_blocks=st.integers(3, 12),
        max_model_len=st.integers(2, 24),
    )
    def start(self, max_running: int, budget: int, block_size: int, num_blocks: int, max_model_len: int) -> None:
        self.limits = config(
            max_running=max_running,
            token_budget=max_running + budget,
            block_size=block_size,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
        )
        self.batcher = Batcher(self.limits)
        self.model = FakeModel(self.limits)
        self.client = Client()
        self.accepted: dict[str, Submit] = {}
        self.results: dict[int, list[int]] = {}
        self.in_flight: list[StepPlan] = []
        self.errors: set[str] = set()
        self.arrivals: list[str] = []

    @rule(
        prompt=st.lists(tokens, min_size=0, max_size=9),
        max_tokens=st.integers(1, 20),
        min_tokens=st.integers(0, 9),
        ignore_eos=st.booleans(),
        stops=st.lists(tokens, max_size=1),
        resume=st.integers(0, 3),
    )
    def submit(
        self, *, prompt: list[int], max_tokens: int, min_tokens: int, ignore_eos: bool, stops: list[int], resume: int
    ) -> None:
        name = f"r{len(self.arrivals)}"
        params = {
            "max_tokens": max_tokens,
            "min_tokens": min(min_tokens, max_tokens),
            "ignore_eos": ignore_eos,
            "stop_token_ids": stops,
        }
        request = submit(name, prompt, **params)
        if resume and 0 < len(prompt) < self.limits.max_model_len:
            emitted = reference(request, self.limits.max_model_len)[0][:resume]
            request = submit(name, prompt, emitted=emitted, **params)
        self.client.expect(request)
        actions = self.batcher.submit(request, eos_token_ids=[EOS], now=0.0)
        if isinstance(actions[0], Reject):
            assert len(actions) == 1
            assert isinstance(actions[0].error, RequestError)
            return
        assert actions[0] == Accept(name)
        self.arrivals.append(name)
        self.accepted[name] = request
        self.client.read(actions)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.accepted)))
        actions = self.batcher.cancel(name)
        if name in self.client.finished:
            assert actions == []
        else:
            assert [type(action) for action in actions] == [Finish]
        self.client.read(actions)

    @precondition(lambda self: len(self.in_flight) < MAX_IN_FLIGHT)
    @rule(target=plans, share=st.integers(1, MAX_IN_FLIGHT))
    def plan(self, share: int = 1) -> StepPlan | None:
        plan = self.batcher.plan(0.0, share=share)
        busy = {chunk.request_id for other in self.in_flight for chunk in other.chunks}
        if plan is None:
            assert self.in_flight or not self.live()
            return None
        chosen = [chunk.request_id for chunk in plan.chunks]
        assert len(chosen) == len(set(chosen))
        assert not {r.request_id for r in plan.requests if not r.cancelled} & (busy & set(self.live()))
        if not self.in_flight and share == 1:
            assert self.live()[0] in chosen, "the oldest request must move in every step"
        self.in_flight.append(plan)
        self.results[plan.step_id] = self.model.run(plan)
        return plan

    @rule(plan=consumes(plans))
    def done(self, plan: StepPlan | None) -> None:
        if plan is not None:
            self.in_flight.remove(plan)
            self.client.read(self.batcher.step_done(plan, self.results.pop(plan.step_id)))

    @precondition(lambda self: not self.in_flight)
    @rule(steps=st.integers(2, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            plan = self.plan()
            if plan is None:
                return
            self.done(plan)
            self.batcher.check()

    @rule(plan=consumes(plans), retry=st.booleans())
    def fail(self, plan: StepPlan | None, retry: bool) -> None:
        if plan is None:
            return
        self.in_flight.remove(plan)
        self.model.spoil(plan)
        error = None if retry else Unavailable("lost")
        actions = self.batcher.step_failed(plan, retry=retry, error=error, now=0.0)
        if retry:
            assert actions == []
        self.errors |= {action.request_id for action in actions if isinstance(action, Finish)}
        self.client.read(actions)

    def live(self) -> list[str]:
        """Accepted and not finished, oldest first."""
        return [name for name in self.arrivals if name not in self.client.finished]

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "batcher"):
            self.batcher.check()
            stats = self.batcher.stats()
            zombies = len({r.arrival for p in self.in_flight for r in p.requests if r.cancelled})
            assert stats.running + stats.waiting == len(self.live()) + zombies

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        for plan in self.in_flight:
            self.client.read(self.batcher.step_done(plan, self.results.pop(plan.step_id)))
        run_to_end(self.batcher, self.model, self.client)
        assert self.batcher.stats().blocks_used == 0
        assert set(self.client.finished) == set(self.accepted)
        for name, finish in self.client.finished.items():
            expected, reason = reference(self.accepted[name], self.limits.max_model_len)
            got = self.client.tokens[name]
            if finish.reason in ("cancelled", "error"):
                assert got == expected[: len(got)]
                assert (finish.reason == "error") == (name in self.errors)
            else:
                assert (got, finish.reason) == (expected, reason)


BatcherMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBatcherMachine = BatcherMachine.TestCase
