"""512 instances on 64 nodes, of which any may come, go, hang and fail: what is decided stays right, and is fast.

The checks are in ``benchmarks.chaos.simulated_checks``: every epoch has every expert, numbers only grow and stand for
one table, no slot changes its expert while a dispatch may name it, nothing is given back that is named, what comes into
force is loaded, and where no placement is in force the controller says why.
"""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec
import pytest
from benchmarks.chaos.simulated import Story, play
from benchmarks.chaos.simulated_checks import Checks
from benchmarks.chaos.simulated_world import Size, World, skewed_activity

from janus.core.epochs import PlacementEpochs
from janus.core.goals import Candidate, ModelShape
from janus.core.membership_events import SendLoad
from janus.core.placement import static_placement
from janus.core.placing import POLICIES
from tests.core.cluster_harness import cluster, epoch_of, loads, registered

SMALL = Size(nodes=8, gateways=2, attention=12, experts=36, layers=2, model_experts=32)
LARGE = Size(layers=2)
#: CPU time of one decision. Others on the machine cost wall time, and caches.
LIMIT_S = 1.0


def check_end(story: Story) -> None:
    assert story.degraded == []
    assert story.covered
    assert max(story.slowest_s.values()) < LIMIT_S


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("policy", "seed"), [("static", 1), ("static", 2), ("eplb", 3), ("eplb", 4), ("eplb", 5), ("activation-aware", 2)]
)
def test_small_clusters_go_through_everything(policy: str, seed: int) -> None:
    story = play(SMALL, seed=seed, policy=policy, happenings=30)
    check_end(story)
    assert len(story.done) >= 8
    assert story.epochs > 10


@pytest.mark.timeout(600)
def test_512_instances_go_through_everything() -> None:
    assert (LARGE.gateways + LARGE.attention + LARGE.experts, LARGE.nodes) == (512, 64)
    story = play(LARGE, seed=4, policy="eplb", happenings=4)
    check_end(story)
    assert story.events > 10_000


def test_a_search_too_long_for_the_controllers_loop_is_left_to_the_rebalancer() -> None:
    size = Size(layers=16)
    epochs = PlacementEpochs(
        ModelShape(num_layers=size.layers, num_experts=size.model_experts), policy=POLICIES["activation-aware"], fill=2
    )
    epochs.use_activity(skewed_activity(size, tokens=128))
    candidates = [Candidate(name=f"expert-{i}", incarnation="i", capacity=4) for i in range(size.experts)]
    begun = time.process_time()
    actions = epochs.reconcile(candidates, complete=True, now=0.0)
    assert time.process_time() - begun < LIMIT_S
    assert len([action for action in actions if isinstance(action, SendLoad)]) == size.experts


def started(seed: int = 0) -> tuple[World, Checks]:
    checks = Checks()
    world = World(SMALL, seed=seed, on_actions=checks)
    checks.world = world
    world.run(30.0)
    assert world.membership.view.placement is not None
    return world, checks


def test_a_new_controller_takes_over_while_somebody_is_gone_and_somebody_leaves() -> None:
    world, _ = started()
    epoch = world.membership.view.placement.epoch  # type: ignore[union-attr]
    world.restart_controller(gap_s=1.0)
    world.kill("expert-3", back_in_s=None)
    world.drain("expert-4")
    world.run(world.now + 10.0)
    placement = world.membership.view.placement
    assert placement is not None
    assert placement.epoch >= epoch


def test_a_new_controller_trusts_no_instance_that_was_restarted_meanwhile() -> None:
    """It loaded an epoch that never came into force; of the one that is, it has nothing."""
    names = ("expert-0", "expert-1")
    table = static_placement(num_layers=2, num_experts=4, instances=names, slots_per_instance=4, epoch=3).to_table()
    membership = cluster(experts=2)

    def register(name: str, **more: object) -> list[tuple[str, int]]:
        event = registered(name)
        return loads(membership.handle(replace(event, register=msgspec.structs.replace(event.register, **more))))

    register("attention-0", placement=table)
    register("expert-0", loaded_epoch=5, loaded_epochs=[3, 5])
    issued = register("expert-1", loaded_epoch=5, loaded_epochs=[5])
    assert epoch_of(membership.view) == 3
    assert "expert-1" in dict(issued)
    assert all(epoch > 5 for _, epoch in issued)


def test_a_node_that_dies_is_replaced_by_the_others() -> None:
    world, checks = started()
    gone = world.kill_node("node-3", back_in_s=1000.0)
    assert any(name.startswith("expert") for name in gone)
    world.run(world.now + 60.0)
    placement = world.membership.view.placement
    assert placement is not None
    assert not set(gone) & set(placement.instances)
    assert checks.issued >= 2
