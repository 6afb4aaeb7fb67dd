"""One step through all layers: attention here, experts wherever they are. On the step loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import torch

from janus.core.step import StepPlan
from janus.exchange.contract import ExpertExchange
from janus.model.attention_model import AttentionModel, StepBatch
from janus.model.kv_cache import PagedKVCache
from janus.runtime.routing_sampler import RoutingSampler
from janus.runtime.step_times import Stopwatch, Turns

#: A step that computes for longer than this lets the loop run between two layers.
_YIELD_EVERY_NS = 20_000_000


class ForwardPass:
    """The model of one attention instance over one exchange. Several steps may be on their way at the same time."""

    def __init__(
        self,
        *,
        model: AttentionModel,
        kv: PagedKVCache,
        exchange: ExpertExchange[Any],
        routing: RoutingSampler,
        turns: Turns,
        clock_ns: Callable[[], int],
    ) -> None:
        """``routing`` is shown what the router chooses; ``turns`` is told when a step does not compute."""
        self._model = model
        self._kv = kv
        self._exchange = exchange
        self._routing = routing
        self._turns = turns
        self._clock_ns = clock_ns
        self._moe_index = model.config.moe_index

    async def run(self, plan: StepPlan, watch: Stopwatch) -> torch.Tensor:
        """Return the logits of the rows that ``plan`` samples, one row each.

        Raises:
            DispatchError: the experts did not answer.
        """
        model, exchange, turns = self._model, self._exchange, self._turns
        shared = model.has_shared_expert
        batch = StepBatch(
            token_ids=plan.token_ids,
            positions=plan.positions,
            slot_mapping=plan.slot_mapping,
            query_start=plan.query_start,
            context_len=plan.context_len,
            block_tables=plan.block_tables,
            sample_rows=plan.sample_rows,
            device=model.device,
        )
        sampled = self._routing.begin(len(plan.token_ids))
        h_TH = model.embed(batch)
        watch.lap("embed_ns")
        yielded_ns = self._clock_ns()
        for layer in range(model.config.num_layers):
            h_TH, x_TH = model.attention(layer, h_TH, batch, self._kv)
            watch.lap("attention_ns")
            moe_layer = self._moe_index.get(layer)
            if moe_layer is None:
                h_TH = h_TH + model.dense_mlp(layer, x_TH)
                watch.lap("dense_ns")
                continue
            weights_TK, ids_TK = (None, None) if exchange.experts_gate else model.route(layer, x_TH)
            if sampled is not None:
                # Where the experts gate, a few rows are gated here too: a row's experts do not depend on its company.
                sampled.add(model.route(layer, sampled.of(x_TH))[1] if ids_TK is None else ids_TK)
            watch.lap("gate_ns")
            receipt = exchange.dispatch(moe_layer, x_TH, ids_TK, weights_TK)
            now_ns = watch.lap("dispatch_ns")
            if shared:
                # While the dispatch is on its way and the experts compute.
                h_TH = h_TH + model.shared_expert(layer, x_TH)
                now_ns = watch.lap("shared_ns")
            turns.pause(now_ns)
            try:
                h_TH = await exchange.combine(receipt, h_TH)
            finally:
                now_ns = watch.lap("combine_ns")
                turns.resume(now_ns)
            if now_ns - yielded_ns > _YIELD_EVERY_NS:
                # A long prefill: links must be answered meanwhile, or peers take us for dead.
                turns.pause(now_ns)
                await asyncio.sleep(0)
                yielded_ns = self._clock_ns()
                turns.resume(yielded_ns)
        logits_RV = model.logits(h_TH, batch)
        if sampled is not None:
            self._routing.keep(sampled)
        watch.lap("logits_ns")
        return logits_RV
