"""Dispatch and combine: how one MoE layer's activations reach the experts, and how their results come back."""

from janus.exchange.contract import ExpertExchange, Receipt

__all__ = ["ExpertExchange", "Receipt"]
