"""Which device and dtype to compute with, and how many CPU threads."""

from __future__ import annotations

import torch

from janus.config.options import Device, DType
from janus.errors import ConfigError
from janus.model.kernels import configure_threads, default_threads
from janus.runtime.allocator import keep_memory

_DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_dtype(name: DType) -> torch.dtype:
    """Return the torch dtype of an option's word."""
    return _DTYPES[name]


def chosen_device(device: Device) -> torch.device:
    """Return the device that ``device`` means.

    Raises:
        ConfigError: a GPU is asked for and torch sees none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device", "torch sees no CUDA device", "use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and available) else "cpu")


def prepare(device: Device, threads: int) -> torch.device:
    """Ready this process for computing: memory, CPU threads (0 = all cores, or ``OMP_NUM_THREADS``), the device.

    Returns the device that ``device`` means.

    Raises:
        ConfigError: a GPU is asked for and torch sees none.
    """
    keep_memory()
    chosen = chosen_device(device)
    if chosen.type == "cpu":
        configure_threads(threads or default_threads())
    elif threads:
        torch.set_num_threads(threads)
    return chosen
