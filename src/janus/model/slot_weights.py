"""The expert weights of one MoE layer, and the math on them: CPU kernels, or plain torch on any device."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from ctypes import byref

import torch
import torch.nn.functional as F

from janus.model.config import ClampedSwiglu, ModelConfig
from janus.model.expert_weights import ExpertWeights
from janus.model.kernels.library import DTYPES, ExpertShape, Library
from janus.model.memory import discard, huge_bytes


def activate(gate: torch.Tensor, up: torch.Tensor, swiglu: ClampedSwiglu | None) -> torch.Tensor:
    """Return what is between an expert's two products; see ``ModelConfig.swiglu``."""
    if swiglu is None:
        return F.silu(gate) * up
    gate, up = gate.clamp(max=swiglu.limit), up.clamp(-swiglu.limit, swiglu.limit)
    return (up + 1) * gate * torch.sigmoid(swiglu.alpha * gate)


def _biases(config: ModelConfig) -> str:
    return " biases" if config.expert_bias else ""


class TorchSlots:
    """Portable: a loop over the activated experts. Also the oracle of the kernels. An empty slot takes no memory."""

    def __init__(self, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        hidden, width = config.hidden_size, config.moe_intermediate_size
        #: Of gate_up, down and, where there are some, their biases: as they lie behind each other.
        self._shapes = [
            (2 * width, hidden),
            (hidden, width),
            *([(2 * width,), (hidden,)] if config.expert_bias else []),
        ]
        self._swiglu = config.swiglu
        self._dtype, self._device = dtype, device
        self.nbytes = config.expert_parameters * dtype.itemsize
        self.layout = f"rows {dtype} {hidden}x{width}{_biases(config)}"
        #: Per slot uint8[nbytes]; ``None`` where nothing was filled in.
        self._memory: list[torch.Tensor | None] = [None] * slots
        #: The same as matrices, of the slots that are held.
        self._held: list[ExpertWeights | None] = [None] * slots

    def grow(self, slots: int) -> None:
        """Have ``slots`` slots, which are more than so far."""
        more: list[None] = [None] * (slots - len(self._held))
        self._memory += more
        self._held += more

    def room(self, slot: int) -> torch.Tensor:
        """Return the memory of ``slot``, uint8[nbytes], to fill it."""
        memory = self._memory[slot]
        if memory is None:
            memory = self._memory[slot] = torch.empty(self.nbytes, dtype=torch.uint8, device=self._device)
        return memory

    def fill(self, slot: int, weights: ExpertWeights) -> None:
        """Write ``weights`` into ``slot``; it is not used before ``hold``."""
        # The memory may have been made in inference mode, which is each thread's own.
        with torch.inference_mode():
            for to, tensor in zip(self._parts(self.room(slot)).tensors(), weights.tensors(), strict=True):
                to.copy_(tensor)

    def hold(self, slot: int) -> None:
        """Use what was filled into ``slot`` from now on."""
        self._held[slot] = self._parts(self.room(slot))

    def weights(self, slot: int) -> torch.Tensor:
        """Return the bytes of a slot that is held."""
        return self.room(slot)

    def release(self, slot: int) -> None:
        """Empty ``slot``."""
        self._held[slot] = None

    def discard(self, slot: int) -> None:
        """Give the memory of an empty ``slot`` back, on a GPU to torch's pool."""
        self._memory[slot] = None

    def _parts(self, memory: torch.Tensor) -> ExpertWeights:
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = torch.split(memory.view(self._dtype), sizes)
        return ExpertWeights(*(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def forward(
        self, x_NH: torch.Tensor, slots_NK: torch.Tensor, weights_NK: torch.Tensor, out: torch.Tensor
    ) -> int | None:
        """Write the weighted sums to ``out``. Returns a slot that is not held, if one is asked for."""
        activated = [slot for slot in torch.unique(slots_NK).tolist() if slot >= 0]
        missing = [slot for slot in activated if slot >= len(self._held) or self._held[slot] is None]
        if missing:
            return int(missing[0])
        total = torch.zeros(x_NH.shape, dtype=torch.float32, device=x_NH.device)
        for slot in activated:
            held = self._held[slot]
            assert held is not None  # none is missing
            rows, column = torch.where(slots_NK == slot)
            gate, up = F.linear(x_NH[rows], held.gate_up, held.gate_up_bias).chunk(2, dim=-1)
            y = F.linear(activate(gate, up, self._swiglu), held.down, held.down_bias).float()
            total.index_add_(0, rows, y * weights_NK[rows, column, None])
        out.copy_(total)
        return None


class CpuSlots:
    """On the CPU kernels, in their packed layout; an empty slot takes no memory."""

    def __init__(self, library: Library, config: ModelConfig, slots: int, dtype: torch.dtype) -> None:
        self._library = library
        hidden, width, swiglu = config.hidden_size, config.moe_intermediate_size, config.swiglu
        self._shape = ExpertShape(
            dtype=DTYPES[dtype],
            hidden=hidden,
            width=width,
            bias=config.expert_bias,
            clamped=swiglu is not None,
            alpha=0.0 if swiglu is None else swiglu.alpha,
            limit=0.0 if swiglu is None else swiglu.limit,
        )
        self._slots = 0
        self.nbytes: int = library.expert_bytes(byref(self._shape))
        self.layout = f"{library.name} {dtype} {hidden}x{width}{_biases(config)}"
        self._stride = -(-self.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        #: First slot and memory. One mapping for all slots that come at once, so that huge pages span experts; pages of
        #: a slot that was never filled are never touched.
        self._chunks: list[tuple[int, torch.Tensor]] = []
        self._addresses = (ctypes.c_void_p * 0)()
        self.grow(slots)

    def grow(self, slots: int) -> None:
        """Have ``slots`` slots, which are more than so far; those that there are stay where they are."""
        self._chunks.append((self._slots, huge_bytes((slots - self._slots) * self._stride)))
        self._addresses = (ctypes.c_void_p * slots)(*self._addresses)
        self._slots = slots

    @staticmethod
    def supports(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the kernels can run these experts: bf16 rows are read in pairs, so they must be of even length."""
        return device.type == "cpu" and dtype in DTYPES and (config.hidden_size % 2 == 0 or dtype == torch.float32)

    def room(self, slot: int) -> torch.Tensor:
        """Return the memory of ``slot``, uint8[nbytes] in the kernels' layout, to fill it."""
        first, memory = next(chunk for chunk in reversed(self._chunks) if chunk[0] <= slot)
        start = (slot - first) * self._stride
        return memory[start : start + self.nbytes]

    def fill(self, slot: int, weights: ExpertWeights) -> None:
        """Write ``weights``, which are contiguous, into ``slot``; it is not used before ``hold``."""
        parts = [tensor.data_ptr() for tensor in weights.tensors()]
        address = self.room(slot).data_ptr()
        self._library.pack_expert(byref(self._shape), *parts, *[None] * (4 - len(parts)), address)

    def hold(self, slot: int) -> None:
        """Use what was filled into ``slot`` from now on."""
        self._addresses[slot] = self.room(slot).data_ptr()

    def weights(self, slot: int) -> torch.Tensor:
        """Return the bytes of a slot that is held."""
        return self.room(slot)

    def release(self, slot: int) -> None:
        """Empty ``slot``."""
        self._addresses[slot] = None

    def discard(self, slot: int) -> None:
        """Give the memory of an empty ``slot`` back to the system."""
        discard(self.room(slot).as_strided((self._stride,), (1,)))

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
            byref(self._shape), self._addresses, self._slots, rows, k, x, slots, weights, out
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
            byref(self._shape),
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
