"""Scenarios are read strictly: what is wrong is told by its field, with what to do about it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.chaos.files import find, load_scenario, parse, shipped
from janus.chaos.scenario import ROLES, Step
from janus.chaos.suite import up_options
from janus.errors import ConfigError

GOOD = """
about = "An expert instance is killed."
[[step]]
at = 1
do = "kill"
target = "expert"
"""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_reads_and_its_cluster_can_be_started(name: str) -> None:
    scenario = load_scenario(shipped()[name])
    assert scenario.name == name
    assert scenario.about.endswith(".")
    options = up_options(scenario.cluster, model=find(name), name="chaos")
    assert (options.attention, options.experts) == (scenario.cluster.attention, scenario.cluster.experts)
    assert scenario.expect.lost == scenario.expect.repeated == scenario.expect.changed == 0


def test_each_role_is_killed_and_stopped_by_some_shipped_scenario() -> None:
    done = {(step.do, step.target) for path in shipped().values() for step in load_scenario(path).step}
    assert {("kill", role) for role in ROLES} <= done
    assert {("stop", role) for role in ("expert", "attention", "controller")} <= done


def test_what_is_not_said_has_a_default() -> None:
    scenario = parse(GOOD, name="mine")
    assert (scenario.load.streams, scenario.load.temperature, scenario.expect.client_errors) == (16, 0, 0)
    assert scenario.step[0].moment(random.Random(1)) == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[load]\nstream = 3", "load.stream: is no field of a scenario; did you mean streams?"),
        ("[expect]\nxyz = 3", "expect.xyz: is no field of a scenario; fields here are lost, repeated"),
        ("loads = 3", "loads: is no field of a scenario; did you mean load?"),
        ('[load]\nstreams = "many"', "load.streams: expected `int`, got `str`; docs/chaos.md lists the fields"),
        ("[load]\nstreams = 0", "load.streams: 0 is out of range; use at least 1"),
        ("[load]\ntemperature = 1", "load.seed: is missing; give one, or temperature = 0"),
        ('[load]\nprompts = "latin"', "load.prompts: 'latin' is no set; name one of mixed, presidents"),
        ("[load]\nprompts = []", "load.prompts: has no text; give at least one prompt"),
        ("[cluster]\nexperts = 0", "cluster.experts: 0 is out of range; use at least 1"),
        (
            '[[step]]\nat = 1\ndo = "explode"',
            "step[0].do: invalid enum value 'explode'; docs/chaos.md lists the fields",
        ),
        ('[[step]]\nat = "noon"\ndo = "wait"\nfor = 1', "step[0].at: 'noon' is no time; give seconds, or "),
        ('[[step]]\nat = "random(2, 1)"\ndo = "wait"\nfor = 1', "step[0].at: 'random(2, 1)' is no time; give"),
        ("[[step]]\nat = -1\ndo = 'wait'\nfor = 1", "step[0].at: -1 is out of range; use at least 0"),
        ('[[step]]\nat = 1\ndo = "kill"', "step[0].target: is missing for do = 'kill'; name a role (expert, "),
        ('[[step]]\nat = 1\ndo = "stop"\ntarget = "expert"', "step[0].for: is missing for do = 'stop'; give seconds"),
        ('[[step]]\nat = 1\ndo = "kill"\ntarget = "expert"\nfor = 1', "step[0].for: means nothing for do = 'kill'; ta"),
        (
            '[[step]]\nat = 1\ndo = "slow"\ntarget = "expert"\nfor = 1\nshare = 1.5',
            "step[0].share: 1.5 is out of range; give more than 0 and less than 1",
        ),
        ('[[step]]\nat = 1\ndo = "scale"', "step[0]: scales nothing; give attention or experts"),
        ('[[step]]\nat = 1\ndo = "scale"\nexperts = "two"', "step[0].experts: 'two' is no number; give 3"),
        ('[[step]]\nat = 1\ndo = "prompts"\nprompts = "latin"', "step[0].prompts: 'latin' is no set; name one of"),
        ("[[", "mine: is no TOML: "),
        ("step = []", "step: there is none; add a table [[step]]"),
    ],
)
def test_a_wrong_field_is_named_with_the_remedy(line: str, message: str) -> None:
    begin = 'about = "x"\n' + line + "\n"
    text = begin if "step" in line else begin + '[[step]]\nat = 1\ndo = "kill"\ntarget = "expert"\n'
    with pytest.raises(ConfigError) as raised:
        parse(text, name="mine")
    assert str(raised.value).startswith(message)


def test_an_option_that_janus_up_does_not_have_is_refused() -> None:
    scenario = parse(GOOD + "[cluster.options]\nplacemant = 'eplb'\n", name="mine")
    with pytest.raises(ConfigError, match="placemant: is no option of janus up; see janus up --help"):
        up_options(scenario.cluster, model=find("expert-kill"), name="chaos")


def test_an_unknown_scenario_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean expert-kill"):
        find("expert-kil")


@given(low=st.floats(0, 5), width=st.floats(0, 5), seed=st.integers())
def test_a_moment_at_random_is_in_its_range_and_the_same_for_the_same_seed(low: float, width: float, seed: int) -> None:
    low, high = round(low, 3), round(low + width, 3)
    step = Step(at=f"random({low:.3f}, {high:.3f})", do="kill", target="expert")
    moment = step.moment(random.Random(seed))
    assert low <= moment <= high
    assert moment == step.moment(random.Random(seed))
