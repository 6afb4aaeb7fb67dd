"""Which way a dispatch goes: orders and their fallbacks, following the node's first member, and forgetting it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from janus.config.options import ExchangeName
from janus.core.exchange_cost import DispatchShape, LinkCost, ModeChooser
from janus.core.exchange_routes import MODES, Mode
from janus.core.placement import Placement
from janus.exchange.choice import Decision, ModeChoice
from janus.messages.control import ExchangeWay, PlacementTable

SHAPE = DispatchShape(
    instances=4,
    instance_bytes=64_000,
    instance_answer_bytes=60_000,
    nodes=2,
    node_bytes=32_000,
    node_answer_bytes=30_000,
    batch_bytes=16_000,
    largest_node=2,
    members=2,
    sources=4,
)


def placement(nodes: str) -> Placement:
    """One expert instance on each of ``nodes``."""
    count = len(nodes)
    table = PlacementTable(
        epoch=1,
        num_experts=count,
        instances=[f"expert-{i}" for i in range(count)],
        slots=[[[i] for i in range(count)]],
        nodes=list(nodes),
    )
    return Placement.from_table(table)


@pytest.mark.parametrize(
    ("name", "members", "nodes", "ways"),
    [
        ("direct", 2, "xxyy", ("direct",)),
        ("aggregated", 2, "xxyy", ("aggregated",)),
        ("aggregated", 1, "xxyy", ("direct",)),
        ("two-phase", 2, "xxyy", ("two-phase",)),
        ("two-phase", 1, "xxyy", ("two-phase",)),
        ("two-phase", 2, "wxyz", ("aggregated",)),
        ("two-phase", 1, "wxyz", ("direct",)),
        ("auto", 2, "xxyy", MODES),
        ("auto", 2, "wxyz", ("direct", "aggregated")),
        ("auto", 1, "wxxy", ("direct", "two-phase")),
        ("auto", 1, "wxyz", ("direct",)),
    ],
)
def test_an_order_is_followed_where_it_differs_from_another_way(
    name: ExchangeName, members: int, nodes: str, ways: tuple[Mode, ...]
) -> None:
    choice = ModeChoice(name)
    assert choice.possible(members=members, placement=placement(nodes)) == ways
    assert choice.has_choice == (len(ways) > 1)
    if len(ways) == 1:
        assert choice.decide(None) == Decision(ways[0])


def choosing() -> ModeChoice:
    choice = ModeChoice("auto")
    choice.possible(members=2, placement=placement("xxyy"))
    return choice


def test_it_takes_what_the_model_says_is_best_until_timings_say_otherwise() -> None:
    choice = choosing()
    choice.measured(inter=LinkCost(message_s=1.0, latency_s=0.0, byte_s=0.0))  # messages are all that costs
    first = choice.decide(SHAPE)
    assert first.mode == "two-phase"
    assert first.predicted_s == first.model_s > 0
    other = choosing()
    other.measured(
        inter=LinkCost(message_s=1e-6, latency_s=0.0, byte_s=0.0),
        intra=LinkCost(message_s=1.0, latency_s=0.0, byte_s=0.0),
    )
    assert other.decide(SHAPE).mode == "direct"
    taken: list[Mode] = []
    for _ in range(200):
        decision = choice.decide(SHAPE)
        taken.append(decision.mode)
        # What nobody could have known: the direct way is ten times as fast as said, the others slower.
        choice.took(decision, decision.model_s * (0.1 if decision.mode == "direct" else 3.0))
    assert taken[-1] == "direct"


def test_members_do_as_the_first_one_until_it_has_been_silent_for_long() -> None:
    choice = choosing()
    own = choice.decide(SHAPE).mode
    told: Mode = next(mode for mode in MODES if mode != own)
    choice.told(ExchangeWay(size=ModeChooser.size(SHAPE), way=told))
    followed = [choice.decide(SHAPE).mode for _ in range(1024)]
    assert set(followed) == {told}
    assert choice.decide(SHAPE).mode == own
    # Dispatches of another size are not meant.
    choice.told(ExchangeWay(size=ModeChooser.size(SHAPE), way=told))
    assert choice.decide(replace(SHAPE, instance_bytes=1 << 26)).mode == own


def test_a_way_that_is_not_possible_here_is_not_followed() -> None:
    choice = ModeChoice("auto")
    choice.possible(members=2, placement=placement("wxyz"))
    choice.told(ExchangeWay(size=ModeChooser.size(SHAPE), way="two-phase"))
    assert choice.decide(SHAPE).mode in ("direct", "aggregated")


def test_who_was_first_is_forgotten_when_members_change() -> None:
    choice = choosing()
    own = choice.decide(SHAPE).mode
    told: Mode = next(mode for mode in MODES if mode != own)
    choice.told(ExchangeWay(size=ModeChooser.size(SHAPE), way=told))
    choice.members_changed()
    assert choice.decide(SHAPE).mode == own


def test_the_first_member_says_what_is_new_and_repeats_itself_now_and_then() -> None:
    choice = choosing()
    decision = Decision("two-phase", 7, 1e-3, 1e-3)
    said = [choice.news(decision) for _ in range(2 * 257)]
    assert [i for i, message in enumerate(said) if message is not None] == [0, 257]
    assert said[0] == ExchangeWay(size=7, way="two-phase")
    changed = replace(decision, mode="direct")
    assert choice.news(changed) == ExchangeWay(size=7, way="direct")
    assert choice.news(changed) is None
    assert choice.news(replace(changed, size=8)) is not None, "each size is a choice of its own"
    choice.members_changed()
    assert choice.news(changed) is not None, "whoever has just come has not heard it"


def test_nothing_is_said_where_there_is_nothing_to_choose() -> None:
    choice = ModeChoice("two-phase")
    choice.possible(members=2, placement=placement("xxyy"))
    assert choice.news(choice.decide(SHAPE if choice.has_choice else None)) is None
