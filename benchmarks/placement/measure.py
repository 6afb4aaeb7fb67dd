"""a_max of placements through the scheduler that servers use, on tokens that no placement was made from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.placement.optimum import least_a_max, least_load
from benchmarks.scheduling.routing import JANUS_TINY, RECORDED, SHAPES, Shape, Trace, recorded, seeded, synthetic

from janus.core.placement import Placement
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, Held, Host, PlacingRequest
from janus.core.placing.moves import replicas_to_load, worth_moving
from janus.core.placing.objective import Batches, a_max_bound, estimate_a_max
from janus.core.placing.policies.activation_aware import algorithm_3
from janus.core.placing.policies.eplb import packed
from janus.core.placing.problem import problems
from janus.core.placing.replicas import replica_counts
from janus.core.placing.search import improved
from janus.core.placing.slotting import next_step
from janus.model.kernels.scheduling import fastest_scheduler

Case = dict[str, Any]

#: Weights of an expert of one layer of the bundled model in float32: three matrices of 256 x 128.
TINY_EXPERT_BYTES = 3 * 256 * 128 * 4
TEXTS = tuple(trace.routing for trace in recorded(RECORDED))


def activity(trace: Trace) -> Activity:
    """Return what a controller knows that has seen the first half of the trace."""
    ids_LNK = np.ascontiguousarray(trace.seen_NLK.transpose(1, 0, 2)).astype(np.uint16)
    layers, tokens, _ = ids_LNK.shape
    chose = np.zeros((layers, tokens, trace.shape.experts), dtype=np.float32)
    chose[np.arange(layers)[:, None, None], np.arange(tokens)[:, None], ids_LNK] = 1
    together = chose.transpose(0, 2, 1) @ chose
    together[:, np.arange(trace.shape.experts), np.arange(trace.shape.experts)] = 0
    return Activity(counts=trace.activations, coactivation=together, trace=ids_LNK)


def request(trace: Trace, instances: int, slots: int, current: Placement | None = None) -> PlacingRequest:
    """Return what a controller asks for ``instances`` hosts, a node each; ``slots`` 0 = without spare replicas."""
    experts = trace.shape.experts
    return PlacingRequest(
        num_layers=trace.layers,
        num_experts=experts,
        hosts=tuple(Host(name=f"expert-{index}", node=f"n{index}", capacity=experts) for index in range(instances)),
        fill=slots,
        activity=activity(trace),
        current=current,
    )


def placed(asked: PlacingRequest, held: Held) -> Placement:
    """Return ``held`` as a first placement."""
    step = next_step(
        epoch=1,
        num_experts=asked.num_experts,
        slots=max(len(each) for layer in held for each in layer),
        hosts=[host.name for host in asked.hosts],
        nodes=[host.node for host in asked.hosts],
        target=held,
        current=None,
        in_use=[],
    )
    if step is None:
        raise ValueError("an empty cluster can take any target")
    return step.placement


def a_max(placement: Placement, batches: Sequence[npt.NDArray[np.int32]]) -> float:
    """Return the mean a_max over ``batches``, each int32[L, B, K], and layers, as AEBS schedules them."""
    scheduler = fastest_scheduler("aebs")
    return float(
        np.mean([scheduler(ids_BK, placement, layer).a_max for ids in batches for layer, ids_BK in enumerate(ids)])
    )


def traces(shapes: Sequence[str]) -> Iterator[Trace]:
    """Yield the recorded traces of the bundled model, and simulated ones of the larger ``shapes``."""
    yield from recorded(RECORDED)
    for shape in SHAPES:
        if shape.name in shapes:
            yield synthetic(shape, "zipf-0.6")
            yield of_topics(shape)


def of_topics(shape: Shape) -> Trace:
    """Return a simulated trace of one layer in which tokens have one of 16 topics, each with its own favourites.

    The K largest of popularity (standard normal) + the topic's liking (twice that) + Gumbel noise are chosen. Tokens of
    all topics are mixed, as in the batches of a server with many users.
    """
    random = seeded("topics", shape)
    popularity, liking = random.normal(size=shape.experts), 2 * random.normal(size=(16, shape.experts))
    topic = random.integers(0, 16, 16_384)
    score = popularity + liking[topic] + random.gumbel(size=(len(topic), shape.experts))
    return Trace(shape, "topics", np.argpartition(-score, shape.k, axis=1)[:, None, : shape.k])


def quality(trace: Trace, instances: int, slots: int, sizes: Sequence[int], draws: int) -> Iterator[Case]:
    """Yield a_max of every policy by batch size, all on the same batches."""
    asked = request(trace, instances, slots)
    started, placements, seconds = time.process_time(), {}, {}
    for name, policy in POLICIES.items():
        placements[name] = placed(asked, policy(asked))
        seconds[name] = round(time.process_time() - started, 4)
        started = time.process_time()
    random = seeded("placement", trace.shape, trace.routing, instances, slots)
    seen_LSK = asked.activity.trace if asked.activity is not None else None
    for size in sizes:
        batches = [trace.batch(random, size) for _ in range(draws)]
        yield {
            "shape": trace.shape.name,
            "routing": trace.routing,
            "simulated": trace.shape != JANUS_TINY,
            "instances": instances,
            "slots": slots or -(-trace.shape.experts // instances),
            "spare": bool(slots),
            "batch": size,
            "draws": draws * trace.layers,
            "a_max": {name: round(a_max(each, batches), 4) for name, each in placements.items()},
            "estimate": round(float(estimate_a_max(placements["activation-aware"], seen_LSK, batch=size).mean()), 4),
            "bound": round(float(a_max_bound(placements["activation-aware"], seen_LSK, batch=size).mean()), 4),
            "decision_cpu_s": seconds,
        }


def shifts(instances: int, slots: int, size: int, draws: int) -> Iterator[Case]:
    """Yield what re-placing gains when the text changes: placed for one, asked again when another is served."""
    by_text = {trace.routing: trace for trace in recorded(RECORDED) if trace.routing != "mixed"}
    for before, after in ((a, b) for a in by_text for b in by_text if a != b):
        old = request(by_text[before], instances, slots)
        current = placed(old, POLICIES["activation-aware"](old))
        now = by_text[after]
        asked = request(now, instances, slots, current)
        held = POLICIES["activation-aware"](asked)
        verdict = worth_moving(asked, held, asked.activity, bytes_per_expert=TINY_EXPERT_BYTES, batch=size)
        random = seeded("shift", before, after)
        batches = [now.batch(random, size) for _ in range(draws)]
        loads = replicas_to_load(current, held, current.instances)
        yield {
            "from": before,
            "to": after,
            "instances": instances,
            "slots": slots,
            "batch": size,
            "a_max_stay": round(a_max(current, batches), 4),
            "a_max_move": round(a_max(placed(asked, held), batches), 4),
            "predicted_gain": round(1 - verdict.a_max_after / verdict.a_max_before, 4) if loads else 0.0,
            "move": verdict.move,
            "loads": sum(loads.values()),
            "replicas": sum(len(each) for layer in held for each in layer),
            "bytes": verdict.bytes,
        }


def gaps(instances: int, slots: int, sampled: int, limit_s: float) -> Iterator[Case]:
    """Yield, per text and layer of the bundled model, how far each objective is from the least there is."""
    quotas = [slots] * instances
    for trace in recorded(RECORDED):
        for layer in list(problems(request(trace, instances, slots)))[:2]:
            counts = replica_counts(layer.loads, total_slots=instances * slots, num_instances=instances)
            share, dealt = layer.loads / counts, algorithm_3(layer)
            batches = Batches(layer.trace, trace.shape.experts, [4], sampled, seed=layer.layer)
            found = {
                "load": (float((packed(layer) @ share).max()), *least_load(counts, share, quotas, limit_s)),
                "a_max": (
                    batches.mean_a_max(improved(layer, dealt, batches), layer.speeds),
                    *least_a_max(batches.active, quotas, limit_s),
                ),
            }
            yield {
                "routing": trace.routing,
                "layer": layer.layer,
                "instances": instances,
                "slots": slots,
                **{
                    objective: {"found": round(value, 4), "least": round(least, 4), "proven": proven}
                    for objective, (value, least, proven) in found.items()
                },
            }
