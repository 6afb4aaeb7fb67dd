"""The exchange between nodes: what travels is counted, every way adds up alike, and deaths are survived or named.

Four attention and four expert instances on two nodes each: UCX between the nodes, shared memory within.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.exchange.cluster import Workers
from benchmarks.exchange.worker import LAYERS
from benchmarks.testbed import LinkSpec, LinkTraffic, Testbed

TOKENS, HIDDEN = 16, 256
WAYS = ("direct", "aggregated", "two-phase", "auto")
#: A dispatch ends within this, whatever happens; and a link on which nothing is heard.
DISPATCH_S, SILENCE_S = 6.0, 4.0
#: For whatever happens at once on a quiet machine.
LIMIT_S = 30.0
NODES, INSTANCES = 2, 4

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def net(permitted: None) -> Iterator[Testbed]:
    with Testbed(("a0", "a1", "e0", "e1"), LinkSpec(latency_us=50, rate_gbit=10)) as up:
        yield up


@pytest.fixture(scope="module")
def workers(net: Testbed) -> Iterator[Workers]:
    """Every test leaves everybody there, and linked; ``attention-4`` on node a0 joins last."""
    with Workers(
        net,
        attention=INSTANCES,
        experts=INSTANCES,
        hidden=HIDDEN,
        module="tests.testbed.exchange_worker",
        options={"silence_s": SILENCE_S, "dispatch_timeout_s": DISPATCH_S},
        later={"attention-4": "a0"},
        answer_s=60.0,
    ) as up:
        yield up


Answers = dict[str, dict[str, Any]]


def exchanged(workers: Workers, way: str, gate: str, *, steps: int) -> Answers:
    """Let all attention instances dispatch and combine ``steps`` layers; every sum is right."""
    command = {"do": "begin", "way": way, "gate": gate, "tokens": TOKENS, "most": steps}
    workers.ask(command, workers.attention)
    seen = workers.ask({"do": "await"}, workers.attention)
    for name, answer in seen.items():
        assert (answer["ok"], answer["wrong"], answer["failed"]) == (steps, 0, 0), (name, way, gate, answer["errors"])
    return seen


def counts(workers: Workers) -> dict[str, int]:
    """Sums over the attention instances."""
    answers = workers.ask({"do": "counts"}, workers.attention).values()
    return {field: sum(answer[field] for answer in answers) for field in ("frames", "bundles", "hand_ins", "answers")}


def crossed(net: Testbed) -> LinkTraffic:
    """What has gone between attention and expert nodes, both ways."""
    found = [sent for (source, to), sent in net.traffic().items() if source[0] != to[0]]
    return LinkTraffic(packets=sum(sent.packets for sent in found), bytes=sum(sent.bytes for sent in found))


def test_messages_between_nodes_fall_to_one_per_pair_of_nodes(net: Testbed, workers: Workers) -> None:
    frames: dict[str, float] = {}
    answers: dict[str, float] = {}
    traffic: dict[str, LinkTraffic] = {}
    fewest: dict[str, float] = {}
    for way in ("direct", "two-phase"):
        exchanged(workers, way, "attention", steps=20)  # members have met, and expect one another
        for _ in range(5):
            steps, before, before_traffic = 80, counts(workers), crossed(net)
            exchanged(workers, way, "attention", steps=steps)
            after = counts(workers)
            done = {field: after[field] - before[field] for field in after}
            per_layer = done["frames"] / steps
            # A frame comes back for each that goes, and on the busiest machine a bundle is one frame per node.
            assert done["answers"] == done["frames"]
            if way == "two-phase":
                assert done["frames"] == NODES * done["bundles"]
                assert done["hand_ins"] == (INSTANCES - NODES) * steps
            if per_layer < fewest.get(way, 1e9):
                fewest[way] = frames[way] = per_layer
                answers[way] = done["answers"] / steps
                traffic[way] = crossed(net) - before_traffic
            if way == "direct" or per_layer < NODES * NODES * 1.1:
                break
    assert frames["direct"] == answers["direct"] == INSTANCES * INSTANCES
    # A member that a busy machine holds up for milliseconds misses a bundle.
    assert NODES * NODES <= frames["two-phase"] <= NODES * NODES * 1.5
    assert traffic["two-phase"].bytes < 0.8 * traffic["direct"].bytes
    assert traffic["two-phase"].packets < traffic["direct"].packets


def test_every_way_gives_the_same_bits_whoever_gates(workers: Workers) -> None:
    for gate in ("attention", "expert"):
        seen = {way: exchanged(workers, way, gate, steps=24) for way in WAYS}
        for name in workers.attention:
            assert len({seen[way][name]["digest"] for way in WAYS}) == 1, (name, gate)
    idle = workers.ask({"do": "counts"})
    assert {name: answer["pending"] for name, answer in idle.items()} == dict.fromkeys(idle, 0)


class Moments:
    """Random moments, the same in every run."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))
        self._never = threading.Event()

    def wait(self) -> None:
        """Let up to 30 ms pass: a dispatch takes about one."""
        self._never.wait(self._random.uniform(0, 0.03))


def begun(workers: Workers, gate: str = "attention") -> None:
    workers.ask({"do": "begin", "way": "two-phase", "gate": gate, "tokens": TOKENS}, workers.attention)
    go_on(workers, workers.attention)


def go_on(workers: Workers, names: list[str]) -> None:
    """Everybody in ``names`` gets results, now and again."""
    answers = workers.ask({"do": "more", "steps": 8, "within_s": LIMIT_S}, names)
    assert {name: answer["missing"] for name, answer in answers.items()} == dict.fromkeys(names, 0), answers


def ended(workers: Workers, names: list[str], *, within_s: float = DISPATCH_S / 2) -> Answers:
    """End the steps of ``names``: no wrong sum, no step that took longer than ``within_s``, no error without a name.

    A death is seen at once: a link that is gone says so, long before the dispatch's deadline.
    """
    seen = workers.ask({"do": "end"}, names)
    for name, answer in seen.items():
        assert answer["wrong"] == 0, name
        assert answer["slowest_s"] < within_s, (name, answer)
        for error in answer["errors"]:
            assert error["instances"], error
            assert all(instance in error["problem"] for instance in error["instances"]), error
    return seen


REPEATED = [pytest.param(0, id="once"), *(pytest.param(n, id=str(n), marks=pytest.mark.slow) for n in range(1, 5))]


@pytest.mark.parametrize("moment", REPEATED)
@pytest.mark.parametrize("victim", ["expert-1", pytest.param("expert-2", marks=pytest.mark.slow)])
def test_a_killed_expert_is_named_by_all_and_missed_by_none_when_it_is_back(
    victim: str, moment: int, workers: Workers
) -> None:
    """It relays in some layers and is a sibling of the relay in others."""
    begun(workers)
    Moments((victim, moment)).wait()
    workers.kill(victim)
    workers.ask({"do": "failed", "within_s": DISPATCH_S + 2}, workers.attention)
    seen = ended(workers, workers.attention)
    for name, answer in seen.items():
        assert answer["failed"] > 0, name
        # Who hands in to an instance that fails hears from that one what it has heard.
        assert {instance for error in answer["errors"] for instance in error["instances"]} == {victim}, answer
    workers.restart(victim)
    exchanged(workers, "two-phase", "attention", steps=8)


@pytest.mark.parametrize("moment", REPEATED)
@pytest.mark.parametrize("victim", ["attention-0", pytest.param("attention-3", marks=pytest.mark.slow)])
def test_a_killed_member_leaves_its_siblings_going_on(victim: str, moment: int, workers: Workers) -> None:
    """Members take turns in posting for all: it is the one who posts, and the one who hands in."""
    begun(workers)
    Moments((victim, moment)).wait()
    workers.kill(victim)
    left = [name for name in workers.attention if name != victim]
    for _ in range(3):
        go_on(workers, left)
    seen = ended(workers, left)
    sibling = f"attention-{int(victim[-1]) ^ 1}"
    for name, answer in seen.items():
        # Only a dispatch that the victim was to post is lost, and with it at most what was under way.
        assert answer["failed"] <= (2 if name == sibling else 0), (name, answer["errors"])
        assert all(error["instances"] == [victim] for error in answer["errors"]), answer["errors"]
    workers.restart(victim)
    exchanged(workers, "two-phase", "attention", steps=8)


@pytest.mark.parametrize("moment", REPEATED)
def test_a_node_that_is_cut_off_is_named_within_the_deadline(moment: int, net: Testbed, workers: Workers) -> None:
    begun(workers, gate="expert")
    Moments(("cut", moment)).wait()
    net.cut("e1")
    try:
        workers.ask({"do": "failed", "within_s": DISPATCH_S + 2}, workers.attention)
        seen = ended(workers, workers.attention, within_s=DISPATCH_S + 2)
    finally:
        net.heal("e1")
    for name, answer in seen.items():
        assert answer["failed"] > 0, name
        assert {i for error in answer["errors"] for i in error["instances"]} <= {"expert-2", "expert-3"}, answer
    workers.connect()
    exchanged(workers, "two-phase", "expert", steps=8)


def test_a_member_that_joins_takes_part_in_bundles(workers: Workers) -> None:
    begun(workers)
    workers.join("attention-4")
    old = [name for name in workers.attention if name != "attention-4"]
    go_on(workers, old)
    seen = ended(workers, old)
    for name, answer in seen.items():
        # Siblings are linked within the node before it knows any placement: what it cannot post, they post themselves.
        assert answer["failed"] <= LAYERS, answer["errors"]
        assert all("attention-4" in error["problem"] for error in answer["errors"]), (name, answer["errors"])
    # Three members take turns.
    members, steps = ("attention-0", "attention-1", "attention-4"), 60
    exchanged(workers, "two-phase", "attention", steps=100)
    before = workers.ask({"do": "counts"}, members)
    exchanged(workers, "two-phase", "attention", steps=steps)
    after = workers.ask({"do": "counts"}, members)
    for turn, name in enumerate(members):
        own = sum(layer % LAYERS % len(members) == turn for layer in range(steps))
        assert after[name]["hand_ins"] - before[name]["hand_ins"] == steps - own
        assert after[name]["bundles"] - before[name]["bundles"] >= own
