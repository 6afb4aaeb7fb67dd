"""Faults in words: ``expert@60`` (one of them, at 60 s), ``attention-1@30+never``, ``node@90+20``, ``expert:2/h``."""

from __future__ import annotations

import random
import re

from janus.errors import ConfigError
from janus.simulation.config import Fault

_BACK_S = 1.0
_AT = re.compile(r"(?P<target>[a-z][a-z0-9-]*)@(?P<at>\d+(?:\.\d+)?)(?:\+(?P<back>never|\d+(?:\.\d+)?))?")
_RATE = re.compile(r"(?P<target>attention|expert|node):(?P<rate>\d+(?:\.\d+)?)/h(?:\+(?P<back>never|\d+(?:\.\d+)?))?")


def faults_of(text: str, *, duration_s: float, seed: int = 0) -> list[Fault]:
    """Return the faults that ``text`` names, separated by commas, in order of time.

    A target is ``attention``, ``expert`` or ``node`` (any of them), or the name of an instance (``expert-3``) or node
    (``expert-node-0``). What died is launched again after a second, or as ``+`` says: seconds, or ``never``. A rate is
    per hour, over the whole cluster; its moments are drawn from ``seed``.

    Raises:
        ConfigError: a part is no fault.
    """
    faults: list[Fault] = []
    draw = random.Random(seed)
    for part in filter(None, (each.strip() for each in text.split(","))):
        at, rate = _AT.fullmatch(part), _RATE.fullmatch(part)
        if at is not None:
            faults.append(Fault(at_s=float(at["at"]), target=at["target"], back_s=_back(at["back"])))
        elif rate is not None:
            per_s, moment = float(rate["rate"]) / 3600, 0.0
            while per_s and (moment := moment + draw.expovariate(per_s)) < duration_s:
                faults.append(Fault(at_s=moment, target=rate["target"], back_s=_back(rate["back"])))
        else:
            raise ConfigError(
                "--fail", f"{part!r} is no fault", "give TARGET@SECONDS or KIND:NUMBER/h, as in expert@60,node:0.5/h+30"
            )
    return sorted(faults, key=lambda fault: fault.at_s)


def _back(text: str | None) -> float | None:
    return _BACK_S if text is None else None if text == "never" else float(text)
