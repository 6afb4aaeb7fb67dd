"""The checks of `janus doctor`: each finds what it is for, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from janus.cluster.checks import Finding
from janus.cluster.checks.model import MemoryEstimate, check_memory, check_model, cpu_has_bfloat16, estimate_memory
from janus.cluster.checks.network import check_peer, check_port
from janus.cluster.checks.system import (
    check_compiler,
    check_cores,
    check_node_memory,
    check_package,
    check_shared_memory,
)
from janus.cluster.checks.ucx import check_ucx, rdma_finding
from janus.errors import ConfigError
from janus.model.config import ModelConfig
from janus_cli.doctor import doctor
from janus_cli.options import DoctorOptions
from tests.cli.conftest import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def findings_of(model: Path, *, experts: int = 2) -> dict[str, Finding]:
    return {found.check: found for found in check_model(model, dtype="float32", attention=1, experts=experts)}


def test_the_bundled_model_is_fine(model: Path) -> None:
    found = findings_of(model)
    assert {each.level for each in found.values()} == {"ok"}
    per_token = ModelConfig.load(model).kv_layout.bytes_per_token(4)
    assert f"keeps {per_token} bytes per token" in found["KV cache"].detail


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def scramble(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"no safetensors at all")


DAMAGES: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("no directory", shutil.rmtree, "model config", "no such model directory"),
    ("no config", lambda model: (model / "config.json").unlink(), "model config", "no such file"),
    ("bad JSON", lambda model: (model / "config.json").write_text("{"), "model config", "JSON"),
    ("other family", lambda model: edit_config(model, model_type="gpt2"), "model config", "gpt2"),
    ("absurd number", lambda model: edit_config(model, num_experts_per_tok=99), "model config", "num_experts_per_tok"),
    ("no weights", lambda model: (model / "model.safetensors").unlink(), "model weights", "model.safetensors"),
    ("truncated", truncate, "model weights", "truncated"),
    ("not safetensors", scramble, "model weights", "model.safetensors"),
    ("other shape", lambda model: edit_config(model, hidden_size=512), "model weights", "shape"),
    ("no tokenizer", lambda model: (model / "tokenizer.json").unlink(), "tokenizer", "no such file"),
]


@pytest.mark.parametrize(
    ("damage", "check", "words"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES]
)
def test_a_damaged_model_is_named(model: Path, damage: Callable[[Path], None], check: str, words: str) -> None:
    damage(model)
    found = findings_of(model)[check]
    assert found.level == "problem"
    assert words in f"{found.detail}; {found.remedy}"
    assert found.remedy


def test_more_instances_than_experts_is_a_problem(model: Path) -> None:
    found = findings_of(model, experts=17)["experts"]
    assert (found.level, found.remedy) == ("problem", "use --experts 16")


def test_the_memory_estimate_counts_every_weight_once_per_holder() -> None:
    config = ModelConfig.load(MODEL)
    one = estimate_memory(config, dtype="bfloat16", attention=1, experts=2)
    stored = (MODEL / "model.safetensors").stat().st_size
    # The file has a header too: a few kilobytes.
    assert one.attention_weights + one.expert_weights == pytest.approx(stored, rel=0.01)
    three = estimate_memory(config, dtype="float32", attention=3, experts=2)
    assert three.attention_weights == 6 * one.attention_weights
    assert three.expert_weights == 2 * one.expert_weights
    assert three.kv_cache == 6 * one.kv_cache


def test_too_little_memory_is_a_problem() -> None:
    needed = MemoryEstimate(attention_weights=1 << 30, expert_weights=3 << 30, kv_cache=1 << 30, processes=1 << 30)
    found = check_memory(needed, available=5 << 30)
    assert found.level == "problem"
    assert "about 6.0 GiB needed" in found.detail
    assert "5.0 GiB free" in found.detail
    assert check_memory(needed, available=7 << 30).level == "ok"


def test_a_taken_port_is_named_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = check_port("127.0.0.1", port)
        assert found.level == "problem"
        assert f"(pid {os.getpid()})" in found.detail
        assert f"--port {port + 1}" in found.remedy
    assert check_port("127.0.0.1", 0).level == "ok"


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    found = check_port("192.0.2.1", 8000)
    assert found.level == "problem"
    assert "--host" in found.remedy


def test_an_unreachable_peer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert check_peer("--peers", address).level == "ok"
    found = check_peer("--peers", address)
    assert (found.check, found.level, found.detail) == (f"peer {address}", "problem", "nobody listens there")


def test_rdma_is_never_claimed_without_ucx_offering_it() -> None:
    assert rdma_finding(available=False, adapters=[]).detail.startswith("none")
    unused = rdma_finding(available=False, adapters=["mlx5_0"])
    assert unused.level == "warning"
    assert "not used" in unused.detail
    assert "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=true" in unused.remedy
    assert rdma_finding(available=True, adapters=["mlx5_0"]).detail.startswith("UCX offers it")


def test_ucx_says_which_transports_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = next(check_ucx())
    assert found.level == "ok", found
    assert "tcp/" in found.detail
    monkeypatch.setenv("UCX_TLS", "nonesuch")
    broken = next(check_ucx())
    assert broken.level == "problem"
    assert broken.remedy


def test_what_the_system_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_package("no-such-package", needed="for this", remedy="get it").level == "problem"
    assert check_cores(10_000).level == "warning"
    assert check_shared_memory(tmp_path / "none").level == "warning"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler().level == "warning"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu sse2 avx2\n")
    assert not cpu_has_bfloat16(cpuinfo)
    cpuinfo.write_text("flags : fpu amx_bf16 avx2\n")
    assert cpu_has_bfloat16(cpuinfo)


def test_instances_can_share_memory_or_are_said_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_node_memory().level == "ok"

    def missing() -> None:
        raise ConfigError("transport", "this system has no sealed memory", "use Linux")

    monkeypatch.setattr("janus.cluster.checks.system.shared_pool", missing)
    found = check_node_memory()
    assert (found.level, "no sealed memory" in found.detail) == ("warning", True)


def test_a_finding_has_a_remedy_exactly_when_it_needs_one() -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding(check="x", level="problem", detail="broken")
    with pytest.raises(ValueError, match="remedy"):
        Finding(check="x", level="ok", detail="fine", remedy="nothing")


def test_the_exit_status_tells_whether_a_start_would_work(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor(DoctorOptions(model=model, port=port)) == 1
    assert "1 to solve before a start" in capsys.readouterr().out
    assert doctor(DoctorOptions(model=model, port=0, json=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert {entry["level"] for entry in report} <= {"ok", "warning"}
