"""What the doctor is told about transports and ports."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

from janus.transport import probe

INFO = """
#      resource 0  :  md 0  dev 0  flags -- self/memory
#      resource 1  :  md 1  dev 1  flags -- tcp/eth0
#      resource 7  :  md 4  dev 3  flags -- rc_mlx5/mlx5_0:1
"""


def test_transports_are_read_from_ucx_own_words() -> None:
    assert probe.parse_transports(INFO) == ("self/memory", "tcp/eth0", "rc_mlx5/mlx5_0:1")
    assert probe.parse_transports("nothing") == ()


def test_rdma_is_named_only_where_ucx_has_it() -> None:
    found = probe.ucx_report()
    assert found.problem == "" and found.ucxx_version.startswith("0.52.")
    assert any(name.startswith("tcp/") for name in found.transports)
    assert found.rdma == any(name.split("_")[0] in ("rc", "ud", "dc") for name in found.transports)
    assert probe.available_transports(found)[0] == "ucx"


def test_a_ucx_that_cannot_start_is_a_finding_not_a_crash() -> None:
    code = "import json; from janus.transport.probe import probe; print(json.dumps(probe()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"UCX_TLS": "nonsense", "PATH": ""},
        capture_output=True,
        timeout=30,
        check=True,
        text=True,
    )
    report = json.loads(run.stdout)  # and nothing else on stdout
    assert "UCX cannot start" in report["problem"]
    assert report["environment"]["UCX_MEMTYPE_CACHE"] == "n"


def test_port_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in probe.port_problem("127.0.0.1", taken.getsockname()[1])
    assert probe.port_problem("127.0.0.1", 0) == ""
    assert probe.port_problem("192.0.2.1", 0) != ""
