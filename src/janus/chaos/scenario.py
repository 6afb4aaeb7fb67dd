"""What a scenario is: a cluster, a load, what is done to it when, and what clients may notice of that."""

from __future__ import annotations

import random
import re
from typing import Literal, TypeAlias, get_args

import msgspec

from janus.chaos.prompts import SETS
from janus.errors import ConfigError

Action: TypeAlias = Literal[
    "kill", "stop", "slow", "cut", "drain", "restart", "scale", "rolling-restart", "prompts", "wait"
]
ROLES = ("expert", "attention", "gateway", "controller")

#: Action -> the fields that it needs, and those that it takes besides.
_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "kill": ({"target"}, set()),
    "stop": ({"target", "lasts"}, set()),
    "slow": ({"target", "lasts", "share"}, set()),
    "cut": ({"target", "lasts"}, set()),
    "drain": ({"target"}, set()),
    "restart": ({"target"}, set()),
    "scale": (set(), {"attention", "experts"}),
    "rolling-restart": (set(), set()),
    "prompts": ({"prompts"}, set()),
    "wait": ({"lasts"}, set()),
}
_RANDOM = re.compile(r"random\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\)")
_CHANGE = re.compile(r"[+-]?\d+")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"lasts": "for"}):
    """Base: keyword-only, immutable, strict; ``lasts`` reads ``for`` in a file, which Python keeps for itself."""


class ClusterNeeds(_Table, frozen=True, kw_only=True):
    """The smallest cluster that a scenario makes sense on, and with ``--up`` the one that it is run on."""

    attention: int = 1
    experts: int = 2
    slots_per_instance: int = 0
    #: Further options of ``janus up``, as its help names them without the dashes.
    options: dict[str, str | int | float | bool] = {}
    #: Environment of the services, such as ``JANUS_ATTENTION_DISPATCH_TIMEOUT``.
    environment: dict[str, str] = {}


class Load(_Table, frozen=True, kw_only=True):
    """What clients do meanwhile."""

    streams: int = 16
    #: The name of a set that comes with the suite, or texts.
    prompts: str | list[str] = "mixed"
    max_tokens: int = 96
    #: 0 takes the likeliest token always; anything else needs a seed, or no two answers are alike.
    temperature: float = 0.0
    seed: int | None = None
    #: Above 1, so that answers do not run in circles: in a circle a repeated token would not show.
    repetition_penalty: float = 1.1
    #: Requests per second, at random moments, at most ``streams`` at a time; 0: each stream sends the next one at once.
    rate: float = 0.0
    #: The load goes on for so long after the last step is over and the cluster is whole again.
    after: float = 1.0


class Step(_Table, frozen=True, kw_only=True):
    """One thing that is done to the cluster. ``at`` counts from when every stream has its first token."""

    at: float | str
    do: Action
    #: A role, of which one instance is chosen at random, or an instance's name.
    target: str = ""
    #: Seconds.
    lasts: float = 0.0
    #: Share of the time in which a slow instance stands still.
    share: float = 0.0
    #: Instances from then on: a number, or a change such as "+1".
    attention: str | int = ""
    experts: str | int = ""
    prompts: str = ""

    def moment(self, draw: random.Random) -> float:
        """Seconds after the start of the load, drawn anew where the scenario leaves it open."""
        if isinstance(self.at, str):
            low, high = map(float, _RANDOM.fullmatch(self.at).groups())  # type: ignore[union-attr]  # checked
            return draw.uniform(low, high)
        return float(self.at)


class Expect(_Table, frozen=True, kw_only=True):
    """What clients may notice; a field that is not given is not looked at. Tokens and errors are per run."""

    lost: int = 0
    repeated: int = 0
    changed: int = 0
    client_errors: int = 0
    #: Of those, requests that were sent after the first step.
    refused: int = 0
    stall_p99_ms: float | None = None
    recovered_s: float | None = None
    goodput_dip: float | None = None


class Scenario(_Table, frozen=True, kw_only=True):
    """One file of ``scenarios/``, or of a user."""

    about: str
    cluster: ClusterNeeds = ClusterNeeds()
    load: Load = Load()
    step: list[Step]
    expect: Expect = Expect()
    #: Set by whoever reads the file.
    name: str = ""

    @property
    def needs_testbed(self) -> bool:
        """Whether it cuts network links, which takes nodes with links between them."""
        return any(step.do == "cut" for step in self.step)


def check(scenario: Scenario) -> None:
    """Raise ConfigError, naming field and remedy, where a well-formed scenario makes no sense."""
    cluster, load = scenario.cluster, scenario.load
    for field, low in (("attention", 1), ("experts", 1), ("slots_per_instance", 0)):
        _at_least(f"cluster.{field}", getattr(cluster, field), low)
    for field, least in (("streams", 1), ("max_tokens", 1), ("temperature", 0), ("rate", 0), ("after", 0)):
        _at_least(f"load.{field}", getattr(load, field), least)
    if load.temperature > 0 and load.seed is None:
        raise ConfigError("load.seed", "is missing", "give one, or temperature = 0: else no two answers are alike")
    _check_prompts("load.prompts", load.prompts)
    if not scenario.step:
        raise ConfigError("step", "there is none", "add a table [[step]] with at, do and target")
    for index, step in enumerate(scenario.step):
        _check_step(f"step[{index}]", step)


def _check_step(where: str, step: Step) -> None:
    if isinstance(step.at, str):
        match = _RANDOM.fullmatch(step.at)
        if match is None or float(match[1]) > float(match[2]):
            raise ConfigError(f"{where}.at", f"{step.at!r} is no time", 'give seconds, or "random(0.5, 2)"')
    else:
        _at_least(f"{where}.at", step.at, 0)
    needed, taken = _FIELDS[step.do]
    given = {name for name in ("target", "lasts", "share", "attention", "experts", "prompts") if getattr(step, name)}
    for name in sorted(needed - given):
        raise ConfigError(f"{where}.{_shown(name)}", f"is missing for do = {step.do!r}", _REMEDIES[name])
    for name in sorted(given - needed - taken):
        raise ConfigError(f"{where}.{_shown(name)}", f"means nothing for do = {step.do!r}", "take it out")
    if not 0 <= step.share < 1:
        raise ConfigError(f"{where}.share", f"{step.share:g} is out of range", "give more than 0 and less than 1")
    _at_least(f"{where}.for", step.lasts, 0)
    if step.do == "scale" and not given:
        raise ConfigError(where, "scales nothing", 'give attention or experts: a number, or a change such as "+1"')
    for name in ("attention", "experts"):
        if not _CHANGE.fullmatch(str(getattr(step, name) or 0)):
            raise ConfigError(f"{where}.{name}", f"{getattr(step, name)!r} is no number", 'give 3, "+1" or "-1"')
    if step.prompts:
        _check_prompts(f"{where}.prompts", step.prompts)


_REMEDIES = {
    "target": f"name a role ({', '.join(ROLES)}) or an instance",
    "lasts": "give seconds",
    "share": "give the share of the time in which it stands still, such as 0.8",
    "prompts": f"name one of {', '.join(SETS)}",
}


def _shown(name: str) -> str:
    return "for" if name == "lasts" else name


def _check_prompts(field: str, prompts: str | list[str]) -> None:
    if isinstance(prompts, str) and prompts not in SETS:
        raise ConfigError(field, f"{prompts!r} is no set", f"name one of {', '.join(SETS)}, or give a list of texts")
    if not prompts or not all(prompts):
        raise ConfigError(field, "has no text", "give at least one prompt, and none that is empty")


def _at_least(field: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(field, f"{value:g} is out of range", f"use at least {low:g}")


def actions() -> tuple[str, ...]:
    """Everything that a step may do."""
    return get_args(Action)
