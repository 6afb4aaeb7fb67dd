"""The engine of an expert instance: dispatches in, what waits for one layer computed together, answers out."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.core.expert_queue import LayerQueues
from janus.errors import CheckpointError, LinkBusy, LinkError
from janus.exchange.layout import DispatchLayout, check_dispatch, dtype_code, matrix
from janus.messages import Message
from janus.messages.control import DispatchRejected, PlacementLoaded, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.transport.frame import Kind
from janus.transport.link import InFrame, Link, OutFrame

log = structlog.get_logger()

#: A slot that no dispatch may use yet.
_NOT_LOADED = np.iinfo(np.int64).max
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
    x: torch.Tensor
    slots: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    arrived_ns: int


class ExpertEngine:
    """Holds the replicas of one instance and serves dispatches for them. Also the handler of its links.

    A slot is usable from the epoch in which it got its expert: a dispatch planned with an older epoch, or for a slot
    that is still being loaded, is rejected with ``replica_missing`` and never computed with the wrong weights.
    """

    def __init__(
        self, *, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device, instance: str
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._code = dtype_code(dtype)
        self._device = device
        self._instance = instance
        self._bank: ExpertBank | None = None
        #: int64[L, C]: the epoch from which a slot may be used.
        self._usable_from: npt.NDArray[np.int64] = np.zeros((config.num_moe_layers, 0), dtype=np.int64)
        #: [L]: the epoch from which every slot of a layer may be used; answers the check of most dispatches.
        self._all_usable_from: list[int] = [_NOT_LOADED] * config.num_moe_layers
        self._queues: LayerQueues[_Waiting] = LayerQueues(
            max_dispatches=_MAX_WAITING, max_rows_together=_MAX_ROWS_TOGETHER
        )
        self._scheduled = False
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        # One thread: reads from disk must not stop the loop, and placements are applied one after the other.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-loader")
        self.loaded_epoch = 0
        self.times = ExpertTimes()

    def report(self) -> dict[str, int]:
        """Counters for metrics; may be read from another thread."""
        return {**asdict(self.times), "waiting": len(self._queues), "loaded_epoch": self.loaded_epoch}

    # -- replicas ------------------------------------------------------------------------------------------------

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; slots that keep their expert are not touched, nor interrupted."""
        started = time.perf_counter()
        before = self._checkpoint.bytes_read
        try:
            wanted = self._wanted(table)
            loop = asyncio.get_running_loop()
            bank, changed = self._prepare(wanted)
            for layer, slot in changed:
                expert = wanted[layer][slot]
                if expert >= 0:
                    await loop.run_in_executor(self._loader, bank.load, self._checkpoint, layer, slot, expert)
                else:
                    bank.unload(layer, slot)
        except (CheckpointError, ValueError) as error:
            log.error("placement_failed", epoch=table.epoch, problem=str(error))
            return PlacementLoaded(
                epoch=table.epoch, replicas=0, bytes_read=0, seconds=time.perf_counter() - started, error=str(error)
            )
        if bank is not self._bank:
            self._bank = bank
            self._usable_from = np.full((len(wanted), bank.slots), _NOT_LOADED, dtype=np.int64)
        self._set_usable([(layer, slot) for layer, slot in changed if wanted[layer][slot] >= 0], table.epoch)
        self.loaded_epoch = table.epoch
        report = PlacementLoaded(
            epoch=table.epoch,
            replicas=sum(expert >= 0 for slots in wanted for expert in slots),
            bytes_read=self._checkpoint.bytes_read - before,
            seconds=time.perf_counter() - started,
        )
        log.info(
            "placement_loaded",
            epoch=table.epoch,
            replicas=report.replicas,
            loaded=len(changed),
            bytes_read=report.bytes_read,
            seconds=round(report.seconds, 3),
        )
        return report

    def _wanted(self, table: PlacementTable) -> list[list[int]]:
        if self._instance not in table.instances:
            return [[] for _ in table.slots]
        index = table.instances.index(self._instance)
        return [layer[index] for layer in table.slots]

    def _prepare(self, wanted: list[list[int]]) -> tuple[ExpertBank, list[tuple[int, int]]]:
        """Return the bank to load into and the (layer, slot) pairs that change; those are unusable from now on."""
        slots = max((len(layer) for layer in wanted), default=0)
        bank = self._bank
        if bank is None or bank.slots != slots:
            # Another number of slots is another bank; the old one serves until the new one is complete.
            fresh = ExpertBank(self._config, len(wanted), slots, self._dtype, self._device)
            return fresh, [(layer, slot) for layer, experts in enumerate(wanted) for slot in range(len(experts))]
        changed = [
            (layer, slot)
            for layer, experts in enumerate(wanted)
            for slot, expert in enumerate(experts)
            if bank.slot_expert[layer][slot] != expert
        ]
        self._set_usable(changed, _NOT_LOADED)
        return bank, changed

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
        x, slots, weights = layout.views(frame.payload)
        problem = self._unusable(header.layer, header.epoch, slots)
        if problem:
            self._reject(link, frame, "replica_missing", problem)
            return
        waiting = _Waiting(link, frame, layout, x, slots, weights, time.perf_counter_ns())
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

    def _unusable(self, layer: int, epoch: int, slots_NK: npt.NDArray[np.int32]) -> str:
        count = self._usable_from.shape[1]
        lowest, highest = int(slots_NK.min()), int(slots_NK.max())
        if highest < 0 or lowest < -1 or highest >= count:
            return f"MoE layer {layer} epoch {epoch}: slots {lowest}..{highest}, this instance has {count}"
        if self._all_usable_from[layer] <= epoch:
            return ""
        # -1 indexes the last slot and is masked out again.
        early = (self._usable_from[layer][slots_NK] > epoch) & (slots_NK >= 0)
        if early.any():
            return f"MoE layer {layer}: slot {int(slots_NK[early][0])} does not hold what epoch {epoch} says"
        return ""

    def _set_usable(self, changed: list[tuple[int, int]], epoch: int) -> None:
        """Let the ``changed`` (layer, slot) pairs be used from ``epoch`` on."""
        for layer, slot in changed:
            self._usable_from[layer, slot] = epoch
        # An empty slot keeps its layer on the slow check, which is right: a dispatch for it must be rejected.
        self._all_usable_from = [int(slots.max()) if len(slots) else _NOT_LOADED for slots in self._usable_from]

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
        bank = self._bank
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
        slots_NK = torch.from_numpy(np.concatenate([w.slots for w in group])).to(self._device)
        weights_NK = torch.from_numpy(np.concatenate([w.weights for w in group])).to(self._device)
        x_NH = torch.cat([w.x for w in group]).to(self._device)
        y_NH = bank.forward(layer, x_NH, slots_NK, weights_NK)
        times.activated += _activated(*(w.slots for w in group))
        computed = time.perf_counter_ns()
        times.compute_ns += computed - started
        start = 0
        for waiting in group:
            stop = start + waiting.layout.rows
            self._reply(layer, waiting, y_NH[start:stop], computed - started)
            start = stop
        times.reply_ns += time.perf_counter_ns() - computed

    def _compute_one(self, bank: ExpertBank, layer: int, waiting: _Waiting, started: int) -> None:
        slots_NK = torch.from_numpy(waiting.slots).to(self._device)
        weights_NK = torch.from_numpy(waiting.weights).to(self._device)
        if self._device.type == "cpu":
            # The common case at decode: the kernel writes straight into the frame that goes back.
            frame = waiting.link.allocate(waiting.layout.x_nbytes)
            y_NH = matrix(frame.payload, waiting.layout.rows, waiting.layout.hidden, self._dtype)
            bank.forward(layer, waiting.x, slots_NK, weights_NK, out=y_NH)
        else:
            frame = None
            y_NH = bank.forward(layer, waiting.x.to(self._device), slots_NK, weights_NK)
        computed = time.perf_counter_ns()
        self._reply(layer, waiting, y_NH, computed - started, frame)
        self.times.compute_ns += computed - started
        self.times.reply_ns += time.perf_counter_ns() - computed
        self.times.activated += _activated(waiting.slots)

    def _reply(
        self, layer: int, waiting: _Waiting, y_NH: torch.Tensor, elapsed_ns: int, frame: OutFrame | None = None
    ) -> None:
        """Answer ``waiting`` with ``y_NH``, which lies in ``frame`` already if that is given."""
        link, header = waiting.link, waiting.frame.header
        rows, cols = y_NH.shape
        try:
            if frame is None:
                frame = link.allocate(waiting.layout.x_nbytes)
                matrix(frame.payload, rows, cols, self._dtype).copy_(y_NH)
            link.post(
                frame,
                kind=Kind.COMBINE,
                request_id=header.request_id,
                epoch=header.epoch,
                layer=layer,
                dtype=self._code,
                rows=rows,
                cols=cols,
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
        """Release the loader's thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)


def _activated(*tables: npt.NDArray[np.int32]) -> int:
    """How many distinct slots these slot tables name; -1 is none."""
    # Counting in numpy takes 2 us where a sort in torch takes 60.
    slots = tables[0].ravel() if len(tables) == 1 else np.concatenate([table.ravel() for table in tables])
    return int(np.count_nonzero(np.bincount(slots + 1)[1:]))
