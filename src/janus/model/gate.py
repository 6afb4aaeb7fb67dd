"""The gates of a model: which experts a row goes to, and with what weight. On the attention side or the experts'."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref
from typing import Protocol

import torch
import torch.nn.functional as F

from janus.model.checkpoint import Checkpoint
from janus.model.config import GateConfig, ModelConfig
from janus.model.kernels import load_library
from janus.model.kernels.library import DTYPES, GateShape, Library
from janus.model.memory import Arena
from janus.model.weights import RouterWeights, WeightReader

#: Of transformers' gates with sigmoid scores, which might all be 0.
_TINY = 1e-20


class Gates(Protocol):
    """The gates of all MoE layers."""

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate of layer ``layer`` (absolute index) for x [T, H], as ``GateConfig`` says it.

        Scores of all experts; a bias that counts for the choice alone; the best groups; the top K in them; their scores
        as weights, normalised and scaled. Of equal scores the kernels choose the lower id.

        Returns:
            weights f32 [T, K] and expert ids int32 [T, K], the best choice first.
        """


class TorchGates:
    """In plain torch, on any device."""

    def __init__(self, config: ModelConfig, routers: Mapping[int, RouterWeights]) -> None:
        self._top_k = config.top_k
        self._gate = config.gate
        self._routers = routers

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, router = self._gate, self._routers[layer]
        # f32 logits: rounding them to bf16 makes ties, and a tie is broken differently from batch to batch.
        logits = F.linear(x.float(), router.weight.float(), router.bias)
        scores = torch.sigmoid(logits) if gate.score == "sigmoid" else torch.softmax(logits, dim=-1)
        choice = scores if router.correction is None else scores + router.correction
        if gate.groups > 1:
            choice = _within_best_groups(choice, gate)
        ids = torch.topk(choice, self._top_k, dim=-1).indices
        weights = scores.gather(1, ids)
        if gate.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _TINY)
        return weights * gate.scaling, ids.to(torch.int32)


def _within_best_groups(choice_TE: torch.Tensor, gate: GateConfig) -> torch.Tensor:
    """Return the scores with -inf in all but each row's best groups."""
    grouped = choice_TE.view(len(choice_TE), gate.groups, -1)
    ranks = grouped.topk(gate.group_best, dim=-1).values.sum(dim=-1)
    best = torch.topk(ranks, gate.top_groups, dim=-1).indices
    left_out = torch.ones_like(ranks, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(left_out[..., None], -torch.inf).flatten(1)


class CpuGates:
    """On the CPU kernels: a row's experts are the same in whatever company it comes."""

    def __init__(
        self,
        library: Library,
        config: ModelConfig,
        dtype: torch.dtype,
        routers: Mapping[int, RouterWeights],
        arena: Arena,
    ) -> None:
        """``routers``: the gate of each MoE layer, its weight in ``dtype``; packed into ``arena``."""
        self._library = library
        self._dtype = dtype
        gate = config.gate
        self._shape = GateShape(
            dtype=DTYPES[dtype],
            hidden=config.hidden_size,
            experts=config.num_experts,
            k=config.top_k,
            sigmoid=gate.score == "sigmoid",
            normalise=gate.normalise,
            groups=gate.groups,
            top_groups=gate.top_groups,
            group_best=gate.group_best,
            scaling=gate.scaling,
        )
        packed = {layer: library.pack(router.weight, arena) for layer, router in routers.items()}
        biases = [bias for router in routers.values() for bias in (router.bias, router.correction) if bias is not None]
        self._alive = (*packed.values(), *biases)
        #: Addresses of weight, bias and correction; None where there is none.
        self._routers = {
            layer: (packed[layer].data_ptr(), _address(router.bias), _address(router.correction))
            for layer, router in routers.items()
        }

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self._shape
        if x.dtype != self._dtype or x.shape[-1] != shape.hidden:
            raise ValueError(f"activations are {x.dtype} {list(x.shape)}, expected {self._dtype} [T, hidden]")
        x = x.contiguous()
        weights = torch.empty((len(x), shape.k), dtype=torch.float32)
        ids = torch.empty((len(x), shape.k), dtype=torch.int32)
        self._library.route(
            byref(shape), len(x), x.data_ptr(), *self._routers[layer], weights.data_ptr(), ids.data_ptr()
        )
        return weights, ids


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def load_gates(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Gates:
    """Read the gates of ``checkpoint``, and nothing else of it.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    reader = WeightReader(checkpoint, config, dtype, device)
    return make_gates(config, dtype, device, {layer: reader.router(layer) for layer in config.moe_layers})


def make_gates(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, routers: Mapping[int, RouterWeights]
) -> Gates:
    """Return gates of ``routers``, one for each MoE layer, on the kernels where these can run them."""
    library = load_library() if supported(config, dtype, device) else None
    return TorchGates(config, routers) if library is None else CpuGates(library, config, dtype, routers, Arena())


def supported(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: bf16 is multiplied in pairs along rows, so row lengths must be even."""
    even = config.hidden_size % 2 == 0 and config.num_heads * config.head_dim % 2 == 0
    return device.type == "cpu" and dtype in DTYPES and (even or dtype == torch.float32)
