"""When do micro-batches pay? The attention engine as it is, in front of experts that take a given time to answer.

    python -m benchmarks.micro_batches [--streams 16 32] [--tokens 200] [--attention-us BASE ROW] [--model DIR]

The engine is the real one: planning, attention, gate, sampling, and the policy of ``--micro-batches``. The experts
are a model of one expert instance at the other end of a slow link: a dispatch travels for half of the round trip, waits
until the instance has served those before it, takes a time per activated expert and per row, and travels back.

Waiting is skipped, not slept. Time is what was skipped plus the processor time of this thread, so that other processes
count little; or, with ``--attention-us``, plus a fixed time per layer, so that every run gives the same figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from janus.core.batcher import Batcher, BatcherConfig
from janus.core.micro_batches import policy_for
from janus.exchange.local import LocalExchange, LocalReceipt
from janus.messages.control import SamplingParams, Submit
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.model.kv_cache import PagedKVCache
from janus.runtime.attention_engine import AttentionEngine
from janus.runtime.device import prepare
from janus.runtime.step_news import StepNews

CHOICES = ("1", "2", "3", "4", "auto")
_BLOCK = 16
_MAX_RUNNING = 64
#: Turns of the event loop without a dispatch after which everybody is known to wait.
_QUIET_TURNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How long the experts take, in microseconds."""

    round_trip_us: float
    #: Per expert that a dispatch activates, and per row.
    expert_us: float
    row_us: float

    def __str__(self) -> str:
        return f"round trip {self.round_trip_us:g} us, {self.expert_us:g} us/expert, {self.row_us:g} us/row"


SETTINGS = tuple(
    Setting(round_trip_us=round_trip_us, expert_us=expert_us, row_us=row_us)
    for expert_us, row_us in ((2, 1), (5, 20))
    for round_trip_us in (20, 100, 400, 1000)
)


class Clock:
    """What was skipped, plus the processor time of this thread, or what ``attention_us`` says instead of it."""

    def __init__(self, attention_us: Callable[[int], float] | None = None) -> None:
        """``attention_us``: microseconds of one layer's attention for so many rows."""
        self.attention_us = attention_us
        self._skipped_ns = 0

    def now_ns(self) -> int:
        """Nanoseconds."""
        return self._skipped_ns + (time.thread_time_ns() if self.attention_us is None else 0)

    def skip(self, duration_ns: float) -> None:
        """Let time pass."""
        self._skipped_ns += int(duration_ns)


@dataclass(frozen=True, slots=True, eq=False)
class _Receipt(LocalReceipt):
    answer: asyncio.Future[None]


class SlowExperts(LocalExchange):
    """One expert instance behind a slow link; its answers are zeros, on time."""

    def __init__(self, bank: ExpertBank, *, num_layers: int, setting: Setting, clock: Clock) -> None:
        super().__init__(bank, num_layers=num_layers)
        self._setting = setting
        self._clock = clock
        self._free_ns = 0.0
        self._due: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._quiet = 0

    def dispatch(
        self,
        layer: int,
        x_TH: torch.Tensor,
        topk_ids_TK: torch.Tensor | None,
        topk_weights_TK: torch.Tensor | None,
    ) -> _Receipt:
        assert topk_ids_TK is not None
        setting, clock, loop = self._setting, self._clock, asyncio.get_running_loop()
        rows, activated = len(x_TH), len(set(topk_ids_TK.flatten().tolist()))
        if clock.attention_us is not None:
            clock.skip(1000 * clock.attention_us(rows))
        half = setting.round_trip_us * 500
        busy = 1000 * (setting.expert_us * activated + setting.row_us * rows)
        self._free_ns = max(self._free_ns, clock.now_ns() + half) + busy
        receipt = _Receipt(layer, torch.zeros_like(x_TH), loop.create_future())
        self._due.append((self._free_ns + half, receipt.answer))
        self._quiet = 0
        if len(self._due) == 1:
            loop.call_soon(self._look)
        return receipt

    def _look(self) -> None:
        """Answer what is due, in the order of the dispatches; when everybody waits, go on to the next answer's time."""
        self._quiet += 1
        wait_ns = self._due[0][0] - self._clock.now_ns()
        if wait_ns > 0 and self._quiet > _QUIET_TURNS:
            self._clock.skip(wait_ns + 1)
            wait_ns = 0
        while self._due and wait_ns <= 0:
            _, answer = self._due.popleft()
            if not answer.done():
                answer.set_result(None)
            self._quiet = 0
            wait_ns = self._due[0][0] - self._clock.now_ns() if self._due else 0
        if self._due:
            asyncio.get_running_loop().call_soon(self._look)

    async def combine(self, receipt: LocalReceipt, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        assert isinstance(receipt, _Receipt)
        await receipt.answer
        return await super().combine(receipt, residual_TH)


async def speed(
    model: AttentionModel,
    setting: Setting,
    choice: str,
    *,
    streams: int,
    tokens: int,
    rounds: int = 1,
    attention_us: Callable[[int], float] | None = None,
) -> float:
    """Return tokens per second of ``streams`` requests of ``tokens`` output tokens, that begin together.

    They come ``rounds`` times, after one round that warms up: the memory, and the policy.
    """
    config, clock = model.config, Clock(attention_us)
    max_model_len = min(config.max_position_embeddings, tokens + _BLOCK)
    blocks = _MAX_RUNNING * -(-max_model_len // _BLOCK)
    ended, left = asyncio.Event(), 0

    def publish(news: StepNews) -> None:
        nonlocal left
        left -= len(news.finished)
        if left == 0:
            ended.set()

    bank = ExpertBank(config, 1, 1, model.dtype)  # computes nothing here
    engine = AttentionEngine(
        model=model,
        kv=PagedKVCache(config, blocks, _BLOCK, model.dtype, model.device),
        batcher=Batcher(
            BatcherConfig(
                max_running=_MAX_RUNNING,
                token_budget=512,
                block_size=_BLOCK,
                num_blocks=blocks,
                max_model_len=max_model_len,
                max_waiting=_MAX_RUNNING,
            )
        ),
        exchange=SlowExperts(bank, num_layers=config.num_moe_layers, setting=setting, clock=clock),
        micro_batches=policy_for(choice),
        recovery_timeout_s=10.0,
        publish=publish,
        clock_ns=clock.now_ns,
    )
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    started = 0
    async with asyncio.TaskGroup() as tasks:
        loop = tasks.create_task(engine.run(), name=f"engine[{choice}]")
        for number in range(rounds + 1):
            if number == 1:
                started = clock.now_ns()
            left = streams
            ended.clear()
            for index in range(streams):
                prompt = [2 + (number * 31 + index * 7 + position) % 200 for position in range(_BLOCK)]
                engine.submit(Submit(request_id=f"{number}-{index}", prompt_ids=prompt, params=params))
            await ended.wait()
        loop.cancel()
    return rounds * streams * tokens / (clock.now_ns() - started) * 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, and at its end the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "models" / "janus-tiny")
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attention-us", type=float, nargs=2, metavar=("BASE", "ROW"))
    options = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(options.model)
    model = AttentionModel.load(checkpoint, checkpoint.config, torch.bfloat16, prepare("cpu", 1))
    fixed = options.attention_us
    attention_us = (lambda rows: fixed[0] + fixed[1] * rows) if fixed else None
    figures = []
    for setting in SETTINGS:
        for streams in options.streams:
            size = {"streams": streams, "tokens": options.tokens, "rounds": options.rounds}
            speeds = {
                choice: asyncio.run(speed(model, setting, choice, **size, attention_us=attention_us))
                for choice in CHOICES
            }
            best = max(speeds[choice] for choice in CHOICES if choice != "auto")
            told = "  ".join(f"{choice}: {value:6.0f}" for choice, value in speeds.items())
            sys.stdout.write(
                f"{streams:3} streams, {setting}\n    {told}  tok/s; 2 / 1 {speeds['2'] / speeds['1']:.2f}, "
                f"auto / best {speeds['auto'] / best:.3f}\n"
            )
            sys.stdout.flush()
            figures.append({"streams": streams, "setting": str(setting), "tokens_per_s": speeds})
    sys.stdout.write(json.dumps(figures) + "\n")
    checkpoint.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
