"""The attention-server's step loop: model, KV cache, batcher, exchange and engine, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import structlog
import torch

from janus.config.options import MAX_DEFAULT_KV_CACHE_BYTES, AttentionOptions
from janus.core.batcher import Batcher, BatcherConfig
from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS
from janus.errors import ConfigError
from janus.exchange.contract import ExpertExchange
from janus.exchange.direct import DirectExchange
from janus.exchange.local import LocalExchange
from janus.messages.control import ClusterView, Identity
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.model.kv_cache import PagedKVCache
from janus.runtime.attention_engine import AttentionEngine, StepNews
from janus.runtime.device import prepare, torch_dtype
from janus.runtime.peers import PeerSet
from janus.transport.link import Link

log = structlog.get_logger()

_MAX_WAITING = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsState:
    """Whether the experts can be reached, in the words of ``/health``."""

    ready: bool
    reason: str
    unreachable: list[str]


class Stepping:
    """Everything that lives on the step loop. ``run`` builds it there; the other methods are called there too."""

    def __init__(
        self,
        *,
        options: AttentionOptions,
        checkpoint: Checkpoint,
        identity: Identity,
        publish: Callable[[StepNews], None],
        on_experts: Callable[[ExpertsState], None],
    ) -> None:
        self._options = options
        self._checkpoint = checkpoint
        self._identity = identity
        self._publish = publish
        self._on_experts = on_experts
        self._view: ClusterView | None = None
        self._direct: DirectExchange | None = None
        self._peers: PeerSet | None = None
        self.engine: AttentionEngine | None = None

    async def run(self) -> None:
        """Load the model and step until cancelled."""
        options, checkpoint = self._options, self._checkpoint
        device, dtype = prepare(options.device, options.threads), torch_dtype(options.dtype)
        config = checkpoint.config
        model = AttentionModel.load(checkpoint, config, dtype, device)
        batcher = Batcher(self._batcher_config())
        kv = PagedKVCache(config, batcher.config.num_blocks, options.block_size, dtype, device)
        exchange = self._exchange(dtype, device)
        engine = self.engine = AttentionEngine(
            model=model,
            kv=kv,
            batcher=batcher,
            exchange=exchange,
            recovery_timeout_s=options.recovery_timeout_s,
            publish=self._publish,
        )
        log.info(
            "model_loaded", bytes_read=checkpoint.bytes_read, kv_blocks=batcher.config.num_blocks, device=str(device)
        )
        self._apply_view()
        self._tell_experts()
        try:
            await engine.run()
        finally:
            await exchange.close()
            if self._peers is not None:
                await self._peers.close("shutting down")

    def on_view(self, view: ClusterView) -> None:
        """Plan with ``view`` from now on."""
        self._view = view
        self._apply_view()

    async def drain(self, timeout_s: float) -> None:
        """Finish what is in flight."""
        if self.engine is not None:
            await self.engine.drain(timeout_s)

    def exchange_times(self) -> dict[str, int]:
        """Sums of ``ExchangeTimes``; empty in monolithic mode. May be read from another thread."""
        return {} if self._direct is None else asdict(self._direct.times)

    def _batcher_config(self) -> BatcherConfig:
        options, config = self._options, self._checkpoint.config
        limit = config.max_position_embeddings
        if options.max_model_len > limit:
            raise ConfigError("--max-model-len", f"{options.max_model_len} exceeds the model's {limit}", "lower it")
        per_block = PagedKVCache.bytes_per_block(config, options.block_size, torch_dtype(options.dtype))
        max_model_len = options.max_model_len or limit
        enough = options.max_running * -(-max_model_len // options.block_size)
        kv_cache_bytes = options.kv_cache_bytes or min(MAX_DEFAULT_KV_CACHE_BYTES, enough * per_block)
        blocks = options.kv_blocks or kv_cache_bytes // per_block
        if blocks < 1:
            raise ConfigError(
                "--kv-cache", f"{kv_cache_bytes} bytes hold no block of {per_block}", f"give at least {per_block}"
            )
        return BatcherConfig(
            max_running=options.max_running,
            token_budget=options.token_budget,
            block_size=options.block_size,
            num_blocks=blocks,
            max_model_len=max_model_len,
            max_waiting=_MAX_WAITING,
        )

    def _exchange(self, dtype: torch.dtype, device: torch.device) -> ExpertExchange[Any]:
        options, config = self._options, self._checkpoint.config
        if options.experts == "local":
            bank = ExpertBank(config, config.num_moe_layers, config.num_experts, dtype, device)
            for layer in range(config.num_moe_layers):
                for expert in range(config.num_experts):
                    bank.load(self._checkpoint, layer, expert, expert)
            return LocalExchange(bank, num_layers=config.num_moe_layers)
        links: dict[str, Link] = {}
        direct = DirectExchange(
            links=links,
            scheduler=SCHEDULERS["static"],
            dtype=dtype,
            dispatch_timeout_s=options.dispatch_timeout_s,
        )
        self._direct = direct
        self._peers = PeerSet(
            role="expert",
            identity=self._identity,
            secret=options.common.secret.encode(),
            transport=options.common.transport,
            handler=direct,
            links=links,
            on_change=self._links_changed,
        )
        return direct

    # -- the view ------------------------------------------------------------------------------------------------

    def _apply_view(self) -> None:
        view, direct, peers = self._view, self._direct, self._peers
        if view is None or direct is None or peers is None:
            return
        peers.update(view.members)
        table, current = view.placement, direct.placement
        if table is None:
            direct.set_placement(None)
        elif current is None or current.epoch != table.epoch:
            direct.set_placement(Placement.from_table(table))
            log.info("placement_in_force", epoch=table.epoch, instances=table.instances)
        self._tell_experts()

    def _links_changed(self) -> None:
        if self._direct is not None:
            self._direct.links_changed()
        self._tell_experts()

    def _tell_experts(self) -> None:
        """Report whether the experts can be reached; nothing before the model is loaded."""
        if self.engine is None:
            return
        direct = self._direct
        if direct is None or direct.ready():
            self._on_experts(ExpertsState(ready=True, reason="", unreachable=[]))
            return
        missing = direct.missing()
        reason = f"not linked to {', '.join(missing)}" if missing else "no placement covers every expert"
        unreachable = self._peers.unreachable() if self._peers is not None else []
        self._on_experts(ExpertsState(ready=False, reason=reason, unreachable=unreachable))
