"""The attention-server's step loop: model, KV cache, batcher, exchange and engine, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog
import torch

from janus.config.options import AttentionOptions
from janus.core.batcher import Batcher, BatcherConfig
from janus.core.exchange_cost import LinkCost
from janus.core.micro_batches import policy_for
from janus.core.placement import Placement
from janus.exchange.choice import ModeChoice
from janus.exchange.contract import ExpertExchange
from janus.exchange.local import LocalExchange
from janus.exchange.remote import RemoteExchange
from janus.messages.control import ClusterView, Identity, PlacementTable, Refused, RoutingSample
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.model.kernels.scheduling import fastest_scheduler
from janus.model.kv_cache import PagedKVCache
from janus.runtime import garbage
from janus.runtime.attention_engine import AttentionEngine
from janus.runtime.device import prepare, torch_dtype
from janus.runtime.link_meter import LinkMeter
from janus.runtime.listening import listen_as
from janus.runtime.node_links import NodeLinks
from janus.runtime.peers import PeerSet
from janus.runtime.routing_sampler import REPORT_EVERY_S, RoutingSampler
from janus.runtime.step_news import StepNews
from janus_attention_server.experts_watch import ExpertsState, ExpertsWatch
from janus_attention_server.limits import batcher_config
from janus_attention_server.sessions import Sessions

log = structlog.get_logger()

#: How often measurements cross to the control loop: rarely, so that its thread seldom asks for the interpreter lock.
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatching:
    """What heartbeats say of the exchange; see ``Heartbeat``."""

    oldest_epoch: int = 0
    suspects: list[str] = field(default_factory=list)
    in_flight: int = 0


class Stepping:
    """Everything that lives on the step loop. ``run`` builds it there; the other methods are called there too."""

    def __init__(
        self,
        *,
        options: AttentionOptions,
        checkpoint: Checkpoint,
        identity: Identity,
        on_listening: Callable[[int], None],
        on_news: Callable[[list[StepNews]], None],
        on_experts: Callable[[ExpertsState], None],
        on_placement: Callable[[], None],
        on_routing: Callable[[RoutingSample], None],
    ) -> None:
        """The callbacks are called on the step loop, and carry over to control. ``on_placement``: another placement is
        planned with.
        """
        self._options = options
        self._checkpoint = checkpoint
        self._identity = identity
        self._on_listening = on_listening
        self._on_news = on_news
        self._on_routing = on_routing
        rate = options.routing_sample_rate * REPORT_EVERY_S
        # Where the experts gate, sampled rows are gated here as well, which costs as much as several without.
        self._routing = RoutingSampler(round(rate if options.gate == "attention" else rate / 8))
        self._routing_due = False
        self._on_placement = on_placement
        self._sessions = Sessions(lambda: self.engine)
        self._unreported: list[StepNews] = []
        self._draining = False
        self._view: ClusterView | None = None
        self._remote: RemoteExchange | None = None
        self._peers: PeerSet | None = None
        self._node: NodeLinks | None = None
        self._meter: LinkMeter | None = None
        self._port = 0
        self._experts = ExpertsWatch(
            recovery_timeout_s=options.recovery_timeout_s, tell=on_experts, unreachable=self._unreachable
        )
        self.engine: AttentionEngine | None = None

    async def run(self) -> None:
        """Listen, load the model, and step until cancelled."""
        listener = await listen_as(
            self._options.common, self._identity, admit=self._admit, handler_factory=self._sessions.open
        )
        try:
            self._on_listening(listener.port)
            self._port = listener.port
            batcher = Batcher(batcher_config(self._options, self._checkpoint.config))
            # In another thread: gateways can connect meanwhile, and are told that the model is being loaded.
            model, kv, exchange = await asyncio.to_thread(self._load, batcher.config)
            self.engine = AttentionEngine(
                model=model,
                kv=kv,
                batcher=batcher,
                exchange=exchange,
                micro_batches=policy_for(self._options.micro_batches),
                recovery_timeout_s=self._options.recovery_timeout_s,
                publish=self._publish,
                routing=self._routing,
            )
            await self._dial()
            garbage.settle()
            try:
                await self.engine.run()
            finally:
                self._experts.close()
                await exchange.close()
                if self._meter is not None:
                    await self._meter.close()
                if self._peers is not None:
                    await self._peers.close("shutting down")
                if self._node is not None:
                    await self._node.close("shutting down")
        finally:
            await listener.close()
            await self._sessions.senders.close()

    def _load(self, limits: BatcherConfig) -> tuple[AttentionModel, PagedKVCache, ExpertExchange[Any]]:
        options, checkpoint, config = self._options, self._checkpoint, self._checkpoint.config
        device, dtype = prepare(options.device, options.threads), torch_dtype(options.dtype)
        model = AttentionModel.load(checkpoint, config, dtype, device)
        kv = PagedKVCache(config, limits.num_blocks, limits.block_size, dtype, device)
        exchange: ExpertExchange[Any]
        if options.experts == "local":
            exchange = self._local_exchange(dtype, device)
        else:
            if options.exchange != "direct":
                self._node = NodeLinks(identity=self._identity, secret=options.common.secret.encode())
            exchange = self._remote = RemoteExchange(
                own=self._identity.instance,
                links={},
                siblings=self._node.links if self._node is not None else {},
                scheduler=fastest_scheduler(options.scheduler),
                scheduler_name=options.scheduler,
                choice=ModeChoice(options.exchange),
                experts_gate=options.gate == "expert",
                dtype=dtype,
                device=device,
                dispatch_timeout_s=options.dispatch_timeout_s,
            )
        log.info("model_loaded", bytes_read=checkpoint.bytes_read, kv_blocks=limits.num_blocks, device=str(device))
        return model, kv, exchange

    def _publish(self, news: StepNews) -> None:
        """Send tokens at once; what is only measured goes to the control loop a few times per second."""
        self._sessions.deliver(news.deltas, kv_usage=news.stats.kv_usage)
        if not self._unreported:
            asyncio.get_running_loop().call_later(_REPORT_EVERY_S, self._report)
        self._unreported.append(news)
        if self._routing.pending and not self._routing_due:
            self._routing_due = True
            asyncio.get_running_loop().call_later(REPORT_EVERY_S, self._report_routing)

    def _report(self) -> None:
        news, self._unreported = self._unreported, []
        self._on_news(news)

    def _report_routing(self) -> None:
        self._routing_due = False
        if (sample := self._routing.take()) is not None:
            self._on_routing(sample)

    def _admit(self, identity: Identity) -> Refused | None:
        if identity.role not in ("gateway", "tool"):
            return Refused(code="wrong_role", problem=f"attention instances take gateways, not {identity.role}")
        if self._draining:
            return Refused(code="draining", problem="this attention instance is shutting down")
        return None

    def on_view(self, view: ClusterView) -> None:
        """Plan with ``view`` from now on."""
        self._view = view
        self._apply_view()

    async def drain(self, timeout_s: float) -> None:
        """Take no new gateways or requests, finish what is in flight."""
        self._draining = True
        if self.engine is not None:
            await self.engine.drain(timeout_s)
        await self._sessions.flush(timeout_s)
        if self._unreported:
            self._report()

    def placement(self) -> PlacementTable | None:
        """The placement that dispatches are planned with. May be called from another thread."""
        placement = None if self._remote is None else self._remote.placement
        return None if placement is None else placement.to_table()

    def dispatching(self) -> Dispatching:
        """What the exchange is doing. May be called from another thread."""
        remote = self._remote
        if remote is None:
            return Dispatching()
        return Dispatching(
            oldest_epoch=remote.oldest_epoch(), suspects=list(remote.suspects()), in_flight=remote.in_flight()
        )

    def exchange_times(self) -> dict[str, int]:
        """Sums of ``ExchangeTimes``; empty in monolithic mode. May be read from another thread."""
        return {} if self._remote is None else asdict(self._remote.times)

    def link_costs(self) -> dict[str, LinkCost]:
        """What the cost model takes links to cost, by kind: "inter" (between nodes) and "intra" (within this one)."""
        remote = self._remote
        return {} if remote is None else {"inter": remote.choice.inter, "intra": remote.choice.intra}

    def _local_exchange(self, dtype: torch.dtype, device: torch.device) -> LocalExchange:
        config = self._checkpoint.config
        bank = ExpertBank(config, config.num_moe_layers, config.num_experts, dtype, device)
        for layer in range(config.num_moe_layers):
            for expert in range(config.num_experts):
                bank.load(self._checkpoint, layer, expert, expert)
        return LocalExchange(bank, num_layers=config.num_moe_layers)

    async def _dial(self) -> None:
        """Begin to follow the view, now that there is a model to serve."""
        remote = self._remote
        if remote is not None:
            node = self._node
            if node is not None:
                self._meter = LinkMeter(remote)
                await node.open(self._port, lambda: remote, on_change=self._links_changed)
            self._peers = PeerSet(
                role="expert",
                identity=self._identity,
                secret=self._options.common.secret.encode(),
                transport=self._options.common.transport,
                handler=remote,
                links=remote.links,
                on_change=self._links_changed,
                pool=node.pool if node is not None else None,
            )
            self._apply_view()
        self._look_at_experts()

    # -- the view ------------------------------------------------------------------------------------------------

    def _apply_view(self) -> None:
        view, remote, peers = self._view, self._remote, self._peers
        if view is None or remote is None or peers is None:
            return
        peers.update(view.members)
        if self._node is not None:
            self._node.update(view.members)
        remote.set_sources({m.instance: m.node for m in view.members if m.role == "attention" and m.state != "failed"})
        table, current = view.placement, remote.placement
        # A view without a placement takes nothing away: a controller that has restarted has none yet, and when an
        # instance is lost its link says so.
        if table is None:
            log.info("view_without_placement", epoch_kept=current.epoch if current else 0)
        elif current is None or current.epoch != table.epoch:
            remote.set_placement(Placement.from_table(table))
            log.info("placement_in_force", epoch=table.epoch, instances=table.instances)
            self._on_placement()
        self._look_at_experts()

    def _links_changed(self) -> None:
        if self._remote is not None:
            self._remote.links_changed()
            if self._meter is not None:
                self._meter.links_changed()
        self._look_at_experts()

    def _look_at_experts(self) -> None:
        if self.engine is not None:  # nothing is told before the model is loaded
            self._experts.look(self._remote)

    def _unreachable(self) -> list[str]:
        return self._peers.unreachable() if self._peers is not None else []
