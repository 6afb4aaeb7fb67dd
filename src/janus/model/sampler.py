"""Choosing the next token of each row: penalties, temperature, top-k, top-p, min-p, and log-probabilities.

Every decision about a row depends on that row alone, and its random number is a pure function of (seed, output
position): a request that is preempted, resumed elsewhere or batched with others draws the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from janus.core.request import SamplingView
from janus.messages.control import TokenLogprob
from janus.model.kernels.library import DRAW_DTYPE, Library, load_library

#: Enough alternatives for a usual top_p; rows whose mass lies wider are sorted in full.
_TOP_CANDIDATES = 512

_U64 = np.uint64
_MASK32 = _U64(0xFFFFFFFF)


def sample(logits_RV: torch.Tensor, rows: Sequence[SamplingView]) -> tuple[list[int], list[TokenLogprob | None]]:
    """Choose one token per row.

    Order of operations (that of transformers): repetition, presence and frequency penalty, suppressed tokens, then
    temperature, top-k, top-p, min-p. ``temperature == 0`` is greedy: the first of the largest logits. Log-probabilities
    are those of the unmodified distribution.

    Args:
        logits_RV: f32 [R, vocab]; not changed.
        rows: R views, in the order of the rows.

    Returns:
        Token ids, and per row the ``TokenLogprob`` where ``params.logprobs`` asks for one, else None.
    """
    adjusted = _adjust(logits_RV, rows)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    library = load_library() if adjusted.device.type == "cpu" and adjusted.dtype == torch.float32 else None
    if library is None:
        chosen = _choose_torch(adjusted, rows, drawn)
    else:
        chosen = _choose_kernels(library, adjusted.contiguous(), rows, drawn)
    return chosen, _logprobs(logits_RV, rows, chosen)


def _choose_torch(logits: torch.Tensor, rows: Sequence[SamplingView], drawn: list[int]) -> list[int]:
    ids = torch.argmax(logits, dim=-1)
    if drawn:
        ids[drawn] = _draw(logits if len(drawn) == len(rows) else logits[drawn], [rows[index] for index in drawn])
    chosen: list[int] = ids.tolist()
    return chosen


def _choose_kernels(
    library: Library, logits: torch.Tensor, rows: Sequence[SamplingView], drawn: list[int]
) -> list[int]:
    chosen: list[int] = library.argmax(logits).tolist() if len(drawn) < len(rows) else [0] * len(rows)
    if drawn:
        views = [rows[index] for index in drawn]
        draws = np.empty(len(drawn), dtype=DRAW_DTYPE)
        for name in ("temperature", "top_p", "min_p", "top_k"):
            draws[name] = [getattr(view.params, name) for view in views]
        draws["uniform"] = uniforms([view.seed for view in views], [view.position for view in views])
        picked = library.draw(logits, np.array(drawn, dtype=np.int64), draws)
        for index, token in zip(drawn, picked.tolist(), strict=True):
            chosen[index] = token
    return chosen


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) per (seed, position): Philox4x32-10 with the seed as key, the position as counter.

    Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Computed for all rows at once; 53 bits.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=_U64)
    k0, k1 = key & _MASK32, key >> _U64(32)
    counter = np.array(positions, dtype=_U64)
    c0, c1 = counter & _MASK32, counter >> _U64(32)
    c2 = c3 = np.zeros_like(c0)
    for _ in range(10):
        p0, p1 = c0 * _U64(0xD2511F53), c2 * _U64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _U64(32)) ^ c1 ^ k0, p1 & _MASK32, (p0 >> _U64(32)) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _U64(0x9E3779B9)) & _MASK32, (k1 + _U64(0xBB67AE85)) & _MASK32
    bits = ((c0 << _U64(32)) | c1) >> _U64(11)
    return bits.astype(np.float64) * 2.0**-53


def _adjust(logits: torch.Tensor, rows: Sequence[SamplingView]) -> torch.Tensor:
    """Apply penalties and suppress tokens; returns ``logits`` itself when no row needs either."""
    adjusted = logits
    for index, row in enumerate(rows):
        params, suppressed = row.params, row.suppressed_ids
        penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
        if params.repetition_penalty == 1 and not penalised and not suppressed:
            continue
        if adjusted is logits:
            adjusted = logits.clone()
        line = adjusted[index]
        if params.repetition_penalty != 1:
            seen = torch.cat((_prompt_ids(row, line.device), _tensor(row.output_ids, line.device)))
            values = line[seen]
            line[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        if penalised and row.output_ids:
            ids, counts = torch.unique(_tensor(row.output_ids, line.device), return_counts=True)
            line[ids] -= params.presence_penalty + params.frequency_penalty * counts.to(line.dtype)
        if suppressed:
            line[_tensor(sorted(suppressed), line.device)] = -torch.inf
    return adjusted


def _draw(logits: torch.Tensor, rows: Sequence[SamplingView]) -> torch.Tensor:
    """Sample one id per row by inverting the cumulative distribution at the row's uniform."""
    temperature = logits.new_tensor([row.params.temperature for row in rows])
    scaled = logits / temperature[:, None]
    u = torch.from_numpy(uniforms([row.seed for row in rows], [row.position for row in rows])).to(logits.device)
    # Whether a row is drawn in vocabulary order or in order of probability must depend on that row alone.
    ranked = [i for i, row in enumerate(rows) if row.params.top_k > 0 or row.params.top_p < 1 or row.params.min_p > 0]
    if not ranked:
        return _invert(torch.softmax(scaled, dim=-1), u)
    picked = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    plain = [i for i in range(len(rows)) if i not in set(ranked)]
    if plain:
        picked[plain] = _invert(torch.softmax(scaled[plain], dim=-1), u[plain])
    picked[ranked] = _draw_ranked(scaled[ranked], u[ranked], [rows[i] for i in ranked])
    return picked


def _draw_ranked(scaled: torch.Tensor, u: torch.Tensor, rows: Sequence[SamplingView]) -> torch.Tensor:
    vocab = scaled.shape[1]
    top_k = torch.tensor([min(row.params.top_k or vocab, vocab) for row in rows], device=scaled.device)[:, None]
    top_p = scaled.new_tensor([row.params.top_p for row in rows], dtype=torch.float64)[:, None]
    min_p = scaled.new_tensor([row.params.min_p for row in rows], dtype=torch.float64)[:, None]
    count = min(vocab, max(_TOP_CANDIDATES, *(row.params.top_k for row in rows)))
    total = torch.logsumexp(scaled.double(), dim=-1, keepdim=True)
    values, ids = torch.topk(scaled, count, dim=-1)
    probabilities = torch.exp(values.double() - total)
    within = torch.arange(count, device=scaled.device) < top_k
    reached = (probabilities.sum(dim=-1, keepdim=True) >= top_p) | (top_k <= count)
    if count < vocab and not bool(reached.all()):
        values, ids = torch.sort(scaled, dim=-1, descending=True)
        probabilities = torch.exp(values.double() - total)
        within = torch.arange(vocab, device=scaled.device) < top_k
    kept = torch.where(within, probabilities, 0.0)
    # Only a row with its own top_k is cut off there; the others' candidates keep their share of the whole vocabulary.
    kept = torch.where(top_k < vocab, kept / kept.sum(dim=-1, keepdim=True), kept)
    before = kept.cumsum(dim=-1) - kept
    kept = torch.where((before < top_p) & (kept >= min_p * kept[:, :1]), kept, 0.0)
    return ids.gather(1, _invert(kept, u)[:, None])[:, 0]


def _invert(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return, per row, the first index whose cumulative weight exceeds ``u`` times the row's total weight."""
    cumulative = weights.to(torch.float64).cumsum(dim=-1)
    target = u[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)
    # u < 1, so the target lies below the total, but rounding may put it there: then the last index with weight wins.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(index, last)[:, 0]


def _logprobs(logits: torch.Tensor, rows: Sequence[SamplingView], chosen: list[int]) -> list[TokenLogprob | None]:
    wanted = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
    result: list[TokenLogprob | None] = [None] * len(rows)
    if not wanted:
        return result
    logprobs = torch.log_softmax(logits[wanted], dim=-1)
    most = max(rows[index].params.logprobs or 0 for index in wanted)
    top = torch.topk(logprobs, min(most, logits.shape[1]), dim=-1)
    for line, index in enumerate(wanted):
        count = rows[index].params.logprobs or 0
        result[index] = TokenLogprob(
            logprob=float(logprobs[line, chosen[index]]),
            top_ids=top.indices[line, :count].tolist(),
            top_logprobs=top.values[line, :count].tolist(),
        )
    return result


@lru_cache(maxsize=512)
def _prompt_ids(row: SamplingView, device: torch.device) -> torch.Tensor:
    """The prompt's distinct ids; a view is the same object in every step of its request."""
    distinct: torch.Tensor = torch.unique(_tensor(row.prompt_ids, device))
    return distinct


def _tensor(ids: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=device)
