"""`janus up` with every real process: what it says, what other commands find, how it ends, and that nothing stays."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.conftest import LIMIT_S, MODEL, Start, Up

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Up:
    return start_cluster("--attention", "1", "--experts", "2")


def wait_until_gone(processes: list[psutil.Process], within_s: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    assert not alive, [process.cmdline() for process in alive]


def complete(cluster: Up) -> str:
    body = {"prompt": "And it came to pass", "max_tokens": 8, "temperature": 0}
    response = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=LIMIT_S)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_ready_means_that_requests_are_served(cluster: Up) -> None:
    assert cluster.ready.startswith("ready: http://127.0.0.1:")
    assert cluster.ready.endswith("/v1")
    assert httpx.get(f"{cluster.url}/ready").status_code == 200
    assert complete(cluster)


def test_no_secret_is_on_a_command_line(cluster: Up) -> None:
    (state,) = Path(cluster.environ["XDG_RUNTIME_DIR"]).rglob("state.json")
    secret = Path(json.loads(state.read_text())["secret_file"]).read_text().strip()
    children = cluster.children()
    assert len(children) == 6  # five instances, and the process that some are forked from
    assert not [child for child in children if secret in " ".join(child.cmdline())]
    assert secret not in cluster.told()


def test_status_shows_every_instance(cluster: Up) -> None:
    shown = cluster.janus("status", "--layers")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for name in ("gateway-0", "attention-0", "expert-0", "expert-1"):
        assert name in shown.stdout
    assert "placement epoch: 1" in shown.stdout
    report = json.loads(cluster.janus("status", "--json").stdout)
    assert report["problems"] == []
    assert {member["state"] for member in report["report"]["view"]["members"]} == {"ready"}


def test_chat_streams_an_answer_and_says_how_fast(cluster: Up) -> None:
    result = cluster.janus("chat", "--prompt", "And it came to pass", "--max-tokens", "8", "--seed", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("And it came to pass")
    assert "8 tokens in" in result.stderr
    assert "tokens/s" in result.stderr


def test_chat_reads_prompts_until_they_end(cluster: Up) -> None:
    typed = "And it came to pass\n\nBlessed are they\n"
    result = cluster.janus("chat", "--max-tokens", "4", typed=typed)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("4 tokens in") == 2
    assert "Blessed are they" in result.stdout
    turns = cluster.janus("chat", "--turns", "--max-tokens", "4", typed="Hello\nGo on\n")
    assert turns.returncode == 0, turns.stderr
    assert turns.stderr.count("4 tokens in") == 2, turns.stderr


def test_a_name_is_served_once(cluster: Up) -> None:
    again = cluster.janus("up", "--model", str(MODEL), "--port", "0")
    assert again.returncode == 2
    assert again.stderr.startswith("error: --name: cluster 'default' is already running; run janus down")


def test_a_taken_port_is_refused_before_anything_starts(cluster: Up) -> None:
    port = cluster.url.rpartition(":")[2]
    second = cluster.janus("up", "--model", str(MODEL), "--port", port, "--name", "second")
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: --port: {port} taken by ")
    assert f"--port {int(port) + 1}" in second.stderr
    assert second.stderr.count("\n") == 1


def test_doctor_says_who_has_the_port(cluster: Up) -> None:
    port = cluster.url.rpartition(":")[2]
    result = cluster.janus("doctor", "--port", port, "--model", str(MODEL), "--json")
    assert result.returncode == 1, result.stdout
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    taken = findings[f"port {port}"]
    # `janus up` holds the socket, and its gateways have inherited it.
    holders = (cluster.process.pid, cluster.child("gateway-0").pid)
    assert any(f"(pid {pid})" in taken["detail"] for pid in holders)
    assert [name for name, finding in findings.items() if finding["level"] == "problem"] == [f"port {port}"]


def test_a_dead_expert_instance_is_named_and_comes_back(cluster: Up) -> None:
    before = complete(cluster)
    victim = cluster.child("expert-1")
    victim.kill()
    wait_until_gone([victim], 10)
    # Requests wait for the experts to come back, or are refused by name; none is lost in silence.
    deadline = httpx.Timeout(LIMIT_S)
    body = {"prompt": "And it came to pass", "max_tokens": 8, "temperature": 0}
    with httpx.Client(timeout=deadline) as client:
        while (response := client.post(f"{cluster.url}/v1/completions", json=body)).status_code == 503:
            assert "Retry-After" in response.headers
    assert response.json()["choices"][0]["text"] == before
    assert "expert-1 ended with signal SIGKILL; restarted" in cluster.told()
    assert cluster.child("expert-1").pid != victim.pid


def wait_for_status(cluster: Up, wanted: int) -> str:
    """Ask until `janus status` ends with ``wanted``; each question is a process, and so takes its time."""
    deadline = time.monotonic() + LIMIT_S
    while (shown := cluster.janus("status")).returncode != wanted:
        why = f"{shown.stdout}{shown.stderr}\n{cluster.last_words('controller-0')}"
        assert time.monotonic() < deadline, why
    return shown.stdout


def test_requests_go_on_without_the_controller_which_comes_back_where_it_was(cluster: Up) -> None:
    before = complete(cluster)
    cluster.child("controller-0").kill()
    assert complete(cluster) == before
    shown = wait_for_status(cluster, 0)
    assert all(name in shown for name in ("gateway-0", "attention-0", "expert-0", "expert-1"))
    assert complete(cluster) == before


def test_a_dead_gateway_comes_back_on_its_port(cluster: Up) -> None:
    before = complete(cluster)
    cluster.child("gateway-0").kill()
    wait_for_status(cluster, 0)
    assert complete(cluster) == before


def test_down_stops_everything_in_order(cluster: Up) -> None:
    children = cluster.children()
    assert cluster.janus("down").returncode == 0
    assert cluster.process.wait(LIMIT_S) == 0
    wait_until_gone(children, 1)
    assert cluster.process.stdout is not None
    assert cluster.process.stdout.read() == ""
    assert cluster.janus("status").returncode == 2


def test_a_killed_up_leaves_no_orphan(start_cluster: Start) -> None:
    up = start_cluster("--attention", "1", "--experts", "1")
    children = up.children()
    assert len(children) == 5  # with the process that some are forked from
    up.process.send_signal(signal.SIGKILL)
    up.process.wait(10)
    wait_until_gone(children, 15)


def test_a_model_that_cannot_be_served_ends_the_start_with_the_reason(start_cluster: Start, tmp_path: Path) -> None:
    model = tmp_path / "truncated"
    shutil.copytree(MODEL, model)
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    up = start_cluster(model=model, wait=False)
    assert up.process.wait(LIMIT_S) == 1
    assert "controller-0 |" in up.told()
    assert "model.safetensors" in up.told()
    assert "error: controller-0: ended with status 1 before it listened; its log is" in up.told()


def test_a_signal_during_the_start_ends_it_cleanly(start_cluster: Start) -> None:
    up = start_cluster(wait=False)
    while not up.told() and up.process.poll() is None:  # until the first instance listens
        psutil.wait_procs(up.children(), timeout=0.05)
    children = up.children()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(LIMIT_S) == 0
    wait_until_gone(children, 1)


def test_a_second_signal_ends_everything_at_once(start_cluster: Start) -> None:
    up = start_cluster("--attention", "1", "--experts", "1", "--drain-timeout", "60")
    children = up.children()
    body = {"prompt": "And it came to pass", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{up.url}/v1/completions", json=body, timeout=LIMIT_S) as response:
        assert next(response.iter_lines())
        up.process.send_signal(signal.SIGTERM)
        while "stopping" not in up.told():
            up.process.poll()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(15) == 0
        wait_until_gone(children, 5)
    assert "forced" in up.told()
