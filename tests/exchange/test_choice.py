"""Which way a dispatch goes: orders and their fallbacks, following the node's first member, and forgetting it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from janus.config.options import ExchangeName
from janus.core.exchange_chooser import ModeChooser
from janus.core.exchange_cost import DispatchShape, LinkCost
from janus.core.exchange_routes import GATHERED_MOST_BYTES, MODES, Mode
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


def unasked() -> DispatchShape:
    raise AssertionError("there is nothing to choose")


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
        assert choice.decide(16_000, unasked) == Decision(ways[0])


def choosing() -> ModeChoice:
    choice = ModeChoice("auto")
    choice.possible(members=2, placement=placement("xxyy"))
    return choice


def decide(choice: ModeChoice, shape: DispatchShape = SHAPE) -> Decision:
    return choice.decide(shape.batch_bytes, lambda: shape)


def said(way: Mode, shape: DispatchShape = SHAPE) -> ExchangeWay:
    return ExchangeWay(size=ModeChooser.size(shape.batch_bytes), way=way)


FREE_INSIDE = LinkCost(message_s=1e-6, latency_s=0.0, byte_s=0.0)
COSTLY = LinkCost(message_s=1.0, latency_s=0.0, byte_s=0.0)
LARGE = replace(SHAPE, batch_bytes=GATHERED_MOST_BYTES + 1)


def test_it_takes_what_the_model_says_is_best_until_the_cadence_says_otherwise() -> None:
    choice = choosing()
    choice.measured(inter=COSTLY, intra=FREE_INSIDE)
    first = decide(choice)
    assert first.mode == "two-phase"
    assert first.predicted_s > 0
    other = choosing()
    other.measured(inter=FREE_INSIDE, intra=COSTLY)
    assert decide(other).mode == "direct"
    taken: list[Mode] = []
    for _ in range(200):
        decision = decide(choice)
        taken.append(decision.mode)
        # What nobody could have known: layers follow each other faster by far when dispatches go directly.
        choice.took(decision, 1e-3 if decision.mode == "direct" else 3e-3)
    assert taken[-1] == "direct"
    assert choice.settled(SHAPE.batch_bytes)
    assert choice.trials >= choice.changes >= 1


def test_how_a_dispatch_looks_is_asked_once_per_size_until_links_are_measured_again() -> None:
    choice, asked = choosing(), 0

    def shape() -> DispatchShape:
        nonlocal asked
        asked += 1
        return SHAPE

    before = [choice.decide(SHAPE.batch_bytes, shape).predicted_s for _ in range(3)]
    choice.measured(inter=COSTLY, intra=FREE_INSIDE)
    after = [choice.decide(SHAPE.batch_bytes, shape).predicted_s for _ in range(3)]
    assert asked == 2
    assert before[0] < after[0]
    for nbytes in range(1, 1000):
        choice.decide(nbytes, shape)
    assert len(choice._predicted) <= 256


def test_a_batch_that_is_not_gathered_has_two_ways() -> None:
    choice = choosing()
    taken = set()
    for _ in range(300):
        decision = decide(choice, LARGE)
        choice.took(decision, 1e-3)
        taken.add(decision.mode)
    assert taken == {"direct", "two-phase"}
    # Who is told to aggregate sends its large batch as that way sends large batches.
    choice.told(ExchangeWay(size=0, way="aggregated"), by="attention-0")
    assert decide(choice, LARGE).mode == "direct"


def test_members_do_as_the_first_one_until_it_has_been_silent_for_long() -> None:
    choice = choosing()
    own = decide(choice).mode
    told: Mode = next(mode for mode in MODES if mode != own)
    assert choice.leads
    choice.told(said(told), by="attention-0")
    assert not choice.leads
    assert choice.news(decide(choice)) is None, "the first one has said it"
    followed = [decide(choice).mode for _ in range(1023)]
    assert set(followed) == {told}
    assert choice.leads
    assert decide(choice).mode == own


def test_dispatches_of_another_size_go_as_the_nearest_that_the_first_one_has() -> None:
    choice = choosing()
    choice.told(ExchangeWay(size=5, way="aggregated"), by="attention-0")
    choice.told(ExchangeWay(size=9, way="direct"), by="attention-0")
    assert decide(choice, replace(SHAPE, batch_bytes=1 << 8)).mode == "aggregated"
    assert decide(choice, replace(SHAPE, batch_bytes=1 << 30)).mode == "direct"


def test_the_first_of_those_that_say_anything_counts() -> None:
    choice = choosing()
    choice.told(said("aggregated"), by="attention-1")
    choice.told(said("direct"), by="attention-2")
    assert decide(choice).mode == "aggregated"
    choice.told(said("direct"), by="attention-0")
    choice.told(said("aggregated"), by="attention-1")
    assert decide(choice).mode == "direct"


def test_a_way_that_is_not_possible_here_is_not_followed() -> None:
    choice = ModeChoice("auto")
    choice.possible(members=2, placement=placement("wxyz"))
    choice.told(said("two-phase"), by="attention-0")
    assert decide(choice).mode in ("direct", "aggregated")


def test_who_was_first_is_forgotten_when_members_change() -> None:
    choice = choosing()
    own = decide(choice).mode
    told: Mode = next(mode for mode in MODES if mode != own)
    choice.told(said(told), by="attention-0")
    choice.members_changed()
    assert decide(choice).mode == own


def test_the_first_member_says_what_is_new_and_repeats_itself_now_and_then() -> None:
    choice = choosing()
    decision = Decision("two-phase", 7, 1e-3)
    news = [choice.news(decision) for _ in range(2 * 257)]
    assert [i for i, message in enumerate(news) if message is not None] == [0, 257]
    assert news[0] == ExchangeWay(size=7, way="two-phase")
    changed = replace(decision, mode="direct")
    assert choice.news(changed) == ExchangeWay(size=7, way="direct")
    assert choice.news(changed) is None
    assert choice.news(replace(changed, size=8)) is not None, "each size is a choice of its own"
    choice.members_changed()
    assert choice.news(changed) is not None, "whoever has just come has not heard it"


def test_nothing_is_said_where_there_is_nothing_to_choose() -> None:
    choice = ModeChoice("two-phase")
    choice.possible(members=2, placement=placement("xxyy"))
    assert choice.news(choice.decide(SHAPE.batch_bytes, unasked)) is None
