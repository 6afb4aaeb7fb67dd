"""The HTTP schema against a whole cluster: whatever can be written in it is answered by name, never by a crash."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest
from benchmarks.load.cluster import running_cluster

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method,allow_header_conformance"
)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1200)
async def test_fuzz_the_http_schema() -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis; `make fuzz` installs it")
    size = ["--attention", "1", "--experts", "2"]
    name = ["--name", f"fuzz-{os.getpid()}"]  # beside whatever cluster of this user is up
    async with running_cluster(["--model", str(MODEL), *size, *name, "--port", "0"]) as cluster:
        base = cluster.url.removesuffix("/v1")
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json", "--checks", CHECKS]
        # One worker: with several, schemathesis trips over its own threads while it makes cases.
        options = ["--max-examples", "100", "--continue-on-failure", "--request-timeout", "60", "--workers", "1"]
        process = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE)
        report, _ = await process.communicate()
        assert process.returncode == 0, report.decode()
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            assert (await client.get("/health")).json() == {"status": "ok", "reasons": []}
            metrics = (await client.get("/metrics")).text
            left = [
                line for line in metrics.splitlines() if line.startswith(("vllm:num_requests", "janus_gateway_outs"))
            ]
            assert left
            assert all(line.endswith(" 0.0") for line in left), left
            body = {"prompt": "It was", "max_tokens": 4}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
