"""``janus trace`` against a controller's operations endpoint: out, in, shown; refused by name where it must be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from janus.cluster.trace_client import TraceClient
from janus.core.trace import Trace
from janus.core.trace_skew import layer_skews
from janus.errors import ConfigError, JanusError, TraceError
from janus.messages.control import RoutingSample
from janus.runtime import proof
from janus.runtime.health import Health
from janus.runtime.http import HttpServer, ops_app
from janus_cli import trace as cli
from janus_placement_controller.statistics import RoutedModel, Statistics
from janus_placement_controller.trace_http import trace_route

SECRET = "a secret of a cluster"
MODEL = RoutedModel(fingerprint="feed" * 16, num_layers=2, num_experts=8, top_k=2)


@dataclass
class Controller:
    statistics: Statistics
    url: str


Start = Callable[..., Awaitable[Controller]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start the operations endpoints of controllers."""
    servers: list[HttpServer] = []

    async def begin(model: RoutedModel = MODEL) -> Controller:
        registry = CollectorRegistry()
        statistics = Statistics(model, registry)
        app = ops_app(Health(), registry, more=[trace_route(statistics, SECRET.encode())])
        server = HttpServer(app, host="127.0.0.1", port=0, field="--ops-port")
        await server.start()
        servers.append(server)
        return Controller(statistics, f"http://127.0.0.1:{server.port}")

    yield begin
    for server in servers:
        await server.close()


def feed(statistics: Statistics, tokens: int = 6, seed: int = 0) -> None:
    source = np.random.default_rng(seed)
    ids = np.argsort(source.random((2, tokens, 8)), axis=2)[..., :2].astype("<u2")
    statistics.on_sample(
        "attention-0", RoutingSample(layers=2, tokens=tokens, top_k=2, expert_ids=ids.tobytes(), seen=3 * tokens)
    )


def client(controller: Controller, secret: str = SECRET) -> TraceClient:
    return TraceClient(controller_ops=controller.url, secret=secret)


def cluster(controller: Controller) -> cli._Cluster:
    return cli._Cluster(controller_ops=controller.url, secret=SECRET)


async def test_out_to_a_file_and_into_another_cluster(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, file = await start(), await start(), tmp_path / "trace.safetensors"
    feed(one.statistics)
    assert await asyncio.to_thread(cli.export, cli.TraceExportOptions(file=file, cluster=cluster(one))) == 0
    assert await asyncio.to_thread(cli.import_, cli.TraceImportOptions(file=file, cluster=cluster(other))) == 0
    before, after = one.statistics.activity(), other.statistics.activity()
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.counts, after.counts)
    np.testing.assert_array_equal(before.trace, after.trace)
    told = capsys.readouterr().err
    assert "6 tokens, 2 MoE layers of 8 experts, 2 per token; model feedfeedfeed" in told
    assert "imported 6 tokens; the cluster now has 6 in its window" in told
    assert cli.show(cli.TraceShowOptions(file=file)) == 0
    assert "busiest/mean" in capsys.readouterr().out


async def test_a_trace_of_another_model_is_refused(start: Start, tmp_path: Path) -> None:
    one = await start()
    feed(one.statistics)
    for model, problem in (
        (RoutedModel(fingerprint="feed" * 16, num_layers=2, num_experts=9, top_k=2), "2 MoE layers of 9 experts"),
        (RoutedModel(fingerprint="beef" * 16, num_layers=2, num_experts=8, top_k=2), "another model"),
    ):
        other = await start(model)
        with pytest.raises(TraceError, match=problem):
            await asyncio.to_thread(client(other).send, await asyncio.to_thread(client(one).fetch))
        assert other.statistics.activity() is None


async def test_it_takes_the_secret(start: Start) -> None:
    one = await start()
    feed(one.statistics)
    with pytest.raises(JanusError, match="the cluster secret is another one"):
        await asyncio.to_thread(client(one, "not that secret").fetch)
    async with httpx.AsyncClient(trust_env=False) as http:
        bare = await http.get(f"{one.url}/trace")
        assert (bare.status_code, bare.json()["problem"]) == (
            401,
            "this needs the cluster secret; use the janus command",
        )
        garbage = proof.prove(SECRET.encode(), "PUT", "/trace", b"no trace", now=time.time())
        answer = await http.put(f"{one.url}/trace", content=b"no trace", headers={proof.HEADER: garbage})
        assert answer.status_code == 409
        assert "no safetensors" in answer.json()["problem"]
        changed = await http.put(f"{one.url}/trace", content=b"another", headers={proof.HEADER: garbage})
        assert changed.status_code == 401
        assert (await http.delete(f"{one.url}/trace")).status_code == 405


def test_a_proof_is_for_one_request_and_one_minute() -> None:
    secret, now = b"secret", 1.7e9
    header = proof.prove(secret, "PUT", "/trace", b"body", now=now)
    assert proof.problem_of(secret, "PUT", "/trace", b"body", header, now=now + 30) == ""
    assert "clocks" in proof.problem_of(secret, "PUT", "/trace", b"body", header, now=now + 90)
    for method, path, body in (("GET", "/trace", b"body"), ("PUT", "/x", b"body"), ("PUT", "/trace", b"bodY")):
        assert "another" in proof.problem_of(secret, method, path, body, header, now=now)
    for forged in ("", "Janus ", "Janus x:y", "Bearer secret", "Janus ²:00", f"Janus {int(now)}:é"):
        assert proof.problem_of(secret, "PUT", "/trace", b"body", forged, now=now)


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--secret-file"):
        TraceClient(controller_ops="http://127.0.0.1:9")
    with pytest.raises(JanusError, match="does not answer"):
        await asyncio.to_thread(TraceClient(controller_ops="http://127.0.0.1:9", secret=SECRET).fetch)
    with pytest.raises(ConfigError, match="missing: No such file"):
        cli.read(tmp_path / "missing")
    (tmp_path / "text").write_text("no trace")
    with pytest.raises(TraceError, match="text: it is no safetensors file"):
        cli.read(tmp_path / "text")


def test_the_skew_of_a_layer() -> None:
    ids = np.array([[[0, 1], [0, 2], [0, 3]], [[4, 5], [6, 7], [8, 9]]], dtype=np.uint16)
    trace = Trace(fingerprint="", num_experts=10, expert_ids=ids, weights=np.ones(3), saved_at=0.0)
    skewed, wide = layer_skews(trace)
    assert (skewed.busiest, skewed.busiest_share, skewed.used, skewed.half) == (0, 0.5, 4, 1)
    assert (skewed.top_tenth_share, skewed.imbalance) == (0.5, 5.0)
    assert (wide.used, wide.half) == (6, 3)
    assert wide.imbalance == pytest.approx(10 / 6)
    empty = Trace(fingerprint="", num_experts=10, expert_ids=ids[:, :0], weights=np.ones(0), saved_at=0.0)
    assert layer_skews(empty) == []
