"""Memory of activations is kept: the same work a second time makes the kernel map and clear nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WORK = """
import resource
import torch
from janus.runtime.allocator import keep_memory
kept = keep_memory() if {keep} else False

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.empty(4 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""


def _run(*, keep: bool) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", _WORK.format(keep=keep)], capture_output=True, text=True, timeout=60, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_activations_are_used_again() -> None:
    kept, faults = _run(keep=True)
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert faults < 50, "50 tensors of 4 MiB are 50,000 pages"
