"""Random tensors of a model, in every form that checkpoints store them in, and the files that hold them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from janus.model import mxfp4
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.families.base import TensorSpec, attention_tensors, expert_tensors, tensors_in
from janus.model.fp8 import FP8_DTYPE, quantise, scale_name, scale_shape

_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: FP8_DTYPE,
    torch.uint8: "U8",
}
#: Of the values of evenly drawn MXFP4 codes.
_CODES_STD = 2.9


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """What is written for one tensor of the model."""

    spec: TensorSpec
    dtype: torch.dtype
    #: Of a matrix in FP8.
    fp8_block: tuple[int, int] | None

    def entries(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of what the file holds."""
        name, shape = self.spec.name, self.spec.shape
        if self.fp8_block is None:
            return [(name, shape, self.dtype)]
        scales = (scale_name(name), scale_shape(shape, self.fp8_block), torch.float32)
        return [(name, shape, torch.float8_e4m3fn), scales]

    def values(self, std: float, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Random values of ``entries``: N(0, std), around 1 for norms; for codes, what stands for about as much."""
        if self.spec.codes:
            return (self._codes(std, generator),)
        values = torch.randn(self.spec.shape, generator=generator) * std
        if self.spec.name.endswith("norm.weight"):
            values += 1.0
        return (values.to(self.dtype),) if self.fp8_block is None else quantise(values, self.fp8_block)

    def _codes(self, std: float, generator: torch.Generator) -> torch.Tensor:
        low, high = 0, 256
        if self.spec.name.endswith("_scales"):
            middle = mxfp4.SCALE_BIAS + round(math.log2(std / _CODES_STD))
            low, high = middle - 1, middle + 2
        return torch.randint(low, high, self.spec.shape, generator=generator, dtype=torch.uint8)


def random_tensors(config: ModelConfig) -> Iterator[RandomTensor]:
    """Yield all tensors of a model of ``config``, without values yet, in ``config.torch_dtype``."""
    family, dtype = family_named(config.family), getattr(torch, config.torch_dtype)
    routers = {family.router(config, layer).weight for layer in config.moe_layers}
    for layer in (None, *range(config.num_layers)):
        if layer is None:
            specs = list(tensors_in(family.model(config)))
        else:
            specs = [*attention_tensors(family, config, layer), *expert_tensors(family, config, layer)]
        for spec in specs:
            whole = layer is None or len(spec.shape) < 2 or spec in routers
            stored = torch.uint8 if spec.codes else torch.float32 if spec.full_precision else dtype
            yield RandomTensor(spec, stored, None if whole else config.fp8_block)


def write_tensors(path: Path, tensors: Sequence[RandomTensor], std: float, generator: torch.Generator) -> None:
    """Write ``tensors`` into one safetensors file; one at a time is in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype in (entry for tensor in tensors for entry in tensor.entries()):
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            for values in tensor.values(std, generator):
                file.write(values.view(torch.uint8).numpy().data)
