"""What is read of a checkpoint of any family: a role reads its own bytes alone, and a tensor that is not as it should
be is named when the checkpoint is opened."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.errors import CheckpointError
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.gate import load_gates
from janus.model.inventory import EXPERTS, parts_of
from janus.model.random_model import write_random_model
from tests.model.families.harness import config_in, write
from tests.model.families.variants import VARIANTS, config_of


@pytest.fixture(scope="module", params=VARIANTS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint; gpt-oss's is in MXFP4."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param != "gpt_oss":
        return write_random_model(directory / "model", config_in(write(config_of(request.param), directory / "shape")))
    settings = config_of("gpt_oss", hidden_size=64, intermediate_size=32)
    return write_random_model(directory / "model", replace(config_in(write(settings, directory / "shape")), mxfp4=True))


def stored(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes in the files, by role."""
    return {
        part.role: sum(checkpoint.stored_nbytes(spec.name) for spec in part.tensors)
        for part in parts_of(checkpoint.config, checkpoint.names)
    }


def test_a_role_reads_its_own_bytes_alone(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    assert checkpoint.bytes_read == 0
    config, by_role = checkpoint.config, stored(checkpoint)
    assert sum(by_role.values()) == sum(map(checkpoint.stored_nbytes, checkpoint.names))
    AttentionModel.load(checkpoint, config, torch.float32)
    assert checkpoint.bytes_read == sum(count for role, count in by_role.items() if role != EXPERTS)
    layer, expert = config.moe_layers[-1], config.num_experts - 1
    before = checkpoint.bytes_read
    checkpoint.read_expert(layer, expert, torch.float32)
    assert checkpoint.bytes_read - before == by_role[EXPERTS] // (config.num_experts * config.num_moe_layers)
    assert checkpoint.bytes_read - before == checkpoint.expert_nbytes(layer, expert)
    before = checkpoint.bytes_read
    load_gates(checkpoint, config, torch.float32, torch.device("cpu"))
    assert checkpoint.bytes_read - before == by_role["routers"]


Header = dict[str, Any]


def drop(header: Header, name: str) -> None:
    del header[name]


def turn(header: Header, name: str) -> None:
    header[name]["shape"] = [*header[name]["shape"], 1]


def retype(header: Header, name: str) -> None:
    header[name]["dtype"] = "I8" if header[name]["dtype"] == "U8" else "I16"


@pytest.mark.parametrize(
    ("change", "message"), [(drop, "{} is missing"), (turn, "{}: has shape"), (retype, "{}: has dtype I")]
)
def test_each_tensor_that_is_not_as_it_should_be_is_named(
    path: Path, tmp_path: Path, change: Callable[[Header, str], None], message: str
) -> None:
    """One of each kind: the same tensor of another layer, or expert, would be noticed in the same way."""
    data = (path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: Header = json.loads(data[8 : 8 + length])
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()): name for name in header}
    for name in sorted(set(kinds.values()) - {"__metadata__"}):
        changed = json.loads(json.dumps(header))
        change(changed, name)
        encoded = json.dumps(changed).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(tmp_path)
        assert message.format(name) in str(caught.value)
