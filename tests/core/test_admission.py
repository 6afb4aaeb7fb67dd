"""What the gateway lets in, refuses, and where it sends what it let in."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from janus.core.admission import Admission, AdmissionConfig, why_not_serving
from janus.errors import ConfigError, Overloaded, Unavailable
from janus.messages.control import ClusterView, InstanceState, Member, PlacementTable

TABLE = PlacementTable(epoch=1, num_experts=1, instances=["expert-0"], slots=[[[0]]])


def view(
    *ready: str, others: dict[str, InstanceState] | None = None, missing: tuple[str, ...] = (), placed: bool = True
) -> ClusterView:
    states: dict[str, InstanceState] = {**dict.fromkeys(ready, "ready"), **(others or {})}
    members = [
        Member(role="attention", instance=name, node="n", host="h", port=1, incarnation="i", state=state)
        for name, state in states.items()
    ]
    return ClusterView(version=1, members=members, missing=list(missing), placement=TABLE if placed else None)


def admission(*ready: str, max_requests: int = 8, max_tokens: int = 1000) -> Admission:
    gate = Admission(AdmissionConfig(max_requests=max_requests, max_tokens=max_tokens))
    gate.update(view(*(ready or ("attention-0",))))
    return gate


def test_the_least_loaded_instance_is_chosen_and_equals_take_turns() -> None:
    gate = admission("attention-0", "attention-1")
    assert gate.admit("a", prompt_tokens=10, max_tokens=10, now=0.0) == "attention-0"
    assert gate.admit("b", prompt_tokens=5, max_tokens=5, now=0.0) == "attention-1"
    assert gate.admit("c", prompt_tokens=5, max_tokens=5, now=0.0) == "attention-1"
    assert gate.stats().per_instance == {"attention-0": (1, 20), "attention-1": (2, 20)}
    gate.progress("a", 3)  # its prompt is computed, and three tokens are out
    assert gate.stats().per_instance["attention-0"] == (1, 7)
    assert gate.admit("d", prompt_tokens=1, max_tokens=1, now=0.0) == "attention-0"
    for name in "abcd":
        gate.release(name, now=1.0)
    assert gate.stats().per_instance == {"attention-0": (0, 0), "attention-1": (0, 0)}
    assert [gate.admit(name, prompt_tokens=1, max_tokens=1, now=1.0) for name in "ef"] == ["attention-1", "attention-0"]


def test_too_many_requests_are_refused_with_a_time_that_follows_the_rate() -> None:
    gate = admission(max_requests=4)
    for i in range(4):
        gate.admit(f"a{i}", prompt_tokens=1, max_tokens=1, now=0.0)
    with pytest.raises(Overloaded, match="4 requests are in progress") as caught:
        gate.admit("late", prompt_tokens=1, max_tokens=1, now=0.0)
    assert caught.value.retry_after_s == 1.0
    for i in range(4):  # one completes every 5 s
        gate.release(f"a{i}", now=5.0 * (i + 1))
        gate.admit(f"b{i}", prompt_tokens=1, max_tokens=1, now=5.0 * (i + 1))
    waits = []
    for _ in range(30):
        with pytest.raises(Overloaded) as caught:
            gate.admit("late", prompt_tokens=1, max_tokens=1, now=20.0)
        assert caught.value.retry_after_s is not None
        waits.append(caught.value.retry_after_s)
    # Each is promised the completion after the one that the client before was promised, up to a minute.
    assert waits[:4] == pytest.approx([5.0, 10.0, 15.0, 20.0])
    assert waits[-1] == 60.0
    # A minute later those have come back or gone, and the count starts anew.
    with pytest.raises(Overloaded) as caught:
        gate.admit("late", prompt_tokens=1, max_tokens=1, now=90.0)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s < 60.0


def test_too_many_tokens_are_refused_but_never_a_request_that_is_alone() -> None:
    gate = admission(max_tokens=100)
    gate.admit("huge", prompt_tokens=200, max_tokens=200, now=0.0)
    with pytest.raises(Overloaded, match=r"400 tokens are outstanding and this request may need 2; .* is 100"):
        gate.admit("small", prompt_tokens=1, max_tokens=1, now=0.0)
    gate.release("huge", now=1.0)
    gate.admit("small", prompt_tokens=50, max_tokens=50, now=1.0)
    assert gate.stats().admitted == 2
    assert gate.stats().refused == 1


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (view(missing=("attention-0",)), "no attention instance is ready; missing: attention-0"),
        (view(others={"attention-0": "joining"}), "no attention instance is ready"),
        (
            view(others={"attention-0": "joining"}, missing=("expert-1",), placed=False),
            "no placement is in force: not every expert is loaded; missing: expert-1",
        ),
        (None, "the placement-controller has not answered yet"),
    ],
)
def test_a_cluster_that_cannot_serve_says_what_is_missing(state: ClusterView | None, reason: str) -> None:
    assert why_not_serving(state) == reason
    gate = Admission(AdmissionConfig(max_requests=1, max_tokens=1))
    if state is not None:
        gate.update(state)
    assert gate.why_not_ready == reason
    with pytest.raises(Unavailable, match="cannot serve now") as caught:
        gate.admit("a", prompt_tokens=1, max_tokens=1, now=0.0)
    assert reason in caught.value.message
    assert caught.value.retry_after_s == 1.0


def test_experts_inside_the_attention_instance_need_no_placement() -> None:
    assert why_not_serving(view("attention-0", placed=False)) == ""


def test_the_rate_is_that_of_busy_times() -> None:
    gate = admission(max_requests=1)
    for start in (0.0, 1000.0):  # a request of 3 s now and then
        gate.admit("a", prompt_tokens=1, max_tokens=1, now=start)
        gate.release("a", now=start + 3.0)
    gate.admit("a", prompt_tokens=1, max_tokens=1, now=2000.0)
    with pytest.raises(Overloaded) as caught:
        gate.admit("b", prompt_tokens=1, max_tokens=1, now=2001.0)
    assert caught.value.retry_after_s == 1.0


def test_a_draining_gateway_takes_nothing_new() -> None:
    gate = admission()
    gate.admit("a", prompt_tokens=1, max_tokens=1, now=0.0)
    gate.drain()
    assert gate.why_not_ready == "the gateway is draining"
    with pytest.raises(Unavailable) as caught:
        gate.admit("b", prompt_tokens=1, max_tokens=1, now=0.0)
    assert caught.value.code == "draining"
    assert gate.stats().requests == 1


def test_requests_move_when_their_instance_dies() -> None:
    gate = admission("attention-0", "attention-1")
    assert gate.admit("a", prompt_tokens=10, max_tokens=10, now=0.0) == "attention-0"
    gate.progress("a", 4)
    gate.update(view("attention-1"))
    assert gate.on("attention-0") == ["a"]
    assert gate.move("a", avoid=("attention-0",), resumed_tokens=14) == "attention-1"
    assert gate.stats().per_instance["attention-1"] == (1, 20)  # 14 to compute anew, 6 to come
    with pytest.raises(Unavailable, match="besides attention-1"):
        gate.move("a", avoid=("attention-1",))
    assert gate.on("attention-1") == ["a"]
    gate.release("a", now=1.0)
    assert (gate.stats().requests, gate.stats().tokens) == (0, 0)


def test_an_instance_that_died_is_forgotten_with_its_last_request() -> None:
    gate = admission("attention-0")
    for name in "ab":
        gate.admit(name, prompt_tokens=1, max_tokens=1, now=0.0)
    gate.update(view())
    gate.release("a", now=1.0)
    assert gate.stats().per_instance == {"attention-0": (1, 2)}
    gate.release("b", now=1.0)
    assert gate.stats().per_instance == {}


def test_misuse() -> None:
    gate = admission()
    gate.admit("a", prompt_tokens=1, max_tokens=1, now=0.0)
    with pytest.raises(ValueError, match="in use"):
        gate.admit("a", prompt_tokens=1, max_tokens=1, now=0.0)
    with pytest.raises(KeyError):
        gate.move("b", avoid=())
    gate.release("b", now=0.0)
    gate.progress("b", 1)
    with pytest.raises(ConfigError, match="max_tokens"):
        AdmissionConfig(max_requests=1, max_tokens=0)


NAMES = ("attention-0", "attention-1", "attention-2")


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever happens, the counts are those of the requests that are in."""

    @initialize(max_requests=st.integers(1, 6), max_tokens=st.integers(1, 60))
    def start(self, max_requests: int, max_tokens: int) -> None:
        self.gate = admission(*NAMES, max_requests=max_requests, max_tokens=max_tokens)
        self.ready: frozenset[str] = frozenset(NAMES)
        self.left: dict[str, int] = {}
        self.where: dict[str, str] = {}
        self.born = 0
        self.now = 0.0

    @rule(prompt=st.integers(1, 20), output=st.integers(1, 20))
    def admit(self, prompt: int, output: int) -> None:
        self.born += 1
        name = f"r{self.born}"
        config, total = self.gate.config, sum(self.left.values())
        try:
            chosen = self.gate.admit(name, prompt_tokens=prompt, max_tokens=output, now=self.now)
        except Unavailable:
            assert not self.ready
        except Overloaded as error:
            assert error.retry_after_s is not None
            assert 1.0 <= error.retry_after_s <= 60.0
            assert len(self.left) >= config.max_requests or (self.left and total + prompt + output > config.max_tokens)
        else:
            assert chosen in self.ready
            self.left[name], self.where[name] = prompt + output, chosen
            assert len(self.left) <= config.max_requests
            assert len(self.left) == 1 or total + prompt + output <= config.max_tokens

    @precondition(lambda self: self.left)
    @rule(data=st.data(), tokens=st.integers(0, 30))
    def progress(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.left)))
        before = self.gate.stats().tokens
        self.gate.progress(name, tokens)
        self.left[name] -= before - self.gate.stats().tokens
        assert self.left[name] >= 0

    @precondition(lambda self: self.left)
    @rule(data=st.data(), seconds=st.floats(0, 100))
    def release(self, data: st.DataObject, seconds: float) -> None:
        self.now += seconds
        name = data.draw(st.sampled_from(sorted(self.left)))
        self.gate.release(name, now=self.now)
        del self.left[name], self.where[name]

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.left)))
        old = self.where[name]
        try:
            self.where[name] = self.gate.move(name, avoid=(old,))
        except Unavailable:
            assert not self.ready - {old}
        else:
            assert self.where[name] in self.ready - {old}

    @rule(ready=st.sets(st.sampled_from(NAMES)))
    def change(self, ready: set[str]) -> None:
        self.ready = frozenset(ready)
        self.gate.update(view(*sorted(ready)))

    @invariant()
    def counts_add_up(self) -> None:
        if not hasattr(self, "gate"):
            return
        stats = self.gate.stats()
        assert (stats.requests, stats.tokens) == (len(self.left), sum(self.left.values()))
        expected = {
            name: (
                sum(1 for where in self.where.values() if where == name),
                sum(self.left[request] for request, where in self.where.items() if where == name),
            )
            for name in {*self.ready, *self.where.values()}
        }
        got = {name: load for name, load in stats.per_instance.items() if name in expected or load != (0, 0)}
        assert got == expected


AdmissionMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase
