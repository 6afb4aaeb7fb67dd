"""What a gateway reports of its clients: sums, and TPOT by stretches."""

from __future__ import annotations

import pytest

from janus.core.latency import LatencyHistogram
from janus_gateway.traffic import STRETCH_TOKENS, TrafficMeter


def test_a_sequence_is_counted_once_and_its_tokens_all() -> None:
    meter = TrafficMeter()
    meter.arrived(7)
    stretch = meter.first(1, 0.5, 10.0)
    for token in range(1, 10):
        meter.more(stretch, 1, 0.1, 10.0 + 0.1 * token)
    meter.ended(stretch, 10, 10.9)
    report = meter.report()
    assert (report.arrived, report.finished, report.refused) == (1, 1, 0)
    assert (report.prompt_tokens, report.answer_tokens, report.output_tokens) == (7, 10, 10)
    assert (report.firsts, report.first_s) == (1, 0.5)
    assert report.gaps == 9
    assert report.gaps_s == pytest.approx(0.9)
    tpot = LatencyHistogram.of_pairs(report.tpot)
    assert tpot.total == 1
    assert tpot.percentile(50) == pytest.approx(0.1, rel=0.03)
    assert LatencyHistogram.of_pairs(report.ttft).percentile(50) == pytest.approx(0.5, rel=0.03)


def test_a_long_answer_is_heard_of_while_it_runs() -> None:
    meter = TrafficMeter()
    stretch = meter.first(1, 0.1, 0.0)
    for token in range(1, 3 * STRETCH_TOKENS + 1):
        # The second stretch is slow.
        meter.more(stretch, 1, 0.0, 0.01 * token + (1.0 if token > STRETCH_TOKENS else 0.0))
    tpot = LatencyHistogram.of_pairs(meter.report().tpot)
    assert tpot.total == 3
    assert tpot.percentile(100) == pytest.approx(0.01 + 1.0 / STRETCH_TOKENS, rel=0.03)
    meter.ended(stretch, 97, 1.96)
    assert LatencyHistogram.of_pairs(meter.report().tpot).total == 3, "nothing is left to sample"


def test_refusals_are_arrivals_that_found_no_room() -> None:
    meter = TrafficMeter()
    meter.refused()
    assert (meter.report().arrived, meter.report().refused) == (1, 1)


def test_an_answer_of_one_token_has_no_pace() -> None:
    meter = TrafficMeter()
    meter.ended(meter.first(1, 0.2, 5.0), 1, 5.0)
    assert meter.report().tpot == []
    assert meter.report().finished == 1
