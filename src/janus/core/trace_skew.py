"""How uneven a trace is, layer by layer: what ``janus trace show`` prints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus.core.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSkew:
    """One MoE layer. Shares are of all activations in it, by the tokens' weights."""

    layer: int
    #: The expert that is chosen most, and its share.
    busiest: int
    busiest_share: float
    #: Share of the tenth of the experts (at least one) that is chosen most; 0.1 when all are alike.
    top_tenth_share: float
    #: Experts that were chosen at all.
    used: int
    #: Fewest experts that make up half of all activations.
    half: int
    #: Activations of the busiest expert over the mean: 1 when all are alike.
    imbalance: float


def layer_skews(trace: Trace) -> list[LayerSkew]:
    """Return the skew of each layer; none for a trace without tokens."""
    if not trace.tokens:
        return []
    skews = []
    for layer, counts in enumerate(trace.counts()):
        shares = np.sort(counts)[::-1] / counts.sum()
        skews.append(
            LayerSkew(
                layer=layer,
                busiest=int(counts.argmax()),
                busiest_share=float(shares[0]),
                top_tenth_share=float(shares[: max(1, round(len(shares) / 10))].sum()),
                used=int((counts > 0).sum()),
                half=int(np.searchsorted(shares.cumsum(), 0.5 - 1e-12)) + 1,
                imbalance=float(shares[0] * len(shares)),
            )
        )
    return skews
