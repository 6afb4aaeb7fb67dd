"""An instance of the exchange benchmark whose experts compute something that can be told from anything else.

python -m tests.testbed.exchange_worker '{"role": "expert", "name": "expert-0", ...}'
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import asdict
from typing import Any

import torch
from benchmarks.exchange.fakes import CopyBank, random_gates
from benchmarks.exchange.worker import EXPERTS, LAYERS, Worker, run

from janus.errors import DispatchError
from janus.exchange.choice import ModeChoice
from janus.transport import InFrame, Kind, Link

#: What is reported of the errors of a worker: a link that is down fails every step.
_ERRORS_KEPT = 50


class WeighBank(CopyBank):
    """Expert e multiplies by (1 + e) / E."""

    @property
    def takes_addresses(self) -> bool:
        return False

    def forward(
        self,
        moe_layer: int,
        x_NH: torch.Tensor,
        slots_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        factor_S = torch.tensor([(1 + expert) / EXPERTS for expert in self.slot_expert[moe_layer]] + [0.0])
        factor_N = torch.zeros(len(x_NH))
        for slots_N, weights_N in zip(slots_NK.long().T, weights_NK.T, strict=True):
            factor_N += weights_N * factor_S[slots_N]  # slot -1 is the last: nobody's
        y_NH = (x_NH.float() * factor_N[:, None]).to(self.dtype)
        return y_NH if out is None else out.copy_(y_NH)


class CheckedWorker(Worker):
    """Looks at every result, and counts what it sees."""

    make_bank = WeighBank

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self._task: asyncio.Task[None] | None = None
        self._stop = False
        self._ok = self._wrong = self._failed = self._answers = 0
        self._errors: list[dict[str, Any]] = []
        self._digests: dict[int, str] = {}
        self._slowest_s = 0.0
        self._progress = asyncio.Event()

    async def start(self) -> int:
        port = await super().start()
        if self.exchange is not None:
            take = self.exchange.on_frame

            def counted(link: Link, frame: InFrame) -> None:
                self._answers += frame.header.kind is Kind.COMBINE and link.peer.role == "expert"
                take(link, frame)

            self.exchange.on_frame = counted  # type: ignore[method-assign]
        return port

    async def do_begin(self, way: str, gate: str, tokens: int, most: int = 1 << 30) -> dict[str, Any]:
        """Dispatch and combine layer after layer until told to ``end``, or ``most`` times."""
        if self.exchange is not None:
            self._stop, self._ok, self._wrong, self._failed, self._slowest_s = False, 0, 0, 0, 0.0
            self._errors, self._digests = [], {}
            self.exchange.set_gate(experts=gate == "expert")
            self.exchange.set_choice(ModeChoice(way))  # type: ignore[arg-type]
            self._task = asyncio.create_task(self._steps(tokens, most, gate), name="steps")
        return {}

    async def do_more(self, steps: int, within_s: float) -> dict[str, Any]:
        """Wait until so many more steps have had their results."""
        wanted = self._ok + steps
        try:
            async with asyncio.timeout(within_s):
                while self._ok < wanted:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return {"missing": wanted - self._ok, "errors": self._errors}
        return {"missing": 0}

    async def do_failed(self, within_s: float) -> dict[str, Any]:
        """Wait until a step has failed."""
        async with asyncio.timeout(within_s):
            while not self._failed:
                self._progress.clear()
                await self._progress.wait()
        return {}

    async def do_end(self) -> dict[str, Any]:
        """Stop after the step that is under way; returns what has been seen."""
        self._stop = True
        return await self.do_await()

    async def do_await(self) -> dict[str, Any]:
        """Return what has been seen when all steps are done."""
        if self._task is None:
            return {}
        task, self._task = self._task, None
        await task
        digest = "".join(self._digests[layer] for layer in sorted(self._digests))
        return {
            "ok": self._ok,
            "wrong": self._wrong,
            "failed": self._failed,
            "errors": self._errors,
            "slowest_s": self._slowest_s,
            "digest": digest,
        }

    async def do_counts(self) -> dict[str, Any]:
        """What has been sent and received since the start, and what is still waited for."""
        if self.exchange is None:
            assert self.engine is not None
            return {**self.engine.report(), "pending": len(self.engine.relay._pending)}
        links = self.exchange.links.values()
        return {
            **asdict(self.exchange.times),
            "answers": self._answers,
            "held": sum(link.stats().held for link in (*links, *self.exchange.siblings.values())),
            "pending": len(self.exchange._pending),
        }

    async def _steps(self, tokens: int, most: int, gate: str) -> None:
        assert self.exchange is not None
        gates = random_gates(self.config, self.dtype)
        number = sum(map(ord, self.name))
        xs = [
            torch.randn(tokens, self.config.hidden_size, generator=torch.Generator().manual_seed(100 * number + layer))
            for layer in range(LAYERS)
        ]
        for step in range(most):
            if self._stop:
                break
            layer = step % LAYERS
            x_TH = xs[layer].to(self.dtype)
            weights_TK, ids_TK = gates.route(layer, x_TH)
            begun = time.monotonic()
            try:
                routing = (None, None) if gate == "expert" else (ids_TK, weights_TK)
                y_TH = await self.exchange.combine(self.exchange.dispatch(layer, x_TH, *routing))
            except DispatchError as error:
                self._failed += 1
                if len(self._errors) < _ERRORS_KEPT:
                    kind = type(error).__name__
                    self._errors.append({"kind": kind, "problem": str(error), "instances": list(error.instances)})
                await self.exchange.wait_changed(0.02)
            else:
                self._ok += 1
                self._look(layer, y_TH, x_TH.float() * (weights_TK * (1 + ids_TK) / EXPERTS).sum(1)[:, None])
            self._slowest_s = max(self._slowest_s, time.monotonic() - begun)
            self._progress.set()

    def _look(self, layer: int, y_TH: torch.Tensor, expected_TH: torch.Tensor) -> None:
        digest = hashlib.blake2b(y_TH.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
        same = self._digests.setdefault(layer, digest) == digest
        # bfloat16 has 8 bits; rounded once per instance, once per node, once in all.
        right = torch.allclose(y_TH.float(), expected_TH, rtol=0.02, atol=0.02)
        self._wrong += not (same and right)


if __name__ == "__main__":
    run(CheckedWorker)
