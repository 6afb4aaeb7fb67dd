"""`janus demo` as `make demo` runs it without a terminal: text, table, how to go on, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import LIMIT_S, MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * LIMIT_S)]


def test_the_demo_streams_text_shows_its_experts_and_leaves(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "janus_cli", "demo", "--model", str(MODEL), "--port", "0", "--prompt", "And it"]
    result = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=2 * LIMIT_S, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    text, _, rest = result.stdout.partition(" tokens in ")
    assert text.strip().startswith("And it")
    assert len(text.split()) > 20
    layers = re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", rest, flags=re.MULTILINE)
    assert [int(row[0]) for row in layers] == list(range(6))
    for _, *counts, a_max, imbalance in layers:
        # Four experts per token, each on exactly one of the two instances.
        assert sum(map(int, counts)) == 4
        assert max(map(int, counts)) == int(a_max)
        assert int(a_max) - min(map(int, counts)) == int(imbalance)
    url = re.search(r"curl -N (http://127\.0\.0\.1:\d+)/v1/completions", rest)
    assert url is not None
    assert f'base_url="{url[1]}/v1"' in rest
    pids = [int(pid) for pid in re.findall(r"\(pid (\d+)\)", result.stderr)]
    assert len(pids) == 5
    assert not any(psutil.pid_exists(pid) for pid in pids)
