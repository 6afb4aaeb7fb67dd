"""The engine of an expert instance: dispatches in, what waits for one layer computed together, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass, field

import structlog
import torch

from janus.config.options import LoadSource
from janus.core.expert_queue import LayerQueues
from janus.core.load_source import RateLimit
from janus.errors import DispatchError, InstanceLost, LinkBusy, LinkError, ReplicaMissing
from janus.exchange.layout import check_dispatch, check_ungated, dtype_code
from janus.exchange.packing import packing_for
from janus.messages import Message
from janus.messages.control import (
    ClusterView,
    DispatchRejected,
    ExchangeWay,
    FetchReplica,
    PlacementLoaded,
    PlacementTable,
    RejectionCode,
    ReplicaRefused,
)
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.gate import Gates
from janus.runtime.expert_compute import ExpertCompute, Waiting
from janus.runtime.expert_gate import ExpertGate
from janus.runtime.relay import Relay, RelayJob
from janus.runtime.replica_fetch import Reach
from janus.runtime.replica_offers import ReplicaOffers
from janus.runtime.replica_slots import MakeBank, ReplicaSlots
from janus.runtime.replica_sources import ReplicaSources
from janus.runtime.shares import NodeView, node_share, own_share
from janus.transport.frame import Flags, Kind
from janus.transport.link import InFrame, Link, OutFrame

log = structlog.get_logger()

#: In Python 3.11, ``Kind.COMBINE`` is a Python call.
_COMBINE, _DISPATCH, _REPLICA = Kind.COMBINE, Kind.DISPATCH, Kind.REPLICA

_MAX_WAITING = 4096
_MAX_ROWS_TOGETHER = 16384
_VIEWS_KEPT = 4


@dataclass(slots=True)
class _Chooser:
    """An attention instance that says which way it goes, and the last that it said of each size."""

    link: Link
    said: dict[int, ExchangeWay] = field(default_factory=dict)


class ExpertEngine:
    """Serves dispatches for the replicas of one instance. Also the handler of its links.

    A dispatch for a slot that does not hold what the dispatch's epoch says is rejected with ``replica_missing``. One
    that is for the whole node is shared with the other instances there: this one is then its relay.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        instance: str,
        siblings: dict[str, Link] | None = None,
        gates: Gates | None = None,
        make_bank: MakeBank = ExpertBank,
        reach: Reach | None = None,
        load_source: LoadSource = "auto",
        load_rate: float = 0.0,
    ) -> None:
        """``siblings``: links to the other expert instances of this node that are up, by name; whoever dials keeps
        them here. ``gates``: for dispatches that the experts gate; ``None``: those are rejected. ``make_bank``: see
        ``ReplicaSlots``. ``reach``: to fetch replicas from others; ``None``: from the checkpoint only. ``load_rate``:
        bytes per second that are loaded, and as many that are sent to others; 0 for no limit.
        """
        self._instance = instance
        self._config = config
        self._dtype = dtype
        self._code = dtype_code(dtype)
        self._sources = ReplicaSources(
            checkpoint=checkpoint, own=instance, reach=reach, source=load_source, bytes_per_s=load_rate
        )
        self._replicas = ReplicaSlots(
            config=config, dtype=dtype, device=device, instance=instance, sources=self._sources, make_bank=make_bank
        )
        self._offers = ReplicaOffers(
            bank=lambda: self._replicas.bank,
            generation=lambda: self._replicas.generation,
            limit=RateLimit(load_rate),
        )
        self._queues: LayerQueues[Waiting] = LayerQueues(
            max_dispatches=_MAX_WAITING, max_rows_together=_MAX_ROWS_TOGETHER
        )
        packing = packing_for(dtype, device)
        self.relay = Relay(
            own=instance,
            siblings={} if siblings is None else siblings,
            packing=packing,
            dtype_code=self._code,
            itemsize=dtype.itemsize,
        )
        self._gate = None if gates is None else ExpertGate(gates, config, dtype, self._replicas, instance)
        self._views: dict[int, NodeView] = {}
        #: Attention instances that have said which way they go, by name.
        self._choosers: dict[str, _Chooser] = {}
        self._oldest_epoch = 0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._compute = ExpertCompute(self._replicas, device, self._reply)
        self.times = self._compute.times

    @property
    def loaded_epoch(self) -> int:
        """The newest epoch whose replicas are in memory, 0 for none."""
        return self._replicas.loaded_epoch

    @property
    def loaded_epochs(self) -> list[int]:
        """Every epoch whose replicas are in memory; may be read from another thread."""
        return self._replicas.loaded_epochs

    def report(self) -> dict[str, int]:
        """Counters for metrics; may be read from another thread."""
        return {
            **asdict(self.times),
            "waiting": len(self._queues),
            "loaded_epoch": self.loaded_epoch,
            "replica_bytes": bank.resident_nbytes if (bank := self._replicas.bank) is not None else 0,
            "loaded_from_disk": self._sources.bytes_from_disk,
            "loaded_from_peers": self._sources.bytes_from_peers,
            "sent_to_peers": self._offers.bytes_sent,
            "relayed": self.relay.relayed,
            "forwarded": self.relay.forwarded,
        }

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; see ``ReplicaSlots.load``."""
        return await self._replicas.load(table)

    def expect(self, table: PlacementTable) -> None:
        """``table`` is to be loaded next; see ``ReplicaSlots.expect``."""
        self._replicas.expect(table)

    @property
    def load_speeds(self) -> dict[str, float]:
        """Bytes per second of each source of replicas, by instance; "" is the checkpoint."""
        return self._sources.speeds

    def on_view(self, view: ClusterView) -> None:
        """Give back what only epochs need that are over; note who has which replicas."""
        self._replicas.in_force = view.placement
        if view.oldest_epoch > self._oldest_epoch:
            self._oldest_epoch = view.oldest_epoch
            self._replicas.retire(view.oldest_epoch)

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Queue a dispatch, or reject it by name; take a sibling's share of one that this instance relays."""
        header = frame.header
        if header.kind is _COMBINE and link.peer.role == "expert":
            self.relay.answered(frame)
            return
        if header.kind is _REPLICA and self._sources.fetcher is not None:
            self._sources.fetcher.arrived(link, frame)
            return
        if header.kind is not _DISPATCH:
            self._reject(link, frame, "bad_frame", f"frame kind {header.kind.name} is not for an expert instance")
            return
        try:
            waiting = self._take(link, frame)
        except ValueError as error:
            self._reject(link, frame, "bad_frame", str(error))
            return
        except DispatchError as error:
            code: RejectionCode = "replica_missing" if isinstance(error, ReplicaMissing) else "instance_lost"
            self._reject(link, frame, code, str(error), error.instances)
            return
        if waiting is None:
            frame.release()  # what others compute of it holds the memory
            return
        self._replicas.prime()
        if not self._queues.put(header.layer, waiting, header.rows):
            self._reject(link, frame, "internal", f"{_MAX_WAITING} dispatches wait already", job=waiting.job)
            return
        self._idle.clear()
        self._schedule()

    def _take(self, link: Link, frame: InFrame) -> Waiting | None:
        """Return this instance's share of a dispatch, having forwarded the others'; ``None`` when it has none.

        Raises:
            ValueError: the frame is no dispatch for this model.
            ReplicaMissing: a slot does not hold what the dispatch's epoch says.
            InstanceLost: another instance of this node has a share and is not linked.
        """
        header = frame.header
        hidden, layers = self._config.hidden_size, self._config.num_moe_layers
        names: tuple[str, ...] = (self._instance,)
        if header.flags & Flags.EGATE:
            if self._gate is None:
                raise ValueError("this expert instance has no gates; start it with --gate expert")
            batches = check_ungated(header, frame.payload, hidden=hidden, dtype=self._dtype, num_layers=layers)
            share, names = self._gate.share(frame, batches, self._view(header.epoch))
        else:
            layout = check_dispatch(header, hidden=hidden, dtype=self._dtype, num_layers=layers)
            if header.flags & (Flags.NODE | Flags.FORWARDED):
                share, names = node_share(frame, layout, self._replicas, self._view(header.epoch))
            else:
                share = own_share(frame, layout, self._replicas)
        job = None
        if header.flags & Flags.NODE and names != (self._instance,):
            job = self.relay.begin(link, frame, names)
            if self._instance not in names:
                return None
        return Waiting(link, frame, share, time.perf_counter_ns(), self._replicas.generation, job)

    def _view(self, epoch: int) -> NodeView:
        view = self._views.get(epoch)
        if view is None:
            view = NodeView.of(self._replicas.placement(epoch), self._instance)
            self._views = {known: v for known, v in self._views.items() if known > epoch - _VIEWS_KEPT} | {epoch: view}
        return view

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take a sibling's rejection in, or what expert instances say of replicas."""
        fetcher = self._sources.fetcher
        if isinstance(message, DispatchRejected):
            self.relay.rejected(request_id, message)
        elif isinstance(message, FetchReplica):
            self._offers.ask(link, request_id, message)
        elif isinstance(message, ReplicaRefused) and fetcher is not None:
            fetcher.refused(link, request_id, message)
        elif isinstance(message, ExchangeWay) and link.peer.role == "attention":
            self._pass_on(link, message)
        else:
            log.warning("unexpected_message", peer=link.peer.instance, message=type(message).__name__)

    def _pass_on(self, link: Link, message: ExchangeWay) -> None:
        """Tell the attention nodes heard of here what one of them has chosen; they are not linked to each other."""
        name = link.peer.instance
        news = ExchangeWay(size=message.size, way=message.way, by=name)
        with contextlib.suppress(LinkError):  # it will say something again
            known = self._choosers.get(name)
            if known is None or known.link is not link:
                known = self._choosers[name] = _Chooser(link)
                for other in self._choosers.values():
                    for way in other.said.values():
                        link.post_message(way)
            known.said[news.size] = news
        for other in self._choosers.values():
            if other.link is not link:
                with contextlib.suppress(LinkError):  # it hears the next one
                    other.link.post_message(news)

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Answers to a peer that is gone are dropped when their turn comes; a sibling's share is given up now."""
        log.info("peer_gone", peer=link.peer.instance, problem=str(error))
        name = link.peer.instance
        if (chooser := self._choosers.get(name)) is not None and chooser.link is link:
            del self._choosers[name]
        if self._sources.fetcher is not None:
            self._sources.fetcher.lost(link, error)
        if link.peer.role == "expert" and self.relay.siblings.get(name, link) is link:
            self.relay.siblings.pop(name, None)
            self.relay.lost(name, error.problem)

    def _reject(
        self,
        link: Link,
        frame: InFrame,
        code: RejectionCode,
        problem: str,
        instances: tuple[str, ...] = (),
        *,
        job: RelayJob | None = None,
    ) -> None:
        self.times.rejected += 1
        log.warning("dispatch_rejected", peer=link.peer.instance, code=code, problem=problem)
        request_id = frame.header.request_id
        frame.release()
        if job is not None:
            kind = ReplicaMissing if code == "replica_missing" else InstanceLost
            self.relay.fail(job, kind(f"{self._instance}: {problem}", instances=(self._instance,)))
            return
        message = DispatchRejected(code=code, problem=problem, instances=list(instances))
        self._send(link, request_id, message)

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
        live = []
        for waiting in group:
            if waiting.link.closed or (waiting.job is not None and waiting.job.over):
                waiting.frame.release()
                if waiting.job is not None:
                    self.relay.drop(waiting.job)
            elif waiting.generation == self._replicas.generation or self._still_there(waiting):
                live.append(waiting)
        if live:
            try:
                self._compute.run(layer, live)
            except Exception as error:
                # A bug or a device error: whoever waits is told at once, and the server goes on.
                log.exception("compute_failed", layer=layer, dispatches=len(live))
                for waiting in live:
                    problem = f"the experts of MoE layer {layer} failed: {type(error).__name__}: {error}"
                    self._reject(waiting.link, waiting.frame, "internal", problem, job=waiting.job)
        if len(self._queues):
            self._schedule()
        else:
            self._idle.set()

    def _still_there(self, waiting: Waiting) -> bool:
        """Whether its replicas are those that it was checked against; if not, it is rejected.

        A placement that was loaded meanwhile may have put other experts into its slots.
        """
        header = waiting.frame.header
        try:
            self._replicas.check_own(header.layer, header.epoch, waiting.share.views()[1].numpy())
        except ReplicaMissing as error:
            self._reject(waiting.link, waiting.frame, "replica_missing", str(error), job=waiting.job)
            return False
        return True

    def _reply(self, layer: int, waiting: Waiting, frame: OutFrame, elapsed_ns: int) -> None:
        link, header = waiting.link, waiting.frame.header
        if waiting.job is not None:
            waiting.frame.release()
            self.relay.own_share(waiting.job, frame, elapsed_ns // 1000)
            return
        try:
            link.post(
                frame,
                kind=_COMBINE,
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
                await self.relay.idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Load and serve no more replicas."""
        self.relay.close()
        self._offers.close()
        self._sources.close()
