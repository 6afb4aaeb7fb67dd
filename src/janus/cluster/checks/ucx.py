"""Which UCX is here and what it can do. RDMA is named only where UCX itself offers a transport for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus.cluster.checks.finding import Finding, ok, problem, warning

#: In a process of its own: UCX is loaded once per process and reads its environment then, and it must not hang us.
_PROBE = "import json; from janus.transport.probe import probe; print(json.dumps(probe()))"
_TIMEOUT_S = 20.0
_INSTALL = "install Janus with its UCX: pip install 'janus-moe[cpu]' (or [cu12], [cu13]); make install does it"
_RDMA_REMEDY = (
    "to use it: install a system UCX with verbs and set RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=true (docs/install.md)"
)


def check_ucx(*, infiniband: Path = Path("/sys/class/infiniband")) -> Iterator[Finding]:
    """Whether UCX starts, which transports it may use, and whether RDMA is among them."""
    report = _report()
    if report["problem"]:
        yield problem("ucx", report["problem"], f"{_INSTALL}; or use --transport tcp to find out whether it is UCX")
        return
    transports = ", ".join(report["transports"])
    yield ok("ucx", f"{report['ucx_version']} (ucxx {report['ucxx_version']}): {transports}")
    yield rdma_finding(available=report["rdma"], adapters=adapters(infiniband))


def rdma_finding(*, available: bool, adapters: list[str]) -> Finding:
    """What to say of RDMA: adapters that UCX cannot use are worth a warning, none at all is not."""
    if available:
        return ok("rdma", f"UCX offers it; adapters: {', '.join(adapters) or 'not listed'}")
    if adapters:
        return warning("rdma", f"not used: this UCX has no verbs, though there is {', '.join(adapters)}", _RDMA_REMEDY)
    return ok("rdma", "none: no adapter; hosts talk over TCP, processes over shared memory")


def adapters(infiniband: Path) -> list[str]:
    """Names of RDMA adapters that the kernel knows."""
    return sorted(path.name for path in infiniband.iterdir()) if infiniband.is_dir() else []


def _report() -> dict[str, Any]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        report: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"problem": f"UCX did not start within {_TIMEOUT_S:g} s"}
    except (ValueError, IndexError):
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"problem": f"UCX ended its process with status {result.returncode}: {last}"}
    return report
