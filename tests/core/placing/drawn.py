"""Requests to place, drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from janus.core.placement import Placement
from janus.core.placing.contract import Activity, Held, Host, PlacingRequest
from janus.core.placing.slotting import next_step


def activities(tokens: np.ndarray[tuple[int, int, int], np.dtype[np.uint16]], num_experts: int) -> Activity:
    """The statistics of ``tokens``, uint16[L, S, K]."""
    layers, sampled, _ = tokens.shape
    chose = np.zeros((layers, sampled, num_experts), dtype=np.float32)
    chose[np.arange(layers)[:, None, None], np.arange(sampled)[:, None], tokens] = 1
    together = chose.transpose(0, 2, 1) @ chose
    together[:, np.arange(num_experts), np.arange(num_experts)] = 0
    return Activity(counts=chose.sum(axis=1).astype(np.float64), coactivation=together, trace=tokens)


def routed(random: np.random.Generator, layers: int, experts: int, top_k: int, tokens: int = 96) -> Activity:
    """Skewed routing in which tokens come in kinds, each with its own experts."""
    kinds = random.gumbel(size=(layers, 3, experts)) * 1.5
    score = kinds[:, random.integers(0, 3, tokens)] + random.gumbel(size=(layers, tokens, experts))
    return activities(np.argsort(-score, axis=2)[:, :, :top_k].astype(np.uint16), experts)


def placed(held: Held, hosts: tuple[Host, ...], experts: int, epoch: int = 1) -> Placement:
    """``held`` as a placement."""
    step = next_step(
        epoch=epoch,
        num_experts=experts,
        slots=max(1, *(len(each) for layer in held for each in layer)),
        hosts=[host.name for host in hosts],
        nodes=[host.node for host in hosts],
        target=held,
        current=None,
        in_use=[],
    )
    assert step is not None
    assert step.complete
    return step.placement


@st.composite
def requests(
    draw: st.DrawFn, *, current: Placement | None = None, like: PlacingRequest | None = None
) -> PlacingRequest:
    """Hosts that can hold the model, with or without statistics. ``like``: of the same model."""
    layers = like.num_layers if like else draw(st.integers(1, 2))
    experts = like.num_experts if like else draw(st.integers(1, 12))
    count = draw(st.integers(1, 6))
    chosen = draw(st.permutations([f"expert-{index}" for index in range(8)]))[:count]
    hosts = [
        Host(
            name=name,
            node=draw(st.sampled_from(["", "m", "n"])),
            capacity=draw(st.integers(0, experts + 1)),
            speed=draw(st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0])),
        )
        for name in chosen
    ]
    short = experts - sum(min(host.capacity, experts) for host in hosts)
    if short > 0:
        hosts.append(Host(name="expert-9", capacity=short, speed=1.0))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    activity = routed(random, layers, experts, draw(st.integers(1, min(3, experts))))
    kind = draw(st.sampled_from(["none", "counts", "no trace", "all", "all"]))
    if kind == "counts":
        activity = Activity(counts=activity.counts)
    elif kind == "no trace":
        activity = Activity(counts=activity.counts, coactivation=activity.coactivation)
    return PlacingRequest(
        num_layers=layers,
        num_experts=experts,
        hosts=tuple(hosts),
        fill=draw(st.integers(0, experts)),
        activity=None if kind == "none" else activity,
        current=current,
    )
