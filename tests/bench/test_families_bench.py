"""The benchmark of model families has one checkpoint of each, of about one size, and its result says what it is of."""

from __future__ import annotations

import argparse

import pytest
from benchmarks.serving.families import result_of
from benchmarks.serving.family_checkpoints import SETTINGS, family_config

from janus.model.families import FAMILIES
from janus.model.inventory import parts_of


def test_every_family_is_measured() -> None:
    assert set(SETTINGS) == set(FAMILIES)


@pytest.mark.parametrize("family", SETTINGS)
def test_checkpoints_are_of_about_one_size(family: str) -> None:
    config = family_config(family)
    assert (config.num_experts, config.moe_intermediate_size, config.top_k) == (32, 256, 4)
    assert 75e6 < sum(part.parameters for part in parts_of(config)) < 110e6


def test_the_result_has_ratios_and_latencies_by_family_and_batch() -> None:
    each = {
        "vs_transformers": {"8": 2.0},
        "tpot_ms": {"1A1E": {"8": 5.0}, "transformers": {"8": 10.0}},
        "output_tokens_per_s": {"1A1E": {"8": 1600.0}, "transformers": {"8": 800.0}},
        "cells": [{"others_cores": 0.01}, {"others_cores": 0.03}],
    }
    given = argparse.Namespace(dtype="bfloat16", output_tokens=64, rounds=3)
    result = result_of({"olmoe": each}, given, cores=2)
    assert result["vs_transformers"] == {"olmoe": {"8": 2.0}}
    assert result["tpot_ms"] == {"olmoe": {"8": 5.0}}
    assert result["load"] == "Others used 0.02 cores in the median (at most 0.03)."
    assert all(result[key] for key in ("command", "hardware", "commit", "date"))
