"""What a result of the comparison keeps is enough to simulate its points again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.simulator import observed, profiles
from benchmarks.simulator.comparing import rows
from benchmarks.simulator.observed import Observed, Seen, table_of
from benchmarks.simulator.points import POINTS, ModelName
from benchmarks.written import as_json

from janus.core.planning.routing import synthetic_routing
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError
from tests.simulation.clusters import MODEL
from tests.simulation.clusters import ONE_HOST as PUBLISHED

#: A measured one may state numbers without where they come from.
ONE_HOST = replace(PUBLISHED, kind="measured")
SIZES: dict[ModelName, ModelSizes] = {"tiny": MODEL, "large": MODEL}
POINT = next(point for point in POINTS if point.cluster.attention == 2 and point.streams)


@pytest.fixture
def seen() -> Observed:
    cluster = POINT.cluster
    return Observed(
        cluster=cluster,
        sizes=MODEL,
        seen=(Seen(point=POINT, tpot_s=0.02, ttft_s=0.1, tokens_per_s=500, others_cores=0.1, runs_tpot_s=(0.02,)),),
        a_max=table_of(cluster, MODEL, synthetic_routing(MODEL.experts, MODEL.top_k, 256, popularity=1.0)),
    )


def result_file(seen: Observed, path: Path, **more: Any) -> Path:
    given = profiles.Profiles(profile=ONE_HOST, bare=profiles.without_host(ONE_HOST))
    result = {"points": rows([seen], given, print), "a_max": observed.kept_tables([seen])}
    path.write_text(as_json(result | more), encoding="utf-8")
    return path


def test_points_are_read_as_they_were_seen(seen: Observed, tmp_path: Path) -> None:
    (found,) = observed.read(result_file(seen, tmp_path / "result.json"), SIZES)
    assert (found.cluster, found.seen) == (seen.cluster, seen.seen)
    np.testing.assert_allclose(found.a_max.mean, seen.a_max.mean, atol=1e-4)
    assert found.a_max.slots == seen.a_max.slots


def test_a_point_is_simulated_again_to_the_same_figures(seen: Observed, tmp_path: Path) -> None:
    given = profiles.Profiles(profile=ONE_HOST, bare=profiles.without_host(ONE_HOST))
    path = result_file(seen, tmp_path / "result.json", **given.kept())
    again = rows(observed.read(path, SIZES), profiles.kept_in(path), print)
    before = json.loads(path.read_text())["points"]
    assert [row["point"] for row in again] == [row["point"] for row in before] == [POINT.name]
    assert again[0]["tpot_error"] == pytest.approx(before[0]["tpot_error"], abs=2e-3)
    # Two attention instances on one host: without it they would not wait.
    assert again[0]["bare_tpot_error"] < again[0]["tpot_error"]


def test_a_file_without_its_routing_is_taken_to_be_even_and_one_without_its_profile_asks_for_one(
    seen: Observed, tmp_path: Path
) -> None:
    path = result_file(seen, tmp_path / "result.json", a_max=[])
    (found,) = observed.read(path, SIZES)
    even = table_of(POINT.cluster, MODEL, synthetic_routing(MODEL.experts, MODEL.top_k, 1024))
    np.testing.assert_allclose(found.a_max.mean, even.mean)
    assert observed.read(path, SIZES, only="nothing") == []
    with pytest.raises(ConfigError, match="name one that was measured there"):
        profiles.kept_in(path)


def test_what_was_recorded_can_be_read() -> None:
    recorded = Path(__file__).parents[2] / "benchmarks" / "results" / "simulator.json"
    found = observed.read(recorded, SIZES)
    assert [one.point for each in found for one in each.seen] == list(POINTS)
