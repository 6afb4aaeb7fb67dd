"""What the batcher decides, as data."""

from __future__ import annotations

import numpy as np
import pytest

from janus.core.batcher import Accept, Batcher, BatcherConfig, Chunk, Emit, Finish, Reject
from janus.errors import ConfigError, Overloaded, RequestError, Unavailable
from janus.messages.control import Submit, TokenDelta, TokenLogprob
from tests.core.batcher_harness import EOS, Client, FakeModel, config, reference, run_to_end, submit


def put(batcher: Batcher, request: Submit, now: float = 0.0) -> None:
    assert batcher.submit(request, eos_token_ids=[EOS], now=now) == [Accept(request.request_id)]


def refusal(batcher: Batcher, request: Submit) -> RequestError:
    (action,) = batcher.submit(request, eos_token_ids=[EOS], now=0.0)
    assert isinstance(action, Reject)
    assert action.request_id == request.request_id
    return action.error


def test_one_request_from_prompt_to_length() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5, 6, 7], max_tokens=2), now=1.0)
    plan = batcher.plan(1.5)
    assert plan is not None
    assert plan.chunks == (Chunk("a", (5, 6, 7), 0, (0,), True),)
    assert plan.started == (("a", 0.5),)
    assert (plan.step_id, plan.attempt, plan.num_decode) == (1, 1, 0)
    assert batcher.step_done(plan, [8]) == [Emit(TokenDelta(request_id="a", index=0, token_ids=[8]))]
    plan = batcher.plan(2.0)
    assert plan is not None
    assert plan.chunks == (Chunk("a", (8,), 3, (0,), True),)
    assert plan.started == ()
    assert plan.num_decode == 1
    assert batcher.step_done(plan, np.array([9])) == [
        Emit(TokenDelta(request_id="a", index=1, token_ids=[9], finish_reason="length")),
        Finish("a", "length", 2),
    ]
    assert batcher.plan(3.0) is None
    assert not batcher.has_requests
    assert batcher.stats().blocks_used == 0


def test_a_stop_token_ends_the_request_and_is_no_text() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5], max_tokens=9, stop_token_ids=[11]))
    plan = batcher.plan(0.0)
    assert plan is not None
    assert batcher.step_done(plan, [11]) == [
        Emit(TokenDelta(request_id="a", index=0, token_ids=[], finish_reason="stop", stop_token_id=11)),
        Finish("a", "stop", 1),
    ]


@pytest.mark.parametrize(("params", "ends"), [({}, True), ({"ignore_eos": True}, False), ({"min_tokens": 1}, False)])
def test_end_of_sequence(params: dict[str, object], ends: bool) -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5], max_tokens=3, **params))
    plan = batcher.plan(0.0)
    assert plan is not None
    assert plan.sampling[0].suppressed_ids == (frozenset({EOS}) if "min_tokens" in params else frozenset())
    actions = batcher.step_done(plan, [EOS])
    assert isinstance(actions[-1], Finish) is ends


def test_min_tokens_lets_the_stop_token_through_afterwards() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5], max_tokens=3, min_tokens=1))
    first = batcher.plan(0.0)
    assert first is not None
    batcher.step_done(first, [4])
    second = batcher.plan(0.0)
    assert second is not None
    assert second.sampling[0].suppressed_ids == frozenset()
    assert batcher.step_done(second, [EOS])[-1] == Finish("a", "stop", 2)


def test_the_context_ends_a_request_with_length() -> None:
    batcher = Batcher(config(max_model_len=6))
    model, client, request = (
        FakeModel(batcher.config),
        Client(),
        submit("a", [5, 6, 7, 8], max_tokens=99, ignore_eos=True),
    )
    put(batcher, request)
    client.expect(request)
    run_to_end(batcher, model, client)
    assert client.finished == {"a": Finish("a", "length", 2)}


def test_logprobs_travel_with_their_token() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5], max_tokens=9, logprobs=0))
    put(batcher, submit("b", [5], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    logprob = TokenLogprob(logprob=-0.5, top_ids=[], top_logprobs=[])
    deltas = [a.delta for a in batcher.step_done(plan, [3, 4], [logprob, None]) if isinstance(a, Emit)]
    assert [delta.logprobs for delta in deltas] == [[logprob], None]


def test_decode_goes_first_and_prefill_takes_the_rest_of_the_budget() -> None:
    batcher = Batcher(config(token_budget=5))
    put(batcher, submit("a", [1, 2], max_tokens=9))
    first = batcher.plan(0.0)
    assert first is not None
    batcher.step_done(first, [3])
    put(batcher, submit("b", list(range(1, 11)), max_tokens=9))
    put(batcher, submit("c", [4], max_tokens=9))
    shapes = []
    for _ in range(3):
        plan = batcher.plan(0.0)
        assert plan is not None
        shapes.append([(c.request_id, c.start, len(c.token_ids), c.sample) for c in plan.chunks])
        batcher.step_done(plan, [3] * len(plan.sampling))
    assert shapes == [
        [("a", 2, 1, True), ("b", 0, 4, False)],
        [("a", 3, 1, True), ("b", 4, 4, False)],
        [("a", 4, 1, True), ("b", 8, 2, True), ("c", 0, 1, True)],
    ]


def test_the_newest_request_is_preempted_and_loses_nothing() -> None:
    batcher = Batcher(config(num_blocks=4, block_size=2, max_model_len=9))
    model, client = FakeModel(batcher.config), Client()
    requests = [submit("old", [1, 2], max_tokens=6, ignore_eos=True), submit("new", [3], max_tokens=6, ignore_eos=True)]
    for request in requests:
        put(batcher, request)
        client.expect(request)
    preempted = []
    while (plan := batcher.plan(0.0)) is not None:
        preempted += plan.preempted
        client.read(batcher.step_done(plan, model.run(plan)))
        batcher.check()
    assert preempted == ["new"]
    assert batcher.stats().preemptions == 1
    for request in requests:
        assert client.tokens[request.request_id] == reference(request, 9)[0]


def test_a_failed_step_is_repeated_with_the_same_tokens() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5, 6], max_tokens=9))
    first = batcher.plan(0.0)
    assert first is not None
    assert batcher.step_failed(first, retry=True, now=7.0) == []
    assert batcher.stats().failing_since == 7.0
    again = batcher.plan(0.0)
    assert again is not None
    assert (again.chunks, again.attempt) == (first.chunks, 2)
    assert batcher.step_failed(again, retry=True, now=8.0) == []
    third = batcher.plan(0.0)
    assert third is not None
    assert third.attempt == 3
    assert batcher.stats().failing_since == 7.0
    assert batcher.step_done(third, [8]) == [Emit(TokenDelta(request_id="a", index=0, token_ids=[8]))]
    assert batcher.stats().failing_since is None
    assert batcher.stats().failed_steps == 2


def test_a_step_that_is_given_up_answers_every_client() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5, 6], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    error = Unavailable("expert-1 is lost", retry_after_s=2.0)
    delta = TokenDelta(
        request_id="a",
        index=0,
        token_ids=[],
        finish_reason="error",
        status=503,
        code="unavailable",
        problem="expert-1 is lost",
        retry_after_s=2.0,
    )
    assert batcher.step_failed(plan, retry=False, error=error, now=0.0) == [Emit(delta), Finish("a", "error", 0)]
    assert batcher.stats().blocks_used == 0


def test_cancelled_in_flight_keeps_its_blocks_until_the_step_has_ended() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5, 6], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    assert batcher.cancel("a") == [Finish("a", "cancelled", 0)]
    assert batcher.cancel("a") == []
    assert batcher.stats().blocks_used == 1
    put(batcher, submit("a", [7], max_tokens=9))  # the id is free again, though the step is not over
    other = batcher.plan(0.0)
    assert other is not None
    assert not set(other.slot_mapping.tolist()) & set(plan.slot_mapping.tolist())
    assert batcher.step_done(plan, [8]) == []
    assert batcher.stats().blocks_used == 1
    batcher.check()


def test_cancel_of_who_waits_and_of_who_runs() -> None:
    batcher = Batcher(config(max_running=1))
    put(batcher, submit("a", [5], max_tokens=9))
    put(batcher, submit("b", [5], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    batcher.step_done(plan, [4])
    assert batcher.cancel("b") == [Finish("b", "cancelled", 0)]
    assert batcher.cancel("a") == [Finish("a", "cancelled", 1)]
    assert not batcher.has_requests
    assert batcher.stats().blocks_used == 0


def test_a_plan_is_closed_once() -> None:
    batcher = Batcher(config())
    put(batcher, submit("a", [5], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    with pytest.raises(ValueError, match="samples 1 tokens, 2 came back"):
        batcher.step_done(plan, [1, 2])
    batcher.step_done(plan, [1])
    with pytest.raises(ValueError, match="not in flight"):
        batcher.step_done(plan, [1])
    with pytest.raises(ValueError, match="not in flight"):
        batcher.step_failed(plan, retry=True, now=0.0)
    with pytest.raises(ValueError, match="needs the error"):
        batcher.step_failed(plan, retry=False, now=0.0)


def test_refusals_name_their_reason() -> None:
    batcher = Batcher(config(max_waiting=1, num_blocks=4, max_model_len=32))
    assert (error := refusal(batcher, submit("a", []))).param == "prompt" and error.status == 400
    error = refusal(batcher, submit("a", [1] * 32, max_tokens=1))
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert "31" in error.message
    error = refusal(batcher, submit("a", [1] * 16, max_tokens=2))
    assert (error.status, error.code, error.param) == (400, "kv_cache_exceeded", "max_tokens")
    assert "17 tokens" in error.message
    put(batcher, submit("a", [1] * 16, max_tokens=1))
    assert "in use" in refusal(batcher, submit("a", [1])).message
    assert isinstance(refusal(batcher, submit("b", [1])), Overloaded)
    batcher.drain()
    error = refusal(batcher, submit("c", [1]))
    assert isinstance(error, Unavailable) and error.code == "draining"


def test_the_largest_request_that_is_accepted_runs_to_its_end() -> None:
    batcher = Batcher(config(num_blocks=4, max_model_len=32))
    model, client, request = FakeModel(batcher.config), Client(), submit("a", [3], max_tokens=16, ignore_eos=True)
    put(batcher, request)
    client.expect(request)
    run_to_end(batcher, model, client)
    assert client.finished["a"] == Finish("a", "length", 16)
    assert batcher.stats().preemptions == 0


def test_a_request_resumes_after_what_it_has_emitted() -> None:
    limits = config()
    whole = submit("a", [5, 6], max_tokens=6, ignore_eos=True)
    tokens, _ = reference(whole, limits.max_model_len)
    batcher, model, client = Batcher(limits), FakeModel(limits), Client()
    resumed = submit("a", [5, 6], emitted=tokens[:4], max_tokens=6, ignore_eos=True)
    put(batcher, resumed)
    client.expect(resumed)
    run_to_end(batcher, model, client)
    assert client.tokens["a"] == tokens


def test_a_request_that_resumes_complete_ends_at_once() -> None:
    batcher = Batcher(config())
    assert batcher.submit(submit("a", [5], emitted=[6, 7], max_tokens=2), eos_token_ids=[EOS], now=0.0) == [
        Accept("a"),
        Emit(TokenDelta(request_id="a", index=2, token_ids=[], finish_reason="length")),
        Finish("a", "length", 2),
    ]
    assert not batcher.has_requests


def test_abort_answers_everybody() -> None:
    batcher = Batcher(config(max_running=2))
    for name in "abc":
        put(batcher, submit(name, [5], max_tokens=9))
    plan = batcher.plan(0.0)
    assert plan is not None
    actions = batcher.abort(Unavailable("shutting down"))
    assert [a.request_id for a in actions if isinstance(a, Finish) and a.reason == "error"] == ["a", "b", "c"]
    assert batcher.has_requests  # a step is in flight
    assert batcher.step_done(plan, [1, 1]) == []
    assert not batcher.has_requests
    batcher.check()


def test_two_steps_in_flight_share_no_request() -> None:
    batcher = Batcher(config(token_budget=4, max_running=4))
    for name in "abcd":
        put(batcher, submit(name, [1, 2], max_tokens=9))
    first, second = batcher.plan(0.0), batcher.plan(0.0)
    assert first is not None and second is not None
    assert [c.request_id for c in first.chunks] == ["a", "b"]
    assert [c.request_id for c in second.chunks] == ["c", "d"]
    assert batcher.plan(0.0) is None
    batcher.step_done(second, [3, 3])
    batcher.step_done(first, [3, 3])
    batcher.check()


def test_the_seed_is_the_clients_or_follows_from_the_request_id() -> None:
    seeds = []
    for _ in range(2):
        batcher = Batcher(config())
        put(batcher, submit("a", [5], max_tokens=9, seed=-3))
        put(batcher, submit("b", [5], max_tokens=9))
        put(batcher, submit("c", [5], max_tokens=9))
        plan = batcher.plan(0.0)
        assert plan is not None
        seeds.append([view.seed for view in plan.sampling])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] == -3
    assert len(set(seeds[0])) == 3


@pytest.mark.parametrize("name", ["max_running", "token_budget", "block_size", "num_blocks", "max_model_len"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config(**{name: 0})


def test_a_budget_that_would_starve_streams_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_budget"):
        BatcherConfig(max_running=9, token_budget=8, block_size=1, num_blocks=1, max_model_len=1, max_waiting=1)
