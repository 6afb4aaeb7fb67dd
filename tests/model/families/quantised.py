"""What a quantised checkpoint stands for, written as ``transformers`` stores it without: the reference of tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, as they are stored."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def dequantised(path: Path, directory: Path) -> Path:
    """The model in ``path``, of FP8 or MXFP4 weights, in f32; by what transformers does, or element by element."""
    raw = json.loads((path / "config.json").read_text())
    quantised, stored = raw.pop("quantization_config"), tensors_of(path)
    if quantised["quant_method"] == "mxfp4":
        plain = _from_mxfp4(stored)
    else:
        plain = _from_fp8(stored, quantised["weight_block_size"])
    assert len(plain) < len(stored)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(plain, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _from_fp8(stored: dict[str, torch.Tensor], block: list[int]) -> dict[str, torch.Tensor]:
    """Each element multiplied by its own scale."""
    plain = {}
    for name, tensor in stored.items():
        scales = stored.get(f"{name}_scale_inv")
        if scales is not None:
            rows, columns = (torch.arange(size) // each for size, each in zip(tensor.shape, block, strict=True))
            plain[name] = tensor.float() * scales[rows[:, None], columns[None]]
        elif not name.endswith("_scale_inv"):
            plain[name] = tensor
    return plain


def _from_mxfp4(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the conversion that transformers loads such checkpoints with."""
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith(("_blocks", "_scales"))}
    for name, blocks in stored.items():
        if name.endswith("_blocks"):
            scales = stored[name.replace("_blocks", "_scales")]
            converted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            plain[name.removesuffix("_blocks")] = converted.contiguous()
    return plain
