"""A testbed that outlives the command that brought it up: ``up`` leaves a process behind, ``down`` ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.testbed import namespaces
from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.namespaces import Name, Owner
from benchmarks.testbed.netem import HUB
from benchmarks.testbed.spec import LinkSpec, TestbedError

_READY = "ready"
_DOWN_TIMEOUT_S = 20.0
_HOLDER = "benchmarks.testbed.held"


def up(nodes: Sequence[str], spec: LinkSpec) -> int:
    """Bring a testbed up that stays, and return the id of the process that holds it.

    Raises:
        TestbedError: it did not come up; the message says why.
    """
    argv = [sys.executable, "-m", _HOLDER, str(spec.latency_us), str(spec.rate_gbit), *nodes]
    holder = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline().strip() == _READY:
        return holder.pid
    raise TestbedError(holder.stderr.read().strip().rpartition("\n")[2] or f"exit status {holder.wait()}")


def holders() -> dict[Owner, list[Name]]:
    """The nodes that are up, by who holds them: those of ``up`` alone, not those of a test or a benchmark."""
    found: dict[Owner, list[Name]] = {}
    for name in namespaces.existing():
        if name.node != HUB and name.owner.alive() and _is_holder(name.owner.pid):
            found.setdefault(name.owner, []).append(name)
    return found


def down() -> list[Name]:
    """Take down every testbed that ``up`` brought up, and what dead owners left; return the nodes that were there.

    Raises:
        TestbedError: one does not go.
    """
    held = holders()
    for owner in held:
        os.kill(owner.pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    while any(owner.alive() for owner in held):
        if time.monotonic() > deadline:
            raise TestbedError(f"processes {sorted(owner.pid for owner in held)} do not end")
        time.sleep(0.02)
    return [name for names in held.values() for name in names] + namespaces.reclaim()


def namespace_of(node: str) -> str:
    """Return the namespace of ``node`` in the one testbed that is up.

    Raises:
        TestbedError: there is none, or more than one has that node.
    """
    names = [name for held in holders().values() for name in held if name.node == node]
    if len(names) != 1:
        problem = "no testbed with that node is up" if not names else f"{len(names)} testbeds with that node are up"
        raise TestbedError(f"{node}: {problem}; run `python -m benchmarks.testbed down`, then `up`")
    return str(names[0])


def _is_holder(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return _HOLDER.encode() in file.read().split(b"\0")
    except OSError:
        return False


def _hold(latency_us: str, rate_gbit: str, *nodes: str) -> None:
    """Hold a testbed until SIGTERM or SIGINT."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with Testbed(nodes, LinkSpec(latency_us=float(latency_us), rate_gbit=float(rate_gbit))):
        print(_READY, flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    try:
        _hold(*sys.argv[1:])
    except TestbedError as error:
        sys.exit(str(error))
