"""What every service takes, and what it needs to be one."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, replace
from typing import ClassVar

from janus.config.fields import check_ranges, option
from janus.config.options.shared import NETWORK, PROCESS, ProcessOptions
from janus.errors import ConfigError
from janus.messages.control import Role

_MIN_SECRET = 8
#: Names stand in log lines, in metrics and in the names of files.
_WORD = re.compile(r"[\w.:@+() -]{0,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions(ProcessOptions):
    """What every service takes."""

    controller: str = option(
        "",
        help="Where the placement-controller listens. Start order does not matter.",
        unit="host:port",
        default_text="required",
        panel=NETWORK,
    )
    host: str = option(
        "127.0.0.1", help="Address that other instances reach this one at.", unit="address", panel=NETWORK
    )
    port: int = option(
        0, help="UCX port.", unit="port", default_text="0 = any free one", minimum=0, maximum=65535, panel=NETWORK
    )
    ops_port: int = option(
        0,
        help="HTTP port of /health, /live, /ready and /metrics.",
        unit="port",
        default_text="0 = any free one; -1 = none",
        minimum=-1,
        maximum=65535,
        panel=NETWORK,
    )
    secret: str = option(
        "",
        help="File with the cluster secret, which every instance must prove. Or set JANUS_SECRET.",
        secret=True,
        default_text="required",
        panel=NETWORK,
    )
    node: str = option(
        factory=socket.gethostname,
        help="Host group of this instance; instances with the same one share a machine.",
        default_text="host name",
        panel=PROCESS,
    )
    name: str = option(
        "", help="Name of this instance, unique in the cluster.", default_text="ROLE-NODE-PID", panel=PROCESS
    )
    parent_pid: int = option(
        0, help="Exit when this process is gone.", unit="pid", default_text="0 = none", minimum=0, panel=PROCESS
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.controller:
            split_address("--controller", self.controller)
        check_host("--host", self.host)
        for field, word in (("--name", self.name), ("--node", self.node)):
            if not _WORD.fullmatch(word):
                problem = f"{word[:64]!r} cannot name an instance or a node"
                raise ConfigError(field, problem, "use letters, digits and . _ : @ + - ( ), 200 at most")
        if self.secret and len(self.secret) < _MIN_SECRET:
            raise ConfigError(
                "--secret-file", f"the secret is shorter than {_MIN_SECRET} characters", "use a longer, random one"
            )

    @property
    def controller_address(self) -> tuple[str, int]:
        """``(host, port)`` of the placement-controller."""
        return split_address("--controller", self.controller)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Base of the services' options: fills the instance's name in, and demands what every service needs."""

    #: The role in messages, and the word in ``JANUS_<SERVICE>_<OPTION>`` and in the TOML section.
    SERVICE: ClassVar[Role]

    common: CommonOptions

    def __post_init__(self) -> None:
        check_ranges(self)
        common = self.common
        if not common.controller and self.SERVICE != "controller":
            raise ConfigError("--controller", "is not given", "pass --controller HOST:PORT of the placement-controller")
        if not common.secret:
            raise ConfigError(
                "--secret-file", "no cluster secret is given", "pass --secret-file PATH or set JANUS_SECRET"
            )
        if not common.name:
            name = f"{self.SERVICE}-{common.node}-{os.getpid()}"
            object.__setattr__(self, "common", replace(common, name=name))


def check_host(field: str, host: str) -> None:
    """Raise ConfigError unless ``host`` can be an address or a name of a machine."""
    if not host or any(letter.isspace() or letter == "/" for letter in host):
        problem = f"{host!r} is no address" if host else "is empty"
        raise ConfigError(field, problem, "give the address that others reach, e.g. 127.0.0.1, or 0.0.0.0 for all")


def split_address(field: str, address: str) -> tuple[str, int]:
    """Return ``(host, port)`` of ``"host:port"``; IPv6 addresses in brackets.

    Raises:
        ConfigError: not of that form, or the port is not in 1..65535.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(field, f"{address!r} is not HOST:PORT", "give host and port, e.g. 127.0.0.1:7700")
    return host, int(port)
