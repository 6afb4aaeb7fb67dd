"""Which device and dtype to compute with, and how many CPU threads."""

from __future__ import annotations

import torch

from janus.config.options import Device, DType
from janus.errors import ConfigError

_DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_dtype(name: DType) -> torch.dtype:
    """Return the torch dtype of an option's word."""
    return _DTYPES[name]


def prepare(device: Device, threads: int) -> torch.device:
    """Set the number of CPU threads (0 = leave it to torch) and return the device that ``device`` means here.

    Raises:
        ConfigError: a GPU is asked for and torch sees none.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device", "torch sees no CUDA device", "use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and available) else "cpu")
