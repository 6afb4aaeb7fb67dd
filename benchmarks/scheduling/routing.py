"""Routing to schedule: tokens of the large models' shapes, drawn; and the bundled model's, recorded from text."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement, static_placement

Ids = npt.NDArray[np.int32]

REPOSITORY = Path(__file__).parents[2]
#: What the bundled model's gate chose, written by ``benchmarks.scheduling.record``.
RECORDED = REPOSITORY / "benchmarks" / "results" / "routing-janus-tiny.npz"

#: Tokens of a synthetic trace: half to count activations with, half to schedule.
_TOKENS = 32_768
#: Exponent of the popularity of experts, by name.
ROUTINGS = {"uniform": 0.0, "zipf-0.6": 0.6, "zipf-1.0": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Experts of one MoE layer: E to choose from, K per token."""

    name: str
    experts: int
    k: int


SHAPES = (
    Shape(name="deepseek-v2", experts=160, k=6),
    Shape(name="qwen3-235b", experts=128, k=8),
    Shape(name="deepseek-v3", experts=256, k=8),
    Shape(name="scaled-ds-1", experts=160, k=8),
    Shape(name="scaled-ds-2", experts=200, k=8),
)
JANUS_TINY = Shape(name="janus-tiny", experts=16, k=4)


def slots(shape: Shape, instances: int) -> int:
    """Return C, the slots of each instance.

    The large models have as many as hold them on six instances: 27 for DeepSeek-V2, as in the paper's figure 17. So
    whatever is above six instances is spare. The bundled model has 24 slots in all, half as many again as experts.
    """
    if shape.name == JANUS_TINY.name:
        return -(-3 * shape.experts // (2 * instances))
    return -(-shape.experts // 6)


class Trace:
    """Which experts tokens were routed to: ``ids_NLK`` int[N, L, K], N tokens, L MoE layers.

    Activations are counted on the first half of the tokens, what is scheduled comes from the second: a placement never
    knows the future.
    """

    def __init__(self, shape: Shape, routing: str, ids_NLK: npt.NDArray[np.integer[Any]]) -> None:
        self.shape = shape
        self.routing = routing
        half = len(ids_NLK) // 2
        #: The first half.
        self.seen_NLK, later_NLK = ids_NLK[:half], ids_NLK[half:]
        self._later_LNK = np.ascontiguousarray(later_NLK.transpose(1, 0, 2), dtype=np.int32)

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self._later_LNK)

    @property
    def tokens(self) -> int:
        """Tokens to schedule."""
        return int(self._later_LNK.shape[1])

    @cached_property
    def activations(self) -> npt.NDArray[np.float64]:
        """float[L, E]: tokens that chose each expert, in the first half."""
        experts = self.shape.experts
        layers = [self.seen_NLK[:, layer].ravel() for layer in range(self.layers)]
        return np.array([np.bincount(ids, minlength=experts) for ids in layers], dtype=np.float64)

    def placement(self, instances: int) -> Placement:
        """Return the placement that ``janus up --slots-per-instance C --activations FILE`` would make."""
        return static_placement(
            num_layers=self.layers,
            num_experts=self.shape.experts,
            instances=tuple(f"expert-{index}" for index in range(instances)),
            slots_per_instance=slots(self.shape, instances),
            activations=self.activations,
        )

    def batch(self, random: np.random.Generator, size: int) -> Ids:
        """Return int32[L, B, K]: tokens drawn from the second half, each at most once while there are enough."""
        chosen = random.choice(self.tokens, size, replace=size > self.tokens)
        return np.ascontiguousarray(self._later_LNK[:, chosen])


def seeded(*words: object) -> np.random.Generator:
    """Return a generator that depends on the words alone, not on which process draws first."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, words)).encode()))


def synthetic(shape: Shape, routing: str) -> Trace:
    """Return a trace of one layer: K distinct experts per token, drawn one after the other without replacement.

    Expert popularity is rank^-s with s from ``ROUTINGS``, ranks dealt to experts at random. The K largest of
    log popularity + Gumbel noise are such a draw (Yellott 1977; Kool, van Hoof, Welling 2019). Tokens are independent.
    """
    random = seeded("trace", shape, routing)
    rank = 1.0 + random.permutation(shape.experts)
    score = random.gumbel(size=(_TOKENS, shape.experts)) - ROUTINGS[routing] * np.log(rank)
    chosen = np.argpartition(-score, shape.k, axis=1)[:, : shape.k]
    return Trace(shape, routing, chosen[:, None])


def recorded(path: Path) -> list[Trace]:
    """Return the traces in a file of ``benchmarks.scheduling.record``: one per kind of text, and one of all mixed."""
    with np.load(path) as file:
        by_text = {name: unpack(file[name]) for name in sorted(file.files)}
    # Mixed like the batches of a server with many users; the halves stay apart.
    halves = [np.concatenate([ids[: len(ids) // 2] for ids in by_text.values()])]
    halves.append(np.concatenate([ids[len(ids) // 2 :] for ids in by_text.values()]))
    return [Trace(JANUS_TINY, name, ids) for name, ids in (by_text | {"mixed": np.concatenate(halves)}).items()]


def pack(ids_NLK: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint16]:
    """Return uint16[N, L]: bit e is set where expert e was chosen; the order of a token's experts is lost."""
    chosen_NL: npt.NDArray[np.int64] = np.bitwise_or.reduce(np.left_shift(1, ids_NLK), axis=2)
    return chosen_NL.astype(np.uint16)


def unpack(chosen_NL: npt.NDArray[np.uint16]) -> npt.NDArray[np.int32]:
    """Return int32[N, L, K], ascending in K."""
    bits = chosen_NL[..., None] >> np.arange(16, dtype=np.uint16) & 1
    return np.nonzero(bits)[2].reshape(*chosen_NL.shape, -1).astype(np.int32)
