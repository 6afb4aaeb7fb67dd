"""The gates of a model: which experts a row goes to, and with what weight. On the attention side or the experts'."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.kernels import load_library
from janus.model.kernels.library import DTYPES, Library
from janus.model.memory import Arena
from janus.model.weights import WeightReader


class Gates(Protocol):
    """The gates of all MoE layers."""

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate of layer ``layer`` (absolute index) for x [T, H]: softmax over all experts, then the top K.

        Returns:
            weights f32 [T, K] (descending; summing to 1 with ``norm_topk_prob``) and expert ids int32 [T, K].
        """


class TorchGates:
    """In plain torch, on any device."""

    def __init__(self, config: ModelConfig, routers: dict[int, torch.Tensor]) -> None:
        self._config = config
        self._routers = routers

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # f32 logits: rounding them to bf16 makes ties, and a tie is broken differently from batch to batch.
        logits = F.linear(x.float(), self._routers[layer].float())
        weights, ids = torch.topk(torch.softmax(logits, dim=-1), self._config.top_k, dim=-1)
        if self._config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, ids.to(torch.int32)


class CpuGates:
    """On the CPU kernels: a row's experts are the same in whatever company it comes."""

    def __init__(
        self, library: Library, config: ModelConfig, dtype: torch.dtype, routers: dict[int, torch.Tensor], arena: Arena
    ) -> None:
        """``routers``: the gate of each MoE layer, [E, H] in ``dtype``; packed into ``arena``."""
        self._library = library
        self._config = config
        self._dtype = dtype
        self._code = DTYPES[dtype]
        self._routers = {layer: library.pack(weight, arena) for layer, weight in routers.items()}

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._config
        if x.dtype != self._dtype or x.shape[-1] != config.hidden_size:
            raise ValueError(f"activations are {x.dtype} {list(x.shape)}, expected {self._dtype} [T, hidden]")
        x = x.contiguous()
        weights = torch.empty((len(x), config.top_k), dtype=torch.float32)
        ids = torch.empty((len(x), config.top_k), dtype=torch.int32)
        self._library.route(
            self._code,
            len(x),
            config.hidden_size,
            config.num_experts,
            config.top_k,
            config.norm_topk_prob,
            x.data_ptr(),
            self._routers[layer].data_ptr(),
            weights.data_ptr(),
            ids.data_ptr(),
        )
        return weights, ids


def load_gates(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Gates:
    """Read the gates of ``checkpoint``, and nothing else of it.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    reader = WeightReader(checkpoint, config, dtype, device)
    return make_gates(config, dtype, device, {layer: reader.router(layer) for layer in config.moe_layers})


def make_gates(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, routers: dict[int, torch.Tensor]
) -> Gates:
    """Return gates of ``routers``, [E, H] for each MoE layer, on the kernels where these can run them."""
    library = load_library() if supported(config, dtype, device) else None
    return TorchGates(config, routers) if library is None else CpuGates(library, config, dtype, routers, Arena())


def supported(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: bf16 is multiplied in pairs along rows, so row lengths must be even."""
    even = config.hidden_size % 2 == 0 and config.num_heads * config.head_dim % 2 == 0
    return device.type == "cpu" and dtype in DTYPES and (even or dtype == torch.float32)
