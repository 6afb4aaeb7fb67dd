"""Reading checkpoints: byte ranges, and every way in which one can be broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus.errors import CheckpointError
from janus.model.checkpoint import Checkpoint

Rewrite = Callable[[dict[str, torch.Tensor]], None]


def rewrite(path: Path, change: Rewrite) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")


def test_reads_what_safetensors_reads(random_model: Callable[..., Path]) -> None:
    path = random_model(moe_layers=(0, 2))
    checkpoint = Checkpoint.open(path)
    expected = load_file(path / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name, torch.float32), tensor), name
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in expected.values())


def test_shards_equal_one_file(random_model: Callable[..., Path], tmp_path: Path) -> None:
    single = Checkpoint.open(random_model(seed=4))
    tensors = {name: single.read(name, torch.float32) for name in load_file(single.path / "model.safetensors")}
    (single.path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for shard in range(3):
        file = f"part-{shard}.safetensors"
        save_file({name: tensors[name] for name in names[shard::3]}, single.path / file)
        weight_map |= dict.fromkeys(names[shard::3], file)
    (single.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = Checkpoint.open(single.path)
    assert all(torch.equal(sharded.read(name, torch.float32), tensors[name]) for name in names)
    assert sharded.fingerprint != single.fingerprint
    assert Checkpoint.open(single.path).fingerprint == sharded.fingerprint


def test_fused_experts_are_read_by_slice(random_model: Callable[..., Path]) -> None:
    path = random_model(num_layers=1)
    separate = Checkpoint.open(path)
    want = [separate.read_expert(0, expert, torch.float32) for expert in range(8)]

    def fuse(tensors: dict[str, torch.Tensor]) -> None:
        prefix = "model.layers.0.mlp.experts"
        for expert in range(8):
            for name in ("gate", "up", "down"):
                del tensors[f"{prefix}.{expert}.{name}_proj.weight"]
        tensors[f"{prefix}.gate_up_proj"] = torch.stack([weights.gate_up for weights in want])
        tensors[f"{prefix}.down_proj"] = torch.stack([weights.down for weights in want])

    rewrite(path, fuse)
    fused = Checkpoint.open(path)
    for expert, weights in enumerate(want):
        before = fused.bytes_read
        got = fused.read_expert(0, expert, torch.float32)
        assert torch.equal(got.gate_up, weights.gate_up)
        assert torch.equal(got.down, weights.down)
        assert fused.bytes_read - before == weights.gate_up.nbytes + weights.down.nbytes


def test_tensors_are_read_below_each_other_and_in_blocks(random_model: Callable[..., Path]) -> None:
    path = random_model(dtype=torch.bfloat16)
    checkpoint, stored = Checkpoint.open(path), load_file(path / "model.safetensors")
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    joined = checkpoint.read_joined(names, torch.float32)
    assert torch.equal(joined, torch.cat([stored[name] for name in names]).float())
    assert checkpoint.bytes_read == sum(stored[name].nbytes for name in names)

    blocks = list(checkpoint.read_blocks("lm_head.weight", 96, torch.float32))
    assert [len(block) for block in blocks] == [96, 96, 96, 32]
    assert torch.equal(torch.cat(blocks), stored["lm_head.weight"].float())
    assert checkpoint.bytes_read == sum(stored[name].nbytes for name in (*names, "lm_head.weight"))
    with pytest.raises(CheckpointError, match="tensor nowhere is missing"):
        next(checkpoint.read_blocks("nowhere", 8, torch.float32))


def test_tensors_of_several_types_are_read_below_each_other(random_model: Callable[..., Path]) -> None:
    path = random_model()
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        tensors[names[1]] = tensors[names[1]].half()

    rewrite(path, retype)
    stored = load_file(path / "model.safetensors")
    joined = Checkpoint.open(path).read_joined(names, torch.float32)
    assert torch.equal(joined, torch.cat([stored[name].float() for name in names]))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("served", [torch.bfloat16, torch.float32])
def test_dtypes_are_cast(random_model: Callable[..., Path], stored: torch.dtype, served: torch.dtype) -> None:
    path = random_model(dtype=stored)
    name = "model.layers.0.self_attn.q_proj.weight"
    got = Checkpoint.open(path).read(name, served)
    assert got.dtype == served
    assert torch.equal(got, load_file(path / "model.safetensors")[name].to(served))


def _drop_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def _drop_expert(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.2.mlp.experts.7.up_proj.weight"]


def _wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(8, 64)


def _wrong_dtype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = torch.zeros(320, 64, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_norm, "model.norm.weight is missing"),
        (_drop_expert, "experts.7.up_proj.weight is missing"),
        (_wrong_shape, r"k_proj.weight: has shape \[8, 64\], the config asks for \[32, 64\]"),
        (_wrong_dtype, "lm_head.weight: has dtype I8"),
    ],
)
def test_wrong_tensors_are_named_on_open(random_model: Callable[..., Path], change: Rewrite, message: str) -> None:
    path = random_model()
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path)


def _header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    encoded = json.dumps(edit(header)).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def _negative_offset(header: dict[str, Any]) -> object:
    header["lm_head.weight"]["data_offsets"][0] = -4
    return header


def _wrong_length(header: dict[str, Any]) -> object:
    header["lm_head.weight"]["data_offsets"][1] -= 4
    return header


def _no_offsets(header: dict[str, Any]) -> object:
    del header["lm_head.weight"]["data_offsets"]
    return header


@pytest.mark.parametrize("edit", [_negative_offset, _wrong_length, _no_offsets, list, lambda _: "text"])
def test_malformed_headers_are_refused(random_model: Callable[..., Path], edit: Callable[[Any], object]) -> None:
    path = random_model()
    _header(path / "model.safetensors", edit)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\x01\x02", "too short"),
        (b"\xff" * 64, "not safetensors"),
        (struct.pack("<Q", 10) + b"not json!!" + b"\0" * 50, "no valid safetensors header"),
        (struct.pack("<Q", 1 << 40), "not safetensors"),
    ],
)
def test_garbage_is_refused(random_model: Callable[..., Path], content: bytes, message: str) -> None:
    path = random_model()
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path)


def test_truncated_file_is_named(random_model: Callable[..., Path]) -> None:
    path = random_model()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(path)


def test_file_truncated_after_open_is_an_error_not_a_crash(random_model: Callable[..., Path]) -> None:
    path = random_model()
    checkpoint = Checkpoint.open(path)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CheckpointError, match="ends inside"):
        for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.2.mlp.gate.weight"):
            checkpoint.read(name, torch.float32)


def test_missing_files_are_named(random_model: Callable[..., Path]) -> None:
    path = random_model(shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: no such file"):
        Checkpoint.open(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint.open(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        Checkpoint.open(path)
    with pytest.raises(CheckpointError, match="no such model directory"):
        Checkpoint.open(path / "nowhere")


def test_index_cannot_lead_out_of_the_directory(random_model: Callable[..., Path]) -> None:
    path = random_model(shards=2)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="outside the directory"):
        Checkpoint.open(path)
