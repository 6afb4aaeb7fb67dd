"""Experts that compute nothing, and gates with random weights: so that what is timed is the exchange."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.expert_weights import ExpertWeights
from janus.model.experts import ExpertBank
from janus.model.gate import Gates, make_gates
from janus.model.weights import RouterWeights


class NoCheckpoint:
    """Nothing is read of it."""

    bytes_read = 0

    def expert_nbytes(self, layer: int, expert: int) -> int:
        return 0


class CopyBank(ExpertBank):
    """The partial sum of every row is the row."""

    def __init__(
        self, config: ModelConfig, num_moe_layers: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config
        self.slots = slots
        self.dtype = dtype
        self.device = device
        self.slot_expert = [[-1] * slots for _ in range(num_moe_layers)]

    def fetch(self, checkpoint: Checkpoint, moe_layer: int, expert: int) -> ExpertWeights:
        return ExpertWeights(torch.empty(0), torch.empty(0))

    def fill(self, moe_layer: int, slot: int, weights: ExpertWeights) -> None:
        pass

    def hold(self, moe_layer: int, slot: int, expert: int) -> None:
        self.slot_expert[moe_layer][slot] = expert

    def release(self, moe_layer: int, slot: int) -> None:
        self.slot_expert[moe_layer][slot] = -1

    def discard(self, moe_layer: int, slot: int) -> None:
        pass

    def grow(self, slots: int) -> None:
        for experts in self.slot_expert:
            experts.extend([-1] * (slots - self.slots))
        self.slots = slots

    @property
    def expert_nbytes(self) -> int:
        return 0

    @property
    def takes_addresses(self) -> bool:
        return True

    def forward(
        self,
        moe_layer: int,
        x_NH: torch.Tensor,
        slots_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return x_NH

    def forward_at(self, moe_layer: int, rows: int, k: int, *, x: int, slots: int, weights: int, out: int) -> None:
        ctypes.memmove(out, x, rows * self.config.hidden_size * self.dtype.itemsize)

    def forward_joint(
        self,
        moe_layer: int,
        counts: Sequence[int],
        k: int,
        *,
        x: Sequence[int],
        slots: Sequence[int],
        weights: Sequence[int],
        out: Sequence[int],
    ) -> None:
        for rows, start, to in zip(counts, x, out, strict=True):
            self.forward_at(moe_layer, rows, k, x=start, slots=0, weights=0, out=to)


def random_gates(config: ModelConfig, dtype: torch.dtype) -> Gates:
    """Return gates for every layer of ``config``, the same on every instance."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(config.num_experts, config.hidden_size, generator=generator).to(dtype)
    return make_gates(config, dtype, torch.device("cpu"), dict.fromkeys(config.moe_layers, RouterWeights(weight)))
