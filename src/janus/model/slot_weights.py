"""The expert weights of one MoE layer, and the math on them: CPU kernels, or plain torch on any device."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from janus.model.config import ModelConfig
from janus.model.kernels.library import DTYPES, Library
from janus.model.memory import huge_bytes


class TorchSlots:
    """Portable: a loop over the activated experts. Also the oracle of the kernels."""

    def __init__(self, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self._gate_up = torch.zeros(slots, 2 * width, hidden, dtype=dtype, device=device)
        self._down = torch.zeros(slots, hidden, width, dtype=dtype, device=device)
        self._held = [False] * slots

    def store(self, slot: int, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        """Fill ``slot`` with gate_up [2 * I, H] and down [H, I]."""
        self._gate_up[slot].copy_(gate_up)
        self._down[slot].copy_(down)
        self._held[slot] = True

    def clear(self, slot: int) -> None:
        """Empty ``slot``."""
        self._held[slot] = False

    def forward(
        self, x_NH: torch.Tensor, slots_NK: torch.Tensor, weights_NK: torch.Tensor, out: torch.Tensor
    ) -> int | None:
        """Write the weighted sums to ``out``. Returns a slot that is not held, if one is asked for."""
        activated = [slot for slot in torch.unique(slots_NK).tolist() if slot >= 0]
        missing = [slot for slot in activated if slot >= len(self._held) or not self._held[slot]]
        if missing:
            return int(missing[0])
        total = torch.zeros(x_NH.shape, dtype=torch.float32, device=x_NH.device)
        for slot in activated:
            rows, column = torch.where(slots_NK == slot)
            gate, up = F.linear(x_NH[rows], self._gate_up[slot]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self._down[slot]).float()
            total.index_add_(0, rows, y * weights_NK[rows, column, None])
        out.copy_(total)
        return None


class CpuSlots:
    """On the CPU kernels, in their packed layout; an empty slot takes no memory."""

    def __init__(self, library: Library, config: ModelConfig, slots: int, dtype: torch.dtype) -> None:
        self._library = library
        self._hidden, self._width = config.hidden_size, config.moe_intermediate_size
        self._dtype = DTYPES[dtype]
        self._slots = slots
        self._bytes = library.expert_bytes(self._dtype, self._hidden, self._width)
        # One mapping for all slots, so that huge pages span experts; pages of a slot never filled are never touched.
        self._stride = -(-self._bytes // 4096) * 4096
        self._memory = huge_bytes(slots * self._stride)
        self._addresses = (ctypes.c_void_p * slots)()

    @staticmethod
    def supports(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the kernels can run these experts: bf16 rows are read in pairs, so they must be of even length."""
        return device.type == "cpu" and dtype in DTYPES and (config.hidden_size % 2 == 0 or dtype == torch.float32)

    def store(self, slot: int, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        """Fill ``slot`` with gate_up [2 * I, H] and down [H, I], both contiguous."""
        address = self._memory.data_ptr() + slot * self._stride
        self._library.pack_expert(self._dtype, self._hidden, self._width, gate_up.data_ptr(), down.data_ptr(), address)
        self._addresses[slot] = address

    def clear(self, slot: int) -> None:
        """Empty ``slot``."""
        self._addresses[slot] = None

    def forward(
        self, x_NH: torch.Tensor, slots_NK: torch.Tensor, weights_NK: torch.Tensor, out: torch.Tensor
    ) -> int | None:
        """Write the weighted sums to ``out``. Returns a slot that is not held, if one is asked for."""
        rows, k = slots_NK.shape
        return self.forward_at(
            rows, k, x=x_NH.data_ptr(), slots=slots_NK.data_ptr(), weights=weights_NK.data_ptr(), out=out.data_ptr()
        )

    def forward_at(self, rows: int, k: int, *, x: int, slots: int, weights: int, out: int) -> int | None:
        """As ``forward``, with the addresses of contiguous x [rows, H], slots, weights [rows, k] and out [rows, H]."""
        result = self._library.experts(
            self._dtype, self._hidden, self._width, self._addresses, self._slots, rows, k, x, slots, weights, out
        )
        return result - 1 if result else None

    def forward_joint(
        self,
        counts: Sequence[int],
        k: int,
        *,
        x: Sequence[int],
        slots: Sequence[int],
        weights: Sequence[int],
        out: Sequence[int],
    ) -> int | None:
        """As ``forward_at`` for several pieces of memory at once: ``counts[p]`` rows at ``x[p]``, and so on."""
        parts = len(counts)
        addresses = ctypes.c_void_p * parts
        result = self._library.experts_joint(
            self._dtype,
            self._hidden,
            self._width,
            self._addresses,
            self._slots,
            parts,
            k,
            (ctypes.c_int64 * parts)(*counts),
            addresses(*x),
            addresses(*slots),
            addresses(*weights),
            addresses(*out),
        )
        return result - 1 if result else None
