"""``Checkpoint``: a Hugging Face model directory, of which each role reads only its own tensors."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus.errors import CheckpointError
from janus.model.config import ModelConfig, read_json
from janus.model.expert_weights import ExpertWeights, read_fused
from janus.model.families import family_named
from janus.model.families.base import Family, TensorSpec, attention_tensors, expert_tensors, tensors_in
from janus.model.fp8 import FP8_DTYPE, dequantise, scale_name, scale_shape
from janus.model.safetensors_file import READABLE_DTYPES, SafetensorsFile, TensorEntry, new_bytes

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

#: Of bytes that stand for something else than numbers from 0 to 255.
_CODES_DTYPE = "U8"


class Checkpoint:
    """An open checkpoint. Names, shapes and dtypes of every tensor that serving needs are checked when it is opened.

    Use ``Checkpoint.open``. ``bytes_read`` counts tensor bytes read from disk so far (headers not included).
    """

    def __init__(self, path: Path, config: ModelConfig, files: dict[str, SafetensorsFile], fingerprint: str) -> None:
        self.path = path
        self.config = config
        self.fingerprint = fingerprint
        self.bytes_read = 0
        self._files = files
        self._where = {name: file for file in files.values() for name in file.tensors}
        self._lock = threading.Lock()
        self._family = family_named(config.family)
        self._check()

    @classmethod
    def open(cls, path: str | Path, config: ModelConfig | None = None) -> Checkpoint:
        """Open the checkpoint in directory ``path``; no tensor is read yet.

        Raises:
            CheckpointError: a file is missing, truncated or no safetensors; a tensor is missing or has the wrong shape
                or dtype.
        """
        directory = Path(path)
        config = config or ModelConfig.load(directory)
        names = _shard_names(directory)
        files = {name: SafetensorsFile(directory / name) for name in names}
        digest = hashlib.sha256((directory / "config.json").read_bytes())
        for name in names:
            digest.update(name.encode() + b"\0" + files[name].header)
        checkpoint = cls(directory, config, files, digest.hexdigest())
        _check_index(directory, checkpoint)
        return checkpoint

    def close(self) -> None:
        """Close the files; may be called twice."""
        for file in self._files.values():
            file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._where

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors in the files."""
        return frozenset(self._where)

    def stored_nbytes(self, name: str) -> int:
        """Bytes that tensor ``name`` takes in its file, with its scales where it has some; 0 if it is not there."""
        names = (name, scale_name(name))
        return sum(self._where[each].tensors[each].nbytes for each in names if each in self._where)

    def where(self, name: str) -> tuple[Path, int, int]:
        """Return the file that holds tensor ``name``, where in it the tensor starts, and its bytes."""
        file = self._where[name]
        return file.path, file.tensors[name].offset, file.tensors[name].nbytes

    def expert_nbytes(self, layer: int, expert: int) -> int:
        """Bytes that ``read_expert`` of (absolute) ``layer`` reads: those in the files, scales and biases included.

        In memory it may take more: FP8 and MXFP4 weights are dequantised.
        """
        fused = self._family.fused_experts(self.config, layer)
        if fused is not None and fused.gate_up.name in self:
            return sum(self.stored_nbytes(spec.name) for spec in tensors_in(fused)) // self.config.num_experts
        specs = tensors_in(self._family.expert(self.config, layer, expert))
        return sum(self.stored_nbytes(spec.name) for spec in specs)

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Read one tensor, cast to ``dtype`` on ``device``. Raises CheckpointError if it is not there."""
        return self._read(name, None).to(device=device, dtype=dtype)

    def read_joined(self, names: Sequence[str], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """As ``read`` of tensors that differ in their first dimension alone, one below the other."""
        return self._joined(names).to(device=device, dtype=dtype)

    def read_blocks(self, name: str, rows: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield a matrix on the CPU in blocks of ``rows`` rows, the last of what is left; one at a time is read."""
        import torch

        entry = self._file_of(name).tensors[name]
        if entry.dtype == FP8_DTYPE:  # whose scales are for blocks of another size
            yield from torch.split(self.read(name, dtype), rows)
            return
        for first in range(0, entry.shape[0], rows):
            block = self._file_of(name).read_rows(name, first, min(first + rows, entry.shape[0]))
            self._count(block.nbytes)
            yield block.to(dtype)

    def read_expert(self, layer: int, expert: int, dtype: torch.dtype) -> ExpertWeights:
        """Read one expert of (absolute) ``layer``, and nothing else, onto the CPU."""
        fused = self._family.fused_experts(self.config, layer)
        if fused is not None and fused.gate_up.name in self:
            return read_fused(fused, lambda spec: self._read(spec.name, expert), dtype)
        spec = self._family.expert(self.config, layer, expert)
        gate_up = self._joined((spec.gate.name, spec.up.name))
        return ExpertWeights(gate_up.to(dtype), self._read(spec.down.name, None).to(dtype))

    def _joined(self, names: Sequence[str]) -> torch.Tensor:
        import torch

        files = [self._file_of(name) for name in names]
        entries = [file.tensors[name] for file, name in zip(files, names, strict=True)]
        if len({entry.dtype for entry in entries}) > 1 or entries[0].dtype == FP8_DTYPE:
            return torch.cat([self._read(name, None) for name in names])
        # Into their places at once: putting them together afterwards would be another pass over the weights.
        sizes = [entry.nbytes for entry in entries]
        memory = new_bytes(sum(sizes))
        for file, name, part in zip(files, names, torch.split(memory, sizes), strict=True):
            file.read_into(name, part)
        self._count(memory.nbytes)
        return memory.view(files[0].torch_dtype(names[0])).view(-1, *entries[0].shape[1:])

    def _file_of(self, name: str) -> SafetensorsFile:
        file = self._where.get(name)
        if file is None:
            raise CheckpointError(str(self.path), f"tensor {name} is missing")
        return file

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.bytes_read += nbytes

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        file = self._file_of(name)
        tensor = file.read(name, index)
        self._count(tensor.nbytes)
        if file.tensors[name].dtype != FP8_DTYPE:
            return tensor
        assert self.config.fp8_block is not None  # checked when opened
        return dequantise(tensor, self._read(scale_name(name), index), self.config.fp8_block)

    def _check(self) -> None:
        for spec in _expected(self._family, self.config, self):
            entry = self._check_tensor(spec)
            if entry.dtype != FP8_DTYPE:
                continue
            block = self.config.fp8_block
            if block is None or len(spec.shape) < 2:
                raise CheckpointError(
                    f"{self._where[spec.name].path}: {spec.name}",
                    "is in FP8, and config.json does not say how it is scaled",
                    "FP8 is supported for matrices, with quantization_config.weight_block_size",
                )
            self._check_tensor(TensorSpec(scale_name(spec.name), scale_shape(spec.shape, block)))

    def _check_tensor(self, spec: TensorSpec) -> TensorEntry:
        file = self._file_of(spec.name)
        entry = file.tensors[spec.name]
        if entry.shape != spec.shape:
            raise CheckpointError(
                f"{file.path}: {spec.name}",
                f"has shape {list(entry.shape)}, the config asks for {list(spec.shape)}",
            )
        readable = [_CODES_DTYPE] if spec.codes else [name for name in READABLE_DTYPES if name != _CODES_DTYPE]
        if entry.dtype not in readable:
            raise CheckpointError(
                f"{file.path}: {spec.name}",
                f"has dtype {entry.dtype}, which is not supported",
                f"supported: {', '.join(readable)}",
            )
        return entry


def _expected(family: Family, config: ModelConfig, present: Checkpoint) -> Iterator[TensorSpec]:
    yield from tensors_in(family.model(config))
    for layer in range(config.num_layers):
        yield from attention_tensors(family, config, layer)
        yield from expert_tensors(family, config, layer, present)


def _shard_names(directory: Path) -> list[str]:
    """Names of the safetensors files, sorted: the index's where there is one, else the single file's."""
    if not (directory / INDEX_NAME).exists():
        if not (directory / SINGLE_NAME).exists():
            raise CheckpointError(
                str(directory), f"has neither {SINGLE_NAME} nor {INDEX_NAME}", "only safetensors weights are read"
            )
        return [SINGLE_NAME]
    weight_map = read_json(directory / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(directory / INDEX_NAME), "has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:  # an index must not lead out of the model directory
            raise CheckpointError(str(directory / INDEX_NAME), f"names a file outside the directory: {name!r}")
    return names


def _check_index(directory: Path, checkpoint: Checkpoint) -> None:
    """Refuse an index that promises a tensor which no shard holds: a sign of mixed downloads."""
    if not (directory / INDEX_NAME).exists():
        return
    for name in read_json(directory / INDEX_NAME)["weight_map"]:
        if name not in checkpoint:
            raise CheckpointError(str(directory / INDEX_NAME), f"lists {name}, which is in no shard")
