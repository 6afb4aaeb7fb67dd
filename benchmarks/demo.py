"""``python -m benchmarks.demo``: time ``make demo`` as a newcomer runs it, from a fresh clone in a new environment.

Writes benchmarks/results/demo.json: seconds until the installation is done, until the cluster serves, and until the
text, the table and the stop are done; and the transcript. Nothing of the clone stays.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving.machine import commit, hardware

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "demo.json"


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
        print(f"written: {RESULT}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
