"""Whether this machine permits a testbed, and with which links."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

from benchmarks.testbed import compiled, namespaces
from benchmarks.testbed.namespaces import Name, run
from benchmarks.testbed.spec import TestbedError, TestbedUnavailable

_NETEM_TRIAL = """\
qdisc replace dev lo root netem delay 1us rate 1gbit
qdisc replace dev lo root tbf rate 1gbit burst 131072 limit 1000000
qdisc add dev lo clsact
filter add dev lo ingress protocol ip u32 match ip dst 127.0.0.1/32 action ok index 1
"""

Backend = Literal["netem", "emulated"]


def unavailable() -> str | None:
    """Return why there can be no testbed here, in one line; None if there can be one."""
    return _probe()[1]


def backend() -> Backend:
    """Return which links a testbed gets here: the kernel's netem where it is there, else the emulated switch."""
    return _probe()[0]


@functools.cache
def _probe() -> tuple[Backend, str | None]:
    missing = _missing()
    if missing is not None:
        return "emulated", missing
    probe = Name(owner=namespaces.this_process(), serial=0, node="probe")
    try:
        run(["ip", "netns", "add", str(probe)])
        return _links(probe)
    except TestbedError as error:
        return "emulated", f"network namespaces are not permitted here ({error})"
    finally:
        namespaces.remove([probe])


def _missing() -> str | None:
    if sys.platform != "linux":
        return "needs Linux (network namespaces)"
    if shutil.which("ip") is None:
        return "needs `ip`, which is not installed: apt-get install iproute2"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces: run it with sudo"
    return None


def _links(probe: Name) -> tuple[Backend, str | None]:
    if has_netem(probe):
        return "netem", None
    if not Path("/dev/net/tun").exists():
        return "emulated", "the kernel has neither tc netem (CONFIG_NET_SCH_NETEM) nor /dev/net/tun (CONFIG_TUN)"
    try:
        run(["ip", "-n", str(probe), "tuntap", "add", "dev", "net0", "mode", "tun"])
    except TestbedError as error:
        return "emulated", f"the kernel has no tc netem, and TUN devices are not permitted here ({error})"
    try:
        compiled.switch()
    except TestbedUnavailable as error:
        return "emulated", f"the kernel has no tc netem, and to emulate it takes a C++ compiler: {error}"
    return "emulated", None


def has_netem(namespace: Name) -> bool:
    """Whether the kernel has netem, and what else `netem.py` needs of it: asked by using it."""
    if shutil.which("tc") is None or shutil.which("bridge") is None:
        return False
    try:
        run(["tc", "-n", str(namespace), "-batch", "-"], _NETEM_TRIAL)
    except TestbedError:
        return False
    return True
