"""Which instances `janus up` plans, as tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus.cluster.environment import child_environment, fixed_options
from janus.cluster.instances import plan_instances, share_threads
from janus.config import UpOptions
from janus.config.scaling import ScalingOptions
from janus.errors import ConfigError


def plan(options: UpOptions, **fixed: set[str]) -> dict[str, dict[str, object]]:
    return {spec.name: spec.arguments for spec in plan_instances(options, cores=8, fixed=dict(fixed))}


def test_a_cluster_of_two_attention_and_three_expert_instances() -> None:
    arguments = plan(UpOptions(model=Path("/m"), attention=2, experts=3, port=9000, dtype="bfloat16"))
    assert list(arguments) == [
        "controller-0",
        "gateway-0",
        "attention-0",
        "attention-1",
        "expert-0",
        "expert-1",
        "expert-2",
    ]
    assert arguments["controller-0"] == {
        "model": "/m",
        "expect_attention": 2,
        "expect_experts": 3,
        "expect_gateways": 1,
        "slots_per_instance": 0,
        "placement": "activation-aware",
        "activations": "",
    }
    assert arguments["gateway-0"]["http_port"] == 9000
    assert arguments["attention-1"]["experts"] == "remote"
    assert arguments["expert-2"]["dtype"] == "bfloat16"


def test_gateways_are_alike_and_share_the_socket_that_is_handed_down() -> None:
    specs = plan_instances(UpOptions(model=Path("/m"), gateways=2), cores=8, fixed={})
    first, second = (spec.listening_on(7) for spec in specs if spec.role == "gateway")
    assert (first.name, second.name) == ("gateway-0", "gateway-1")
    assert first.arguments == second.arguments
    assert first.arguments["http_fd"] == 7
    assert first.fds == (7,)
    assert specs[0].arguments["expect_gateways"] == 2


def test_a_monolithic_cluster_has_no_expert_instances() -> None:
    arguments = plan(UpOptions(model=Path("/m"), attention=1, experts=3, monolithic=True))
    assert list(arguments) == ["controller-0", "gateway-0", "attention-0"]
    assert arguments["controller-0"]["expect_experts"] == 0
    assert arguments["attention-0"]["experts"] == "local"


def test_the_controller_is_told_how_to_scale_where_something_does() -> None:
    scaling = ScalingOptions(autoscale="dry-run", slo_tpot_s=0.15, max_experts=5)
    arguments = plan(UpOptions(model=Path("/m"), scaling=scaling))["controller-0"]
    assert arguments["autoscale"] == "dry-run"
    assert arguments["slo_tpot"] == 0.15
    assert arguments["max_experts"] == 5
    assert arguments["scale_interval"] == 60.0
    assert "scale_command" not in arguments
    assert "hardware" not in arguments
    assert "slo_tpot" not in plan(UpOptions(model=Path("/m")))["controller-0"]
    with pytest.raises(ConfigError, match="--max-experts: 5 is below the 6 that --experts starts with"):
        UpOptions(model=Path("/m"), experts=6, scaling=scaling)
    with pytest.raises(ConfigError, match="--scale-command"):
        UpOptions(model=Path("/m"), scaling=ScalingOptions(scale_command="scale {attention} {experts}"))


def test_what_file_or_environment_set_is_left_to_them() -> None:
    fixed = fixed_options({"JANUS_ATTENTION_THREADS": "3"}, {"expert": {"dtype": "bfloat16"}})
    assert fixed["attention"] == {"threads"}
    assert fixed["expert"] == {"dtype"}
    arguments = plan(UpOptions(model=Path("/m")), **fixed)
    assert "threads" not in arguments["attention-0"]
    assert "dtype" not in arguments["expert-1"]
    assert "dtype" in arguments["attention-0"]


@pytest.mark.parametrize(
    ("cores", "attention", "experts", "wanted", "expected"),
    [(2, 1, 2, 0, (2, 1)), (2, 1, 3, 0, (2, 1)), (16, 2, 4, 0, (8, 4)), (2, 1, 0, 0, (2, 2)), (8, 1, 2, 3, (3, 3))],
)
def test_threads_are_shared_within_a_pool(
    cores: int, attention: int, experts: int, wanted: int, expected: tuple[int, int]
) -> None:
    assert share_threads(cores, attention=attention, experts=experts, wanted=wanted) == expected


def test_children_wait_without_spinning_unless_the_user_says_otherwise() -> None:
    environ = child_environment("expert", 4, secret="s" * 8, base={"HOME": "/h", "KMP_BLOCKTIME": "10"})
    assert environ["OMP_NUM_THREADS"] == "4"
    assert environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environ["KMP_BLOCKTIME"] == "10"
    assert environ["JANUS_SECRET"] == "s" * 8
    assert child_environment("gateway", 4, secret="s" * 8, base={})["OMP_NUM_THREADS"] == "1"
