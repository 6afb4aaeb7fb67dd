"""AEBS on a CUDA device: ``kernels/aebs.cu``, compiled by CuPy at first use, launched on torch's current stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_EXPERTS, MAX_INSTANCES, MAX_IDS = 512, 64, 65536
_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTables:
    """A placement's tables of one layer, contiguous on one device. E experts, G instances."""

    #: int32[E]: every expert once, by (number of replicas, id) ascending.
    order: torch.Tensor
    #: int64[E]: bit g set = instance g has a replica; the sign bit is instance 63.
    hosts: torch.Tensor
    #: int32[E, G]: physical id of the replica of an expert on an instance; -1 where there is none.
    phys_of: torch.Tensor

    def __post_init__(self) -> None:
        experts, instances = self.phys_of.shape
        if not (1 <= experts <= MAX_EXPERTS and 1 <= instances <= MAX_INSTANCES):
            raise ValueError(
                f"phys_of is {experts} x {instances}; 1..{MAX_EXPERTS} experts, 1..{MAX_INSTANCES} instances"
            )
        device = self.phys_of.device
        _check("phys_of", self.phys_of, torch.int32, experts * instances, device)
        _check("order", self.order, torch.int32, experts, device)
        _check("hosts", self.hosts, torch.int64, experts, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAssignment:
    """What a launch computes, on the device; nothing has been waited for."""

    #: int32, the shape of the ids: physical ids, -1 for padding.
    phys: torch.Tensor
    #: int32[G]: distinct experts that the dispatch activates on each instance.
    load: torch.Tensor
    #: uint8[E]: 1 = activated.
    active: torch.Tensor
    #: int32[4]: activated experts, a_max, repairs, proven.
    stats: torch.Tensor


def schedule(
    topk_ids: torch.Tensor, tables: GpuTables, load0: torch.Tensor | None = None, *, in_place: bool = False
) -> GpuAssignment:
    """Choose a replica for each activated expert: one launch, no copy, no wait; may be captured in a CUDA graph.

    ``topk_ids`` int32[any shape] are logical ids, anything outside 0..E-1 is padding; ``in_place`` overwrites them.
    ``load0`` int32[G], 0 to 2**18 each, is what every instance has queued already. The first call on a device compiles.

    Raises:
        ValueError: a tensor is of the wrong dtype, size or device; named.
    """
    experts, instances = tables.phys_of.shape
    device = tables.phys_of.device
    if topk_ids.numel() > MAX_IDS:
        raise ValueError(f"topk_ids has {topk_ids.numel()} ids; one launch takes at most {MAX_IDS}")
    _check("topk_ids", topk_ids, torch.int32, topk_ids.numel(), device)
    if load0 is not None:
        _check("load0", load0, torch.int32, instances, device)
    phys = topk_ids if in_place else torch.empty_like(topk_ids)
    counts = torch.empty(instances + 4, dtype=torch.int32, device=device)
    load, stats = counts[:instances], counts[instances:]
    active = torch.empty(experts, dtype=torch.uint8, device=device)
    arguments = (
        _address(topk_ids),
        np.int32(topk_ids.numel()),
        _address(tables.order),
        _address(tables.hosts),
        _address(tables.phys_of),
        _address(load0),
        np.int32(experts),
        np.int32(instances),
        *map(_address, (phys, load, active, stats)),
    )
    cupy, kernel = _kernel()
    # All of these tensors belong to this stream, so that the allocator may reuse their memory after the launch.
    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
        kernel((1,), (_THREADS,), arguments)
    return GpuAssignment(phys=phys, load=load, active=active, stats=stats)


def _address(tensor: torch.Tensor | None) -> np.uint64:
    """A pointer as CuPy passes one on unseen: it checks nothing, and a bare None is not a null pointer to it."""
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, count: int, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, wanted {count} of {dtype} in contiguous memory"
        )
    if tensor.device != device or device.type != "cuda":
        raise ValueError(f"{name} is on {tensor.device}; all tensors must be on one CUDA device")


@cache
def _kernel() -> tuple[Any, Any]:
    import cupy

    return cupy, cupy.RawModule(code=source(), options=("--std=c++17",)).get_function("aebs")


def source() -> str:
    """Return the text of ``kernels/aebs.cu``: of the checkout, or its copy inside an installed wheel.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[2]  # .../janus
    for directory in (package / "_kernels", package.parents[1] / "kernels"):
        if (directory / "aebs.cu").exists():
            return (directory / "aebs.cu").read_text()
    raise FileNotFoundError(f"kernels/aebs.cu belongs beside {package}; install janus again")
