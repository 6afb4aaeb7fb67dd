"""With whom dispatches are planned: whoever is linked and not left out, and never so few that an expert is nowhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from janus.core.placement import EMPTY, Placement
from janus.core.scheduling import SCHEDULERS
from janus.exchange.choice import ModeChoice
from janus.exchange.remote import RemoteExchange

NAMES = ("expert-0", "expert-1", "expert-2", "expert-3")
NODES = ("x", "x", "y", "y")
EXPERTS, SLOTS, LAYERS = 4, 3, 2
HELD = st.lists(st.sampled_from(range(EXPERTS)), max_size=SLOTS, unique=True)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Every expert somewhere; instances that have nothing, too."""
    layers = []
    for _ in range(LAYERS):
        layer = [draw(HELD) for _ in NAMES]
        for expert in range(EXPERTS):
            if not any(expert in held for held in layer):
                free = [held for held in layer if len(held) < SLOTS]
                assume(free)  # the others may fill every slot
                free[0].append(expert)
        layers.append(tuple((*held, *[EMPTY] * (SLOTS - len(held))) for held in layer))
    return Placement(epoch=1, num_experts=EXPERTS, instances=NAMES, slots=tuple(layers), nodes=NODES)


def exchange_of(placement: Placement, *, linked: tuple[str, ...] = NAMES) -> RemoteExchange:
    links: dict[str, Any] = {name: SimpleNamespace(closed=False) for name in linked}
    exchange = RemoteExchange(
        own="attention-0",
        links=links,
        scheduler=SCHEDULERS["aebs"],
        dtype=torch.float32,
        dispatch_timeout_s=5.0,
        choice=ModeChoice("auto"),
    )
    exchange.set_placement(placement)
    return exchange


EVENTS = st.lists(
    st.tuples(st.sampled_from(["down", "up", "suspect", "alive"]), st.sampled_from(NAMES)), min_size=1, max_size=12
)


@settings(max_examples=100, deadline=None)
@given(placements(), EVENTS)
def test_every_expert_has_a_replica_that_is_used_while_one_is_linked(
    placement: Placement, events: list[tuple[str, str]]
) -> None:
    exchange = exchange_of(placement)
    for what, name in events:
        if what == "down":
            exchange.links[name].closed = True  # type: ignore[misc]
            exchange.links_changed()
        elif what == "up":
            exchange.links[name] = SimpleNamespace(closed=False)  # type: ignore[assignment]
            exchange.links_changed()
        elif what == "suspect":
            spared = exchange.can_mask(frozenset([name]))
            assert exchange._suspect((name,), "late") is spared
            assert (name in exchange.suspects()) or not spared
        else:
            exchange._slowness.alive(name, now_s=0.0)
            exchange.mask(exchange._slowness.suspects)
        linked = frozenset(each for each, link in exchange.links.items() if not link.closed)
        usable = exchange._usable
        assert exchange.ready() is placement.covered_by(linked) is (usable is not None)
        if usable is None:
            missing = exchange.missing()
            assert missing
            assert not linked.intersection(missing)
            assert placement.covered_by(linked.union(missing)), "with them it would be complete"
            continue
        assert exchange.missing() == ()
        assert (usable.epoch, usable.instances) == (placement.epoch, placement.instances)
        used = frozenset(n for n in NAMES if any(usable.replicas(n)))
        assert used <= linked
        for mode in ("direct", "aggregated", "two-phase"):
            plan = exchange._plan(usable, mode)
            assert {relay for to in plan.destinations for relay in to.relays} <= used
            assert {NAMES[i] for to in plan.destinations for i in to.instances} >= used
            assert plan.left_out == sum(1 << i for i, n in enumerate(NAMES) if n not in used)
        suspects = frozenset(exchange.suspects())
        if placement.covered_by(linked - suspects):
            assert not used & suspects


def test_the_last_who_has_an_expert_is_never_left_out() -> None:
    slots = (((0, 1, EMPTY), (2, 3, EMPTY), (0, 2, EMPTY), (1, EMPTY, EMPTY)),) * LAYERS
    exchange = exchange_of(
        Placement(epoch=1, num_experts=EXPERTS, instances=NAMES, slots=slots, nodes=NODES),
    )
    assert not exchange._suspect(("expert-1",), "late"), "expert 3 is nowhere else"
    assert exchange._suspect(("expert-0",), "late")
    # With that one gone expert-0 is needed, and who is late now is left out in its place.
    assert exchange._suspect(("expert-2",), "late")
    assert exchange.suspects() == ("expert-2",)
    assert exchange.missing() == ()


@pytest.mark.parametrize("experts_gate", [False, True])
def test_more_instances_than_a_frame_can_name_are_all_needed_where_experts_schedule(experts_gate: bool) -> None:
    names = tuple(f"expert-{number}" for number in range(65))
    placement = Placement(epoch=1, num_experts=1, instances=names, slots=(((0,),) * 65,))
    exchange = exchange_of(placement, linked=names)
    exchange.set_gate(experts=experts_gate)
    assert exchange.can_mask(frozenset([names[3]])) is not experts_gate
    exchange.links[names[3]].closed = True  # type: ignore[misc]
    assert exchange.ready() is not experts_gate
    assert exchange.missing() == ((names[3],) if experts_gate else ())
