"""``python -m benchmarks.chaos.simulated``: decisions about a cluster of 512 instances on 64 nodes, and what they take.

The controller's state machine and policies are the real ones, everything around them is simulated
(``simulated_world.py``); what must hold is checked at every decision (``simulated_checks.py``).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos.simulated_checks import Checks
from benchmarks.chaos.simulated_world import HEARTBEAT_S, Size, World, skewed_activity
from benchmarks.serving.machine import commit, hardware

_ROOT = Path(__file__).parents[2]
_RESULT = _ROOT / "benchmarks" / "results" / "simulated.json"
#: Virtual seconds for a start, and at most for a cluster that nobody touches any more to become as it should be.
START_S, SETTLE_S = 30.0, 400.0


@dataclass(kw_only=True)
class Story:
    """What has happened in one run."""

    seed: int
    policy: str
    size: Size
    done: dict[str, int] = field(default_factory=dict)
    #: What was not as it should be in the end.
    degraded: list[str] = field(default_factory=list)
    #: Whether every expert is served in the end.
    covered: bool = False
    virtual_s: float = 0.0
    #: Of them, until all was well after the last happening.
    settled_s: float = 0.0
    epochs: int = 0
    views: int = 0
    #: How often a view had no placement after one that had: experts were nowhere, or the controller was new.
    pauses: int = 0
    #: Slowest and median CPU time of an event, by kind.
    slowest_s: dict[str, float] = field(default_factory=dict)
    median_s: dict[str, float] = field(default_factory=dict)
    events: int = 0


def play(size: Size, *, seed: int, policy: str, happenings: int, pause_s: tuple[float, float] = (1.0, 12.0)) -> Story:
    """Start a cluster, let ``happenings`` happen to it, let it settle; raises AssertionError when a check fails.

    Args:
        pause_s: bounds of the virtual time between two of them.
    """
    checks, story = Checks(), Story(seed=seed, policy=policy, size=size)
    world = World(size, seed=seed, policy=policy, activity=skewed_activity(size, seed=seed), on_actions=checks)
    checks.world = world
    world.run(START_S)
    assert world.membership.view.placement is not None, world.membership.waiting_for
    kinds = happenings_of(world)
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    for _ in range(happenings):
        name = world.random.choices(names, weights)[0]
        kinds[name][1]()
        story.done[name] = story.done.get(name, 0) + 1
        world.run(world.now + world.random.uniform(*pause_s))
    story.settled_s = settle(world)
    story.degraded = world.membership.degraded
    story.covered = world.membership.view.placement is not None
    story.virtual_s, story.epochs, story.views, story.pauses = world.now, checks.issued, checks.views, checks.pauses
    story.events = len(world.decisions)
    for kind in sorted({decision.event for decision in world.decisions}):
        seconds = [decision.seconds for decision in world.decisions if decision.event == kind]
        story.slowest_s[kind], story.median_s[kind] = max(seconds), statistics.median(seconds)
    return story


def settle(world: World) -> float:
    """Let time pass until all is well; returns how long that took, at most ``SETTLE_S``."""
    begin = world.now
    while world.now < begin + SETTLE_S:
        world.run(world.now + 10.0)
        whole = world.membership is not None and not world.membership.degraded
        if whole and world.membership.view.placement is not None and world.membership.placing_request() is not None:
            break
    return world.now - begin


def happenings_of(world: World) -> dict[str, tuple[float, Callable[[], object]]]:
    """Return what may happen to ``world``: ``{name: (weight, do it)}``."""
    draw, size = world.random, world.size
    seeds = iter(range(1_000_000))

    def anyone(*roles: str) -> str:
        return draw.choice([name for role in roles for name in world.names(role)])

    def kill_several() -> None:
        for _ in range(5):
            world.kill(anyone("expert"), back_in_s=draw.uniform(1, 30))

    def slow_loader() -> None:
        world.processes[anyone("expert")].slowness = draw.uniform(5.0, 40.0)

    def failing_load() -> None:
        world.processes[anyone("expert")].failing_loads = draw.randint(1, 2)

    def scale() -> None:
        role, most = draw.choice([("expert", size.experts), ("attention", size.attention)])
        world.scale(role, draw.randint(most - most // 16, most + most // 16))

    return {
        "kill": (6, lambda: world.kill(anyone("expert", "attention", "gateway"), back_in_s=draw.uniform(1, 8))),
        "kill several": (2, kill_several),
        "node death": (2, lambda: world.kill_node(f"node-{draw.randrange(size.nodes)}", back_in_s=draw.uniform(5, 60))),
        "hang": (2, lambda: world.hang(anyone("expert", "attention"), draw.uniform(1, 12 * HEARTBEAT_S))),
        "drain": (3, lambda: world.drain(anyone("expert", "attention"))),
        "scale": (2, scale),
        "slow loader": (2, slow_loader),
        "failing load": (2, failing_load),
        "controller restart": (1, lambda: world.restart_controller(gap_s=draw.uniform(0.5, 20))),
        "rebalance": (2, lambda: world.rebalance(skewed_activity(size, seed=next(seeds)))),
    }


def main() -> int:
    """Run, write the result, print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.simulated", description=__doc__)
    parser.add_argument("--layers", type=int, default=58, help="MoE layers of the model")
    parser.add_argument("--experts", type=int, default=256, help="experts per layer of the model")
    parser.add_argument("--happenings", type=int, default=60, help="what happens in one run")
    parser.add_argument("--policies", default="static,eplb,activation-aware", help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_RESULT, help="file that is written")
    options = parser.parse_args()
    size = replace(Size(), layers=options.layers, model_experts=options.experts)
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.chaos.simulated --layers {options.layers} --experts {options.experts} "
        f"--happenings {options.happenings} --seed {options.seed}",
        "commit": commit(_ROOT),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "hardware": hardware(1),
        "stories": [],
    }
    for policy in options.policies.split(","):
        story = play(size, seed=options.seed, policy=policy, happenings=options.happenings)
        result["stories"].append(asdict(story))
        print(json.dumps(result["stories"][-1], indent=1), flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
