"""What cannot wait for the next interval: an SLO that is missed, a queue that grows, a load that will be too much."""

from __future__ import annotations

from dataclasses import dataclass

from janus.core.scaling import wording
from janus.core.scaling.contract import Counts, Observation, Reason, ScalingConfig
from janus.core.scaling.target import Outlook, bears


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Why, and the least that feedback alone asks for; a model may ask for more."""

    reason: Reason
    why: str
    least: Counts


def find_need(seen: Observation, config: ScalingConfig, outlook: Outlook) -> Need | None:
    """Return the most urgent need. ``outlook``: on the load as it is, without headroom."""
    present = seen.present
    known = seen.tpot_samples >= config.samples and seen.tpot_tail_s is not None
    if known and seen.tpot_tail_s is not None and seen.tpot_tail_s > config.slo_tpot_s:
        why = wording.slower_than("TPOT", seen.tpot_tail_s, config.slo_tpot_s, seen, config)
        return Need(reason=Reason.SLO, why=why, least=one_more(seen, config, outlook))
    if seen.queued > config.queue * max(1.0, seen.running) or (seen.refused and full(seen, config)):
        refused = f" and {seen.refused} were refused" if seen.refused else ""
        why = f"{seen.queued:.3g} streams wait{refused} {wording.load(seen)}"
        # As if those that wait ran too; what keeps them waiting is room for streams, or KV cache: attention's.
        share = min(2.0, 1 + seen.queued / max(1.0, seen.running))
        more = max(1, round(present.attention * (share - 1)))
        return Need(reason=Reason.QUEUE, why=why, least=present.plus(attention=more))
    ttft_s = seen.ttft_tail_s
    if config.slo_ttft_s and ttft_s is not None and seen.tpot_samples >= config.samples and ttft_s > config.slo_ttft_s:
        why = wording.slower_than("TTFT", ttft_s, config.slo_ttft_s, seen, config)
        return Need(reason=Reason.SLO, why=why, least=present.plus(attention=1))
    if not bears(outlook, present):
        why = f"the load will lead to more than the SLO of {wording.seconds(config.slo_tpot_s)} {wording.load(seen)}"
        return Need(reason=Reason.LOAD, why=why, least=present)
    return None


def full(seen: Observation, config: ScalingConfig) -> bool:
    """Whether the attention instances have no room for more streams; else gateways refuse for limits of their own."""
    room = seen.streams_most * seen.present.attention
    waits = seen.queued > config.queue / 2 * max(1.0, seen.running)
    return waits or seen.kv_usage >= config.kv_usage or seen.running >= config.streams * room


def one_more(seen: Observation, config: ScalingConfig, outlook: Outlook) -> Counts:
    """One instance more, of the role that makes a step shorter; of the other where that one is at its bound."""
    present = seen.present
    choices = [
        more for more in (present.plus(attention=1), present.plus(experts=1)) if present.experts or not more.experts
    ]
    allowed = [more for more in choices if config.high.covers(more)] or choices
    strains = {more: outlook.strain(more) for more in allowed}
    if len(set(strains.values())) < len(strains) and seen.expert_share is not None:
        return allowed[1 if seen.expert_share > 0.5 else 0]
    return min(allowed, key=lambda more: strains[more])
