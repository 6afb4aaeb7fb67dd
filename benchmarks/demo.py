"""``python -m benchmarks.demo``: time ``make demo`` as a newcomer runs it, from a fresh clone in a new environment.

Writes benchmarks/results/demo.json: seconds until the installation is done, until the cluster serves, and until the
text, the table and the stop are done; and the transcript, which it copies into README.md. Nothing of the clone stays.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.machine import commit, hardware

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "demo.json"
README = REPOSITORY / "README.md"
_WIDTH = 116
BEGIN, END = "<!-- demo.json: begin -->\n", "<!-- demo.json: end -->\n"


def main() -> int:
    """Run it; returns the status of ``make demo``."""
    with tempfile.TemporaryDirectory(prefix="janus-demo-") as scratch:
        clone = Path(scratch) / "janus"
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        environ = {**os.environ, "XDG_CACHE_HOME": scratch, "XDG_RUNTIME_DIR": scratch}
        cloned = commit(clone)
        load_before = os.getloadavg()[0]
        began = time.monotonic()
        process = subprocess.Popen(
            ["make", "demo", "DEMO_ARGS=--port 0"],
            cwd=clone,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        times: dict[str, float] = {}
        transcript: list[str] = []
        for line in process.stdout:
            sys.stderr.write(line)
            now = round(time.monotonic() - began, 1)
            if line.startswith("janus: starting "):
                times["installed_s"] = now
            if line.startswith("janus: ready "):
                times["ready_s"] = now
            if "installed_s" in times:
                transcript.append(line.rstrip("\n"))
        status = process.wait()
        times["done_s"] = round(time.monotonic() - began, 1)
    result = {
        "command": "make demo, in a fresh clone; run by python -m benchmarks.demo",
        **times,
        "status": status,
        "load_average_before": round(load_before, 2),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": cloned,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "transcript": transcript,
    }
    if status == 0:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(before + BEGIN + render(result) + END + rest.partition(END)[2])
        print(f"written: {RESULT}", file=sys.stderr)
    return status


def render(result: dict[str, Any]) -> str:
    """Return the transcript and the times as Markdown, for README.md."""
    machine = result["hardware"]
    transcript = "\n".join(_wrapped(line) for line in result["transcript"]).strip()
    return (
        f"```text\n{transcript}\n```\n\n"
        f"In a fresh clone and a new environment this took {result['done_s']:.0f} s: {result['installed_s']:.0f} s to "
        f"install, {result['ready_s'] - result['installed_s']:.0f} s until the cluster served, the rest to write, show "
        f"and stop\n(`make demo` on {machine['cores_used']} cores of {machine['cpu']}, packages from a local index, "
        f"load average {result['load_average_before']:g} before; commit {result['commit']}, {result['date'][:10]}).\n"
    )


def _wrapped(line: str) -> str:
    """Prose lines as wide as the page; commands and tables as they are."""
    return line if len(line) <= _WIDTH or line.startswith(" ") else textwrap.fill(line, _WIDTH)


if __name__ == "__main__":
    sys.exit(main())
