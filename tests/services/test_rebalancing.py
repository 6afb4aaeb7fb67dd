"""The controller's look for a better placement: what it proposes, when, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from janus.config.options import CommonOptions, ControllerOptions
from janus.core.membership import Membership
from janus.core.membership_events import Event
from janus.core.placement import Placement
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, Held, PlacingRequest
from janus.core.placing.objective import estimate_a_max
from janus.model.checkpoint import Checkpoint
from janus.model.random_model import random_config, write_random_model
from janus_placement_controller import rebalancing
from janus_placement_controller.rebalancing import Rebalancer, ReplicaBytes
from tests.core.cluster_harness import SHAPE, beat, cluster, epoch_of, loaded, lost, registered

EXPERTS = SHAPE.num_experts
REPLICA = ReplicaBytes(parameters=250, stored=300)


def activity(*pairs: tuple[int, int], tokens: int = 256) -> Activity:
    """Tokens that choose one of ``pairs`` each, in all layers."""
    chosen = np.array([pairs[i % len(pairs)] for i in range(tokens)], dtype=np.uint16)
    trace = np.broadcast_to(chosen, (SHAPE.num_layers, tokens, 2)).copy()
    counts = np.zeros((SHAPE.num_layers, EXPERTS))
    together = np.zeros((SHAPE.num_layers, EXPERTS, EXPERTS), dtype=np.float32)
    for a, b in chosen:
        counts[:, [a, b]] += 1
        together[:, a, b] += 1
        together[:, b, a] += 1
    return Activity(counts=counts, coactivation=together, trace=trace)


class Controller:
    """A membership with two expert instances at work, and its rebalancer."""

    def __init__(self, seen: Activity | None) -> None:
        self.membership: Membership = cluster()
        for name in self.membership.missing:
            self.membership.handle(registered(name))
            self.membership.handle(beat(name))
        self.settle()
        common = CommonOptions(secret="s" * 16, name="controller-0")
        options = ControllerOptions(common=common, model=Path("model"), rebalance_s=1.0)
        self.events: list[Event] = []
        self.seen = seen
        self.rebalancer = Rebalancer(
            self.membership,
            options,
            replica=REPLICA,
            dtype=lambda: "float32",
            activity=lambda: self.seen,
            apply=self.apply,
        )

    def apply(self, event: Event) -> None:
        self.events.append(event)
        self.membership.handle(event)

    def settle(self) -> None:
        for _ in range(10):
            for epoch in {int(sentence.split()[-1]) for sentence in self.membership.waiting_for}:
                for name in ("expert-0", "expert-1"):
                    self.membership.handle(loaded(name, epoch))
            self.membership.handle(beat("attention-0", oldest_epoch=epoch_of(self.membership.view) or 0))

    def a_max(self) -> float:
        assert self.membership.view.placement is not None
        placement = Placement.from_table(self.membership.view.placement)
        assert self.seen is not None
        assert self.seen.trace is not None
        held = tuple(zip(*(placement.replicas(name) for name in placement.instances), strict=True))
        return float(estimate_a_max(held, self.seen.trace, batch=1, samples=64, seed=1).mean())


def together(controller: Controller) -> list[tuple[int, int]]:
    """Pairs of experts that sit on one instance in every layer; the worst that tokens can choose."""
    assert controller.membership.view.placement is not None
    placement = Placement.from_table(controller.membership.view.placement)
    pairs = (placement.replicas(name)[0] for name in placement.instances)
    return [(first, second) for first, second in pairs]


async def test_experts_that_are_chosen_together_are_taken_apart() -> None:
    controller = Controller(None)
    controller.seen = activity(together(controller)[0])
    before = controller.a_max()
    with capture_logs() as logs:
        await controller.rebalancer.look()
    judged = next(event for event in logs if event["event"] == "placement_judged")
    assert judged["moved"] is True, judged
    assert judged["bytes"] == judged["loads"] * 250 * 4 > 0, "as they are held, in the dtype that is served"
    assert judged["stored_bytes"] == judged["loads"] * 300, "as they are in the checkpoint"
    assert len(controller.events) == 1
    controller.settle()
    assert controller.a_max() < before
    move = controller.membership.report(1.0).last_move
    assert move is not None
    assert (move.reason, move.outcome) == ("balance", "in force")
    assert move.a_max_after < move.a_max_before
    # What is best already is left alone.
    await controller.rebalancer.look()
    assert len(controller.events) == 1


async def test_without_statistics_nothing_is_moved() -> None:
    controller = Controller(None)
    await controller.rebalancer.look()
    assert controller.events == []


async def test_while_the_cluster_changes_nothing_is_proposed() -> None:
    controller = Controller(activity((0, 1), (2, 3)))
    controller.membership.handle(lost("expert-1"))
    await controller.rebalancer.look()
    assert controller.events == []


async def test_a_policy_that_fails_costs_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: PlacingRequest) -> Held:
        raise RuntimeError("out of memory")

    controller = Controller(None)
    controller.seen = activity(*together(controller))
    monkeypatch.setitem(rebalancing.POLICIES, "activation-aware", broken)
    failing = Rebalancer(
        controller.membership,
        ControllerOptions(common=CommonOptions(secret="s" * 16, name="c"), model=Path("model")),
        replica=REPLICA,
        dtype=lambda: "",
        activity=lambda: controller.seen,
        apply=controller.apply,
    )
    with capture_logs() as logs:
        await failing.look()
    assert [event["event"] for event in logs] == ["rebalance_failed"]
    assert controller.events == []
    assert POLICIES["activation-aware"] is broken
    assert "out of memory" in str(failing.last["problem"])


@pytest.mark.parametrize(
    ("quantised", "stored"),
    [
        ({}, 4 * 3 * 32 * 64),
        # A byte each, and a float32 for each block: 4 of gate and of up, 2 x 2 of down.
        ({"fp8_block": (16, 32)}, 3 * 32 * 64 + 4 * 12),
    ],
    ids=["float32", "fp8"],
)
def test_what_a_replica_takes_is_the_checkpoints_in_files_and_the_served_dtypes_in_memory(
    tmp_path: Path, quantised: dict[str, tuple[int, int]], stored: int
) -> None:
    config = replace(random_config(hidden_size=64, moe_intermediate_size=32, moe_layers=(0, 2)), **quantised)
    checkpoint = Checkpoint.open(write_random_model(tmp_path / "model", config))
    replica = ReplicaBytes.of(checkpoint)
    assert replica.stored == stored
    assert [replica.held(dtype) for dtype in ("float32", "bfloat16", "float16", "")] == [
        width * 3 * 32 * 64 for width in (4, 2, 2, 2)
    ]
