"""Which instances `janus up` plans, as tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus.cluster.environment import child_environment, fixed_options
from janus.cluster.instances import plan_instances, share_threads
from janus.config import AttentionOptions, ControllerOptions, ExpertOptions, GatewayOptions, UpOptions
from janus.config.fields import choices_of, option_fields
from janus.config.overrides import overrides
from janus.config.scaling import ScalingOptions
from janus.errors import ConfigError

SERVERS: dict[str, type] = {
    cls.SERVICE: cls for cls in (GatewayOptions, AttentionOptions, ExpertOptions, ControllerOptions)
}
#: What every instance is given.
PASSED_ON = {"transport": "ucx", "drain_timeout": 10.0, "log_level": "info", "log_format": "console"}


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
        **PASSED_ON,
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


def test_what_is_passed_on_to_all_gives_way_to_file_and_environment_too() -> None:
    fixed = fixed_options({"JANUS_EXPERT_LOG_LEVEL": "debug"}, {"common": {"log_format": "json"}})
    arguments = plan(UpOptions(model=Path("/m"), log_level="error", transport="tcp"), **fixed)
    assert "log_level" not in arguments["expert-0"]
    assert arguments["gateway-0"]["log_level"] == "error"
    for given in arguments.values():
        assert "log_format" not in given
        assert given["transport"] == "tcp"


def test_any_option_of_a_server_can_be_set_for_all_of_its_role() -> None:
    said = (
        "expert.load-rate=10MiB",
        "expert.speed=2",
        "attention.max_running=8",
        "attention.threads=3",
        "attention.dispatch-timeout=150ms",
        "controller.state-dir=/kept",
        "gateway.log-level=debug",
        "attention.max-running=16",
    )
    specs = plan_instances(UpOptions(model=Path("/m"), set=said), cores=8, fixed={"attention": {"max_running"}})
    arguments = {spec.name: spec.arguments for spec in specs}
    for expert in ("expert-0", "expert-1"):
        assert (arguments[expert]["load_rate"], arguments[expert]["speed"]) == (10 << 20, 2.0)
    # Said last, and before what the environment or the file says.
    assert arguments["attention-0"]["max_running"] == 16
    assert arguments["attention-0"]["dispatch_timeout"] == 0.15
    assert (arguments["attention-0"]["threads"], specs[2].threads) == (3, 3)
    assert arguments["controller-0"]["state_dir"] == "/kept"
    assert (arguments["gateway-0"]["log_level"], arguments["expert-0"]["log_level"]) == ("debug", "info")


@pytest.mark.parametrize("role", SERVERS)
def test_every_option_of_every_server_can_be_set_or_says_what_to_do_instead(role: str) -> None:
    """So that none is forgotten: what ``janus up`` starts can be given whatever it would take by itself."""
    cls = SERVERS[role]
    for item in option_fields(cls):
        if item.name in getattr(cls, "HIDDEN", frozenset()):
            continue
        value = choices_of(item.annotation)[0] if choices_of(item.annotation) else str(item.info.minimum or 1)
        try:
            found = overrides([f"{role}.{item.key.replace('_', '-')}={value}"])
        except ConfigError as error:
            assert item.info.secret or "is for janus up to give" in error.problem, str(error)
        else:
            assert list(found[role]) == [item.key]


@pytest.mark.parametrize(
    ("said", "field", "words"),
    [
        ("load-rate=1", "--set", "expert.load-rate=10MiB"),
        ("expert.load-rate", "--set", "is not ROLE.OPTION=VALUE"),
        ("experts.load-rate=1", "--set experts.load-rate", "did you mean expert?"),
        ("expert.loadrate=1", "--set expert.loadrate", "did you mean load-rate?"),
        ("expert.load-rate=fast", "--set expert.load-rate", "a size such as 512MiB"),
        ("expert.load-source=ram", "--set expert.load-source", "auto, disk, peer"),
        ("attention.max-running=0", "--set attention.max-running", "at least 1"),
        ("gateway.http-port=1", "--set gateway.http-port", "use --port"),
        ("controller.expect-experts=3", "--set controller.expect-experts", "use --experts"),
        ("gateway.api-key=sk-1", "--set gateway.api-key", "environment"),
        ("expert.name=mine", "--set expert.name", "leave it out"),
    ],
)
def test_a_mistake_in_what_is_set_is_named(said: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UpOptions(model=Path("/m"), set=(said,))
    assert caught.value.field == field
    assert words in str(caught.value)


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
