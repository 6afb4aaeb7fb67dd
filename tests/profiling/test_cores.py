"""Who used the cores, and what steps would take without them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.profiling.cores import CoreMeter, Turn
from janus.profiling.observations import PARTS, undisturbed

PARTS_OF_STEP = {"attention_s": 2e-3, "exchange_s": 3e-3, "experts_s": 4e-3, "other_s": 1e-3, "a_max": 7.0, "steps": 20}
#: Computes for so many seconds of CPU time, and says when it has.
COMPUTE = """
import sys, time
for line in sys.stdin:
    end = time.process_time() + float(line)
    while time.process_time() < end:
        pass
    print("done", flush=True)
"""


@contextmanager
def computing() -> Iterator[subprocess.Popen[str]]:
    """A process that computes when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        try:
            yield it
        finally:
            it.kill()


def compute(process: subprocess.Popen[str], seconds: float) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel keeps no schedstat")
def test_the_busiest_thread_of_a_process_is_seen_to_run() -> None:
    with computing() as process:
        compute(process, 0.01)  # it has started
        meter = CoreMeter([process.pid])
        compute(process, 0.2)
        cores = meter.read()
        turn = cores.turns[process.pid]
        assert 0.19 <= turn.ran_s <= 0.3
        assert turn.waited_s >= 0
        assert cores.others >= 0


def test_a_process_that_is_gone_counts_for_nothing() -> None:
    with computing() as process:
        meter = CoreMeter([process.pid])
        process.kill()
        process.wait()
        assert process.pid not in meter.read().turns


def test_on_a_quiet_machine_steps_are_as_they_were() -> None:
    quiet = Turn(ran_s=0.1, waited_s=0.0)
    assert undisturbed(PARTS_OF_STEP, attention=quiet, experts=[quiet, quiet]) == pytest.approx(PARTS_OF_STEP)


def test_waits_are_taken_out_of_the_step() -> None:
    # Attention waited as long as it ran, in 20 steps 2 ms each; the slower of the expert instances half a millisecond.
    attention, expert = Turn(ran_s=0.04, waited_s=0.04), Turn(ran_s=0.03, waited_s=0.01)
    parts = undisturbed(PARTS_OF_STEP, attention=attention, experts=[Turn(ran_s=0.05), expert])
    assert parts["attention_s"] == pytest.approx(1e-3)
    assert parts["other_s"] == pytest.approx(0.5e-3)
    assert parts["experts_s"] == pytest.approx(3e-3)
    assert sum(parts[part] for part in PARTS) == pytest.approx(10e-3 - 2e-3 - 0.5e-3)
    assert parts["a_max"] == 7


@given(
    ran=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    waited=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_at_most_half_is_taken_out(ran: tuple[float, float], waited: tuple[float, float]) -> None:
    attention, expert = (Turn(ran_s=r, waited_s=w) for r, w in zip(ran, waited, strict=True))
    parts = undisturbed(PARTS_OF_STEP, attention=attention, experts=[expert])
    whole = sum(PARTS_OF_STEP[part] for part in PARTS)
    assert all(parts[part] >= PARTS_OF_STEP[part] / 2 for part in PARTS)
    assert whole / 2 <= sum(parts[part] for part in PARTS) <= whole * (1 + 1e-9)
    for part in ("attention_s", "experts_s", "other_s"):
        assert parts[part] <= PARTS_OF_STEP[part]
