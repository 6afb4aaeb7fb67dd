"""The engine of an expert instance: dispatches in, what waits for one layer computed together, answers out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

import structlog
import torch

from janus.core.expert_queue import LayerQueues
from janus.errors import LinkBusy, LinkError, ReplicaMissing
from janus.exchange.layout import DispatchLayout, check_dispatch, dtype_code, matrix
from janus.messages import Message
from janus.messages.control import DispatchRejected, PlacementLoaded, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.runtime.replica_slots import ReplicaSlots
from janus.transport.frame import Kind
from janus.transport.link import InFrame, Link, OutFrame

log = structlog.get_logger()

_MAX_WAITING = 4096
_MAX_ROWS_TOGETHER = 16384


@dataclass(slots=True)
class ExpertTimes:
    """What an expert instance has done since its start; times in nanoseconds."""

    dispatches: int = 0
    rows: int = 0
    #: Grouped computations; ``dispatches / groups`` is how many dispatches one read of the weights served.
    groups: int = 0
    activated: int = 0
    #: In the queue, summed over dispatches.
    queued_ns: int = 0
    compute_ns: int = 0
    reply_ns: int = 0
    rejected: int = 0


@dataclass(slots=True)
class _Waiting:
    link: Link
    frame: InFrame
    layout: DispatchLayout
    #: Distinct slots that it names.
    activated: int
    arrived_ns: int

    def views(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [rows, H], slots [rows, K] and weights [rows, K], in the frame's memory."""
        x, slots, weights = self.layout.views(self.frame.payload)
        return x, torch.from_numpy(slots), torch.from_numpy(weights)


class ExpertEngine:
    """Serves dispatches for the replicas of one instance. Also the handler of its links.

    A dispatch for a slot that does not hold what the dispatch's epoch says is rejected with ``replica_missing``.
    """

    def __init__(
        self, *, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device, instance: str
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._code = dtype_code(dtype)
        self._device = device
        self._replicas = ReplicaSlots(
            checkpoint=checkpoint, config=config, dtype=dtype, device=device, instance=instance
        )
        self._queues: LayerQueues[_Waiting] = LayerQueues(
            max_dispatches=_MAX_WAITING, max_rows_together=_MAX_ROWS_TOGETHER
        )
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.times = ExpertTimes()

    @property
    def loaded_epoch(self) -> int:
        """The newest epoch whose replicas are in memory, 0 for none."""
        return self._replicas.loaded_epoch

    def report(self) -> dict[str, int]:
        """Counters for metrics; may be read from another thread."""
        return {**asdict(self.times), "waiting": len(self._queues), "loaded_epoch": self.loaded_epoch}

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; see ``ReplicaSlots.load``."""
        return await self._replicas.load(table)

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Queue a dispatch, or reject it by name."""
        header = frame.header
        if header.kind is not Kind.DISPATCH:
            self._reject(link, frame, "bad_frame", f"frame kind {header.kind.name} is not for an expert instance")
            return
        try:
            layout = check_dispatch(
                header, hidden=self._config.hidden_size, dtype=self._dtype, num_layers=self._config.num_moe_layers
            )
        except ValueError as error:
            self._reject(link, frame, "bad_frame", str(error))
            return
        try:
            activated = self._replicas.activated(frame, layout)
        except ReplicaMissing as error:
            self._reject(link, frame, "replica_missing", str(error))
            return
        self._replicas.prime()
        waiting = _Waiting(link, frame, layout, activated, time.perf_counter_ns())
        if not self._queues.put(header.layer, waiting, layout.rows):
            self._reject(link, frame, "internal", f"{_MAX_WAITING} dispatches wait already")
            return
        self._idle.clear()
        self._schedule()

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Nothing but dispatches is said on these links."""
        log.warning("unexpected_message", peer=link.peer.instance, message=type(message).__name__)

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Answers to a peer that is gone are dropped when their turn comes."""
        log.info("peer_gone", peer=link.peer.instance, problem=str(error))

    def _reject(self, link: Link, frame: InFrame, code: str, problem: str) -> None:
        self.times.rejected += 1
        log.warning("dispatch_rejected", peer=link.peer.instance, code=code, problem=problem)
        request_id = frame.header.request_id
        frame.release()
        self._send(link, request_id, DispatchRejected(code=code, problem=problem))  # type: ignore[arg-type]

    def _send(self, link: Link, request_id: int, message: Message) -> None:
        try:
            link.post_message(message, request_id=request_id)
        except LinkError as error:
            log.warning("answer_dropped", peer=link.peer.instance, problem=str(error))

    # -- computing -----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            # Soon, not now: the loop reads every link first, so that what arrived together is computed together.
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._scheduled = False
        turn = self._queues.take()
        if turn is None:
            return
        layer, group = turn
        live = [waiting for waiting in group if not waiting.link.closed]
        if live:
            try:
                self._compute(layer, live)
            except Exception as error:
                # A bug or a device error: whoever waits is told at once, and the server goes on.
                log.exception("compute_failed", layer=layer, dispatches=len(live))
                for waiting in live:
                    problem = f"the experts of MoE layer {layer} failed: {type(error).__name__}: {error}"
                    self._reject(waiting.link, waiting.frame, "internal", problem)
        if len(self._queues):
            self._schedule()
        else:
            self._idle.set()

    def _compute(self, layer: int, group: list[_Waiting]) -> None:
        bank = self._replicas.bank
        assert bank is not None  # a dispatch is queued only when its slots are loaded
        started = time.perf_counter_ns()
        times = self.times
        times.groups += 1
        for waiting in group:
            times.dispatches += 1
            times.rows += waiting.layout.rows
            times.queued_ns += started - waiting.arrived_ns
        if len(group) == 1:
            self._compute_one(bank, layer, group[0], started)
            return
        x_NH, slots_NK, weights_NK = (
            torch.cat(parts).to(self._device) for parts in zip(*(waiting.views() for waiting in group), strict=True)
        )
        y_NH = bank.forward(layer, x_NH, slots_NK, weights_NK)
        times.activated += bank.activated(slots_NK)
        computed = time.perf_counter_ns()
        times.compute_ns += computed - started
        start = 0
        for waiting in group:
            stop = start + waiting.layout.rows
            self._reply(layer, waiting, self._answer(waiting, y_NH[start:stop]), computed - started)
            start = stop
        times.reply_ns += time.perf_counter_ns() - computed

    def _compute_one(self, bank: ExpertBank, layer: int, waiting: _Waiting, started: int) -> None:
        layout = waiting.layout
        if bank.takes_addresses:
            # The common case at decode: from the frame that came straight into the frame that goes back.
            frame = waiting.link.allocate(layout.x_nbytes)
            x = waiting.frame.address
            bank.forward_at(
                layer,
                layout.rows,
                layout.top_k,
                x=x,
                slots=x + layout.slots_at,
                weights=x + layout.weights_at,
                out=frame.address,
            )
        else:
            x_NH, slots_NK, weights_NK = (view.to(self._device) for view in waiting.views())
            y_NH = bank.forward(layer, x_NH, slots_NK, weights_NK)
            frame = self._answer(waiting, y_NH)
        computed = time.perf_counter_ns()
        self._reply(layer, waiting, frame, computed - started)
        self.times.compute_ns += computed - started
        self.times.reply_ns += time.perf_counter_ns() - computed
        self.times.activated += waiting.activated

    @staticmethod
    def _answer(waiting: _Waiting, y_NH: torch.Tensor) -> OutFrame:
        frame = waiting.link.allocate(waiting.layout.x_nbytes)
        matrix(frame.payload, y_NH.shape[0], y_NH.shape[1], y_NH.dtype).copy_(y_NH)
        return frame

    def _reply(self, layer: int, waiting: _Waiting, frame: OutFrame, elapsed_ns: int) -> None:
        link, header = waiting.link, waiting.frame.header
        try:
            link.post(
                frame,
                kind=Kind.COMBINE,
                request_id=header.request_id,
                epoch=header.epoch,
                layer=layer,
                dtype=self._code,
                rows=header.rows,
                cols=header.cols,
                elapsed_us=elapsed_ns // 1000,
            )
        except LinkBusy:
            # Credits cover far more dispatches than an attention instance may have in flight; it re-sends in time.
            log.error("combine_dropped", peer=link.peer.instance, problem="no send credit is left")
        except LinkError as error:
            log.info("combine_dropped", peer=link.peer.instance, problem=str(error))
        finally:
            waiting.frame.release()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no dispatch waits; returns whether that was so within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Release what loading holds."""
        self._replicas.close()
