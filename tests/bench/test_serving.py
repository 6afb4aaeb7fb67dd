"""The serving benchmark's arithmetic: parts of a step, pairs of a round, and the document that shows them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from benchmarks.markdown import write_into
from benchmarks.serving.breakdown import step_breakdown
from benchmarks.serving.campaign import Campaign, Cell, Schedule
from benchmarks.serving.checkpoints import write_tokenizer
from benchmarks.serving.machine import Patience
from benchmarks.serving.report import summary, tables, vs
from benchmarks.serving.worker import Worker, WorkerError
from benchmarks.serving.workload import Run, Workload

_STEP = ("plan", "embed", "attention", "gate", "dispatch", "combine", "dense", "logits", "sample", "publish")


def cell(engine: str, round_: int, rate: float, *, n: int = 8, disturbed: bool = False) -> Cell:
    return Cell(
        engine=engine,
        concurrency=n,
        round=round_,
        tokens_per_s=rate,
        tpot_ms=1e3 * n / rate,
        ttft_ms=5.0,
        batches=1,
        cpu_ms_per_token={"server": 1.0, "client": 0.1},
        others_cores_before=0.0,
        others_cores=1.0 if disturbed else 0.0,
        disturbed=disturbed,
    )


def cluster_run(steps: int, *, shared_us: int = 0) -> Run:
    """Counters of ``steps`` steps of 1 ms, 100 us in each part of the attention instance's step.

    ``shared_us`` of ``combine`` are a shared expert's.
    """
    us = 1000 * steps
    zero = {"step": dict.fromkeys(("steps", *(f"{name}_ns" for name in _STEP)), 0), "exchange": {}, "expert": {}}
    step = {"steps": steps, "dense_ns": 0} | {f"{name}_ns": 100 * us for name in _STEP if name != "dense"}
    step |= {"shared_ns": shared_us * us, "combine_ns": (100 - shared_us) * us}
    exchange = {"schedule_ns": 10 * us, "pack_ns": 30 * us, "send_ns": 12 * us, "wait_ns": 90 * us}
    exchange["expert_ns"] = 60 * us
    expert = {"queued_ns": 4 * us, "reply_ns": 6 * us}
    before = {"attention-0": zero | {"exchange": dict.fromkeys(exchange, 0)}}
    before |= {f"expert-{index}": {"step": {}, "exchange": {}, "expert": dict.fromkeys(expert, 0)} for index in (0, 1)}
    after = {"attention-0": {"step": step, "exchange": exchange, "expert": {}}}
    after |= {f"expert-{index}": {"step": {}, "exchange": {}, "expert": expert} for index in (0, 1)}
    return Run(
        wall_s=1.0,
        output_tokens=steps,
        tpot_s=0.001,
        ttft_s=0.01,
        before=before,
        after=after,
        between_s=0.001 * steps,
    )


@pytest.mark.parametrize("shared_us", [0, 40])
def test_the_parts_of_a_step_add_up_to_the_step(shared_us: int) -> None:
    parts = step_breakdown(cluster_run(40, shared_us=shared_us))
    assert parts.get("of_wait_shared", 0) == shared_us
    assert parts["step"] == 1000.0
    named = {name: value for name, value in parts.items() if name != "step" and not name.startswith("of_")}
    assert sum(named.values()) == pytest.approx(1000.0)
    assert (parts["schedule"], parts["pack"], parts["send"]) == (10.0, 18.0, 12.0)
    assert (parts["expert_compute"], parts["wait"]) == (60.0, 30.0)
    # dispatch + combine took 200 us, of which 10 + 30 + 90 are named otherwise
    assert parts["combine"] == 70.0
    assert (parts["of_wait_expert_queue"], parts["of_wait_expert_reply"]) == (4.0, 6.0)
    assert parts["rest"] == pytest.approx(100.0)


def test_ratios_pair_cells_of_one_round_and_leave_disturbed_pairs_out() -> None:
    cells = [cell("1A1E", 0, 100), cell("other", 0, 50), cell("1A1E", 1, 40), cell("other", 1, 10)]
    assert vs(cells, "1A1E", "other") == {"8": 3.0}  # the median of 2 and 4, not 70 / 30
    cells += [cell("1A1E", 2, 10, disturbed=True), cell("other", 2, 100)]
    assert vs(cells, "1A1E", "other") == {"8": 3.0}
    assert vs([cell("1A1E", 0, 10, disturbed=True), cell("other", 0, 100)], "1A1E", "other") == {"8": 0.1}


def test_the_document_shows_the_result(tmp_path: Path) -> None:
    workload, schedule = Workload(vocab_size=300), Schedule()
    patience = Patience(quiet_cores=0.1, budget_s=0.0)
    campaign = Campaign(engines=[], workload=workload, schedule=schedule, patience=patience, client_pid=1, label="test")
    campaign.cells = [cell(name, 0, rate, n=n) for name, rate in (("1A1E", 90), ("monolithic", 100)) for n in (1, 8)]
    campaign.breakdowns = {"1A1E": {"1": step_breakdown(cluster_run(10))}}
    campaign.skipped = {"vllm": "no --vllm-python was given"}
    data = json.loads(json.dumps(summary(campaign)))
    assert data["vs_monolithic"] == {"1": 0.9, "8": 0.9}
    hardware = {"cpu": "cpu", "cores": 2, "cores_used": 2, "flags": {"avx2": True}, "memory_gib": 24.0}
    words = {"date": "2026-01-01", "commit": "abc", "command": "make bench", "load": "Quiet.", "hardware": hardware}
    result: dict[str, Any] = {**words, "models": {"tiny": {"bfloat16": data}}}

    document = tmp_path / "performance.md"
    document.write_text("head\n<!-- serving.json: begin -->\nold\n<!-- serving.json: end -->\ntail\n")
    write_into(document, tables(result), result="serving.json")
    write_into(document, tables(result), result="serving.json")
    text = document.read_text()
    assert text.startswith("head\n") and text.endswith("-->\ntail\n") and "old" not in text
    assert text.count("### tiny, bfloat16") == 1
    assert "| 90 / 11.11 [5]" in text and "0.90x" in text and "no --vllm-python" in text

    document.write_text("no markers")
    with pytest.raises(ValueError, match="has no line"):
        write_into(document, "text", result="serving.json")


def test_no_two_batches_share_a_prompt() -> None:
    workload = Workload(vocab_size=1000)
    first, second = workload.prompts(8, 1), workload.prompts(8, 2)
    assert first == workload.prompts(8, 1)
    assert not {tuple(prompt) for prompt in first} & {tuple(prompt) for prompt in second}
    assert all(len(prompt) == 16 and min(prompt) >= 1 and max(prompt) < 1000 for prompt in first)


def test_every_token_of_the_benchmark_model_has_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path, 1000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 1000
    assert all(tokenizer.decode([token]) for token in range(2, 1000))


def _answer(events: list[dict[str, Any]]) -> bytes:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + body


async def test_the_load_worker_counts_what_the_server_counts_and_refuses_less(tmp_path: Path) -> None:
    text = [{"choices": [{"text": "a", "index": 0}]}] * 3

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        asked = json.loads(await reader.readexactly(length))["max_tokens"]
        writer.write(_answer([*text, {"choices": [], "usage": {"completion_tokens": min(asked, 3)}}]))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    worker = Worker("benchmarks.serving.load_worker", environ=os.environ, log=tmp_path / "log")
    job = {"url": f"http://127.0.0.1:{port}/v1", "timeout_s": 30.0}
    try:
        three = {"bodies": [{"max_tokens": 3}] * 2, "output_tokens": 3}
        run = Run(**await asyncio.to_thread(worker.ask, job | three))
        assert run.output_tokens == 6 and 0 < run.ttft_s <= run.wall_s
        four = {"bodies": [{"max_tokens": 4}], "output_tokens": 4}
        with pytest.raises(WorkerError, match="asked for 4 output tokens, the server counted"):
            await asyncio.to_thread(worker.ask, job | four)
    finally:
        worker.close()
        server.close()
        await server.wait_closed()
