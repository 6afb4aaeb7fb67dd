"""What a device must hold: weights, KV cache, redundant experts, buffers; and what follows for C and for the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from janus.core.planning.hardware import Device
from janus.core.planning.sizes import ModelSizes

#: Share of a device's memory that is planned with; what the driver, the allocator and fragments take is not.
USABLE_MEMORY = 0.9
#: Activations that a layer has at the same time, in rows of H elements: residual, normed, projections, answers.
_ROWS_ALIVE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Bytes on one device of a role, all that an instance's devices share divided among them."""

    weights: float
    #: KV cache, of the streams and contexts that were asked about.
    kv: float
    #: Of the weights, replicas beyond one of each expert; they are counted in ``weights`` too.
    redundant: float
    buffers: float
    #: What may be used, and what there is.
    usable: float
    memory: float

    @property
    def total(self) -> float:
        """Bytes in use."""
        return self.weights + self.kv + self.buffers

    @property
    def fits(self) -> bool:
        """Whether they fit into what may be used."""
        return self.total <= self.usable


def attention_memory(
    model: ModelSizes, device: Device, *, streams: float, context: float, tensor_parallel: int = 1, rows: float = 0.0
) -> MemoryBudget:
    """Return what each device of an attention instance holds.

    Args:
        streams: that decode on the instance at the same time.
        context: tokens of each, as a mean.
        tensor_parallel: devices of the instance.
        rows: tokens that its largest step computes; ``streams`` unless more.
    """
    activations, logits = _row_bytes(model)
    buffers = max(rows, streams) * activations + streams * logits
    return MemoryBudget(
        weights=model.attention_side_bytes / tensor_parallel,
        kv=streams * kv_bytes_per_stream(model, context, tensor_parallel),
        redundant=0.0,
        buffers=buffers,
        usable=USABLE_MEMORY * device.memory_bytes,
        memory=device.memory_bytes,
    )


def expert_memory(model: ModelSizes, device: Device, *, slots: int, instances: int, rows: float = 0.0) -> MemoryBudget:
    """Return what each expert instance holds: ``slots`` replicas per MoE layer, of which E / n would do.

    ``rows``: tokens of the largest step of all attention instances together.
    """
    held = model.moe_layers * slots * model.expert_bytes
    needed = model.expert_side_bytes / instances
    return MemoryBudget(
        weights=held,
        kv=0.0,
        redundant=max(0.0, held - needed),
        buffers=_expert_buffers(model, rows),
        usable=USABLE_MEMORY * device.memory_bytes,
        memory=device.memory_bytes,
    )


def kv_bytes_per_stream(model: ModelSizes, context: float, tensor_parallel: int = 1) -> float:
    """Return the bytes of KV cache that one stream of ``context`` tokens has on each device of its instance."""
    return context * model.kv_bytes_per_token / model.kv_divided(tensor_parallel)


def most_streams(
    model: ModelSizes, device: Device, *, context: float, tensor_parallel: int = 1, rows: float = 0.0
) -> int:
    """Return how many streams of ``context`` tokens fit on one attention instance; 0 = not one, or not its weights."""
    activations, logits = _row_bytes(model)
    each = kv_bytes_per_stream(model, context, tensor_parallel) + logits
    room = USABLE_MEMORY * device.memory_bytes - model.attention_side_bytes / tensor_parallel
    # Streams beyond the rows of the largest step have activations of their own.
    beside, beyond = (room - rows * activations) / each, room / (each + activations)
    return max(0, math.floor((beside if beside <= rows else beyond) * (1 + 1e-12)))


def most_slots(model: ModelSizes, device: Device, *, rows: float = 0.0) -> int:
    """Return C, the largest number of replicas per MoE layer that fits on one expert instance; at most E."""
    room = USABLE_MEMORY * device.memory_bytes - _expert_buffers(model, rows)
    return max(0, min(model.experts, math.floor(room / (model.moe_layers * model.expert_bytes) + 1e-9)))


def least_experts(model: ModelSizes, slots: int) -> int:
    """Return the fewest expert instances of ``slots`` slots that hold every expert: ceil(E / C).

    Raises:
        ZeroDivisionError: there are no slots.
    """
    return -(-model.experts // slots)


def _row_bytes(model: ModelSizes) -> tuple[float, float]:
    """Bytes of buffers per row: a layer's activations, and, of a stream, what the output matrix gives, in float32."""
    vocabulary = model.head_params / model.hidden
    return _ROWS_ALIVE * model.row_bytes, vocabulary * 4.0


def _expert_buffers(model: ModelSizes, rows: float) -> float:
    """Rows that came in, what is computed of each for each of its experts, and the sums that go back, in float32."""
    return rows * model.hidden * (model.activation_width * (1 + model.top_k) + 4.0)
