"""The load client's process: N streams at once against one endpoint, and what it cost in CPU itself."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import httpx
import uvloop
from benchmarks.serving.worker import serve

from janus.chaos.stream import Sample, complete


async def _load(job: dict[str, Any]) -> dict[str, Any]:
    cpu = time.process_time()
    requests = [complete(job["url"], body, timeout_s=job["timeout_s"]) for body in job["bodies"]]
    samples = await asyncio.gather(*requests)
    cpu = time.process_time() - cpu
    errors = sorted({sample.error for sample in samples if not sample.ok})
    if errors:
        return {"error": "; ".join(errors)}
    return _summary(samples, job["output_tokens"]) | {"client_cpu_s": cpu}


def _summary(samples: list[Sample], output_tokens: int) -> dict[str, Any]:
    wrong = sorted({sample.tokens for sample in samples if sample.tokens != output_tokens})
    if wrong:
        return {"error": f"asked for {output_tokens} output tokens, the server counted {wrong}"}
    # Ends at the last token, not when the client has read through what it collected.
    return {
        "wall_s": max(sample.pieces_at[-1] for sample in samples) - min(sample.sent_at for sample in samples),
        "output_tokens": sum(sample.tokens for sample in samples),
        "tpot_s": statistics.fmean(sample.tpot_s for sample in samples),
        "ttft_s": statistics.median(sample.ttft_s for sample in samples),
    }


async def _watched(job: dict[str, Any]) -> dict[str, Any]:
    """The load, with a look at the instances' counters when decoding has settled and before it ends."""
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:

        async def look() -> dict[str, Any]:
            found = {name: (await client.get(f"{url}/status")).json() for name, url in job["watch"].items()}
            return {
                name: {
                    "step": status.get("step_times", {}),
                    "exchange": status.get("exchange_times", {}),
                    "expert": status.get("times", {}),
                }
                for name, status in found.items()
            }

        await look()  # connections are open from here on
        load = asyncio.create_task(_load(job), name="load")
        await asyncio.sleep(job["watch_after_s"])
        before, started = await look(), time.perf_counter()
        await asyncio.sleep(job["watch_for_s"])
        after, ended = await look(), time.perf_counter()
        return await load | {"before": before, "after": after, "between_s": ended - started}


def _handle(job: dict[str, Any]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_watched(job) if job.get("watch") else _load(job))


if __name__ == "__main__":
    serve(_handle)
