"""Options of one role's servers, given to ``janus up`` as ``--set ROLE.OPTION=VALUE``.

What ``JANUS_EXPERT_LOAD_RATE`` is in the environment and ``load_rate`` below ``[expert]`` in the file is
``--set expert.load-rate=10MiB`` on the command line. It is checked here as the server would check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from janus.config.fields import OptionField, check_value, did_you_mean, option_fields, parse
from janus.config.options import AttentionOptions, ControllerOptions, ExpertOptions, GatewayOptions
from janus.errors import ConfigError

#: Role -> options of its servers.
_ROLES: Mapping[str, type] = {
    cls.SERVICE: cls for cls in (GatewayOptions, AttentionOptions, ExpertOptions, ControllerOptions)
}
#: What every instance is given by ``janus up`` itself -> what to do instead.
_CHOSEN = {
    "model": "use --model",
    "http_host": "use --host",
    "http_port": "use --port",
    "expect_attention": "use --attention",
    "expect_experts": "use --experts",
    "expect_gateways": "use --gateways",
    "name": "leave it out",
    "controller": "leave it out",
    "control_socket": "leave it out",
    "http_fd": "leave it out",
    "parent_pid": "leave it out",
}


def overrides(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return role -> option key -> value of ``given``, each ``ROLE.OPTION=VALUE``; the last of two for one decides.

    Raises:
        ConfigError: there is no such role or option, ``janus up`` decides about it, or the value is none for it.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        role, dot, option = name.strip().partition(".")
        if not equals or not dot:
            problem = f"{text!r} is not ROLE.OPTION=VALUE"
            raise ConfigError("--set", problem, "give for example expert.load-rate=10MiB")
        item = _item(role, option)
        found.setdefault(role, {})[item.key] = _value(f"--set {role}.{option}", item, value.strip())
    return found


def _item(role: str, option: str) -> OptionField:
    where = f"--set {role}.{option}"
    if role not in _ROLES:
        raise ConfigError(where, f"{role!r} is no role", did_you_mean(role, list(_ROLES)))
    items = {item.key: item for item in option_fields(_ROLES[role])}
    key = option.replace("-", "_")
    if key not in items:
        known = [name.replace("_", "-") for name in items if name not in _CHOSEN]
        raise ConfigError(where, "is not an option", did_you_mean(option, known))
    if items[key].info.secret:
        problem = "is a secret, which others could read on a command line"
        raise ConfigError(where, problem, "set it in the environment, or its file in the file of --config")
    if key in _CHOSEN:
        raise ConfigError(where, "is for janus up to give", _CHOSEN[key])
    return items[key]


def _value(where: str, item: OptionField, raw: str) -> Any:
    try:
        value = parse(item, raw)
        check_value(item, value)
    except ValueError as error:
        raise ConfigError(where, str(error), f"give {item.metavar}: {item.info.help}") from error
    except ConfigError as error:
        raise ConfigError(where, error.problem, error.remedy) from error
    return value
