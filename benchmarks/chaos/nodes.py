"""A cluster whose attention and expert instances are on nodes of their own, with a network between that can be cut."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.testbed import LinkSpec, Testbed

from janus.chaos.scenario import ClusterNeeds
from janus.cluster.instances import InstanceSpec
from janus.cluster.local import LocalLauncher

#: Where the gateway, the controller, ``janus up`` and the load are.
FRONT = "front"
_LINK = LinkSpec(latency_us=50.0, rate_gbit=10.0)
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_libc = ctypes.CDLL(None, use_errno=True)


class Nodes:
    """The nodes of one cluster; cuts and heals an instance's, and makes launchers that start instances on theirs."""

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed

    def cut(self, instance: str) -> None:
        """Drop everything to and from the instance's node, in silence."""
        self._bed.cut(node_of(instance))

    def heal(self, instance: str) -> None:
        """Undo ``cut``."""
        self._bed.heal(node_of(instance))

    def launcher(self, **arguments: Any) -> LocalLauncher:
        """A launcher for ``janus.cluster.up.run_up``."""
        return _NodeLauncher(self._bed, **arguments)


class _NodeLauncher(LocalLauncher):
    """Starts an instance in the network namespace of its node, which it must be started in, not forked."""

    def __init__(self, bed: Testbed, **arguments: Any) -> None:
        super().__init__(**{**arguments, "preload": None})
        self._bed = bed

    def _command(self, spec: InstanceSpec) -> list[str]:
        node = node_of(spec.name)
        placed: dict[str, Any] = {"node": node}
        if "controller" in spec.arguments:
            port = str(spec.arguments["controller"]).rpartition(":")[2]
            placed["controller"] = f"{self._bed.address(FRONT)}:{port}"
        if node == FRONT:
            # Reached from other nodes at the node's address, and by ``janus up`` at the loopback.
            return super()._command(spec.having(**placed, host="0.0.0.0"))
        placed["host"] = self._bed.address(node)
        return [*self._bed.exec_prefix(node), *super()._command(spec.having(**placed))]


def node_of(instance: str) -> str:
    """``expert-1`` is on the node e1, ``attention-0`` on a0, everything else on ``front``."""
    role, _, number = instance.rpartition("-")
    return f"{role[0]}{number}" if role in ("attention", "expert") else FRONT


@contextlib.contextmanager
def nodes(needs: ClusterNeeds) -> Iterator[Nodes]:
    """Bring up the nodes of a cluster and put this thread, with whatever it starts, on the front node meanwhile.

    Raises:
        TestbedError: they do not come up.
    """
    names = [
        FRONT,
        *(f"a{index}" for index in range(needs.attention)),
        *(f"e{index}" for index in range(needs.experts)),
    ]
    with Testbed(names, _LINK) as bed, _inside(Path("/run/netns") / bed.namespace(FRONT)):
        yield Nodes(bed)


@contextlib.contextmanager
def _inside(namespace: Path) -> Iterator[None]:
    """What ``ip netns exec`` does, for this thread and what it starts: the network, and the /sys that goes with it.

    UCX looks for network devices in /sys, and would see those outside.
    """
    with contextlib.ExitStack() as stack:
        # Last of all: to enter a mount namespace is to be in its root directory.
        stack.callback(os.chdir, Path.cwd())
        for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
            home = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, home)
            stack.callback(_check, "setns", lambda home=home, kind=kind: _libc.setns(home, kind))
        inside = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, inside)
        _check("unshare", lambda: _libc.unshare(_CLONE_NEWNS))
        _check("mount", lambda: _libc.mount(b"", b"/", None, _MS_REC | _MS_SLAVE, None))
        _check("setns", lambda: _libc.setns(inside, _CLONE_NEWNET))
        _check("umount", lambda: _libc.umount2(b"/sys", _MNT_DETACH))
        _check("mount", lambda: _libc.mount(b"front", b"/sys", b"sysfs", 0, None))
        yield


def _check(name: str, call: Callable[[], int]) -> None:
    if call() != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} failed: {os.strerror(number)}")
