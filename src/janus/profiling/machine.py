"""What the measurement ran on."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from pathlib import Path

import janus

_SOURCES = Path(__file__).parents[1]


def cpu_name() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.processor()) + family


def slug() -> str:
    """The processor's name as part of a profile's name: ``amd-epyc-family-26-model-2``."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")


def commit() -> str:
    """The commit of the sources, marked when they differ from it; the version where there is no repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(_SOURCES), *arguments], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    if not head:
        return f"janus {janus.__version__}"
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def today() -> str:
    """The date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
