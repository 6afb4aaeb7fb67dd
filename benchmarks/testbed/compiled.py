"""Compiles ``switch/`` with the system's C++ compiler, once per source and compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.testbed.spec import TestbedUnavailable

SOURCES = Path(__file__).with_name("switch")
FLAGS = ("-O2", "-std=c++17", "-Wall", "-Wextra")
_COMPILE_TIMEOUT_S = 120


def _compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, c++, g++ or clang++; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


def switch() -> Path:
    """Return the path of the compiled switch, compiling it (a second or two) if that has not been done before.

    Raises:
        TestbedUnavailable: no compiler, or it failed.
    """
    found = _compiler()
    if found is None:
        raise TestbedUnavailable("no C++ compiler (looked for $CXX, c++, g++, clang++); install g++")
    version = subprocess.run([found, "--version"], capture_output=True, check=False, timeout=_COMPILE_TIMEOUT_S)
    texts = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    target = _cache() / f"switch-{hashlib.sha256(repr((FLAGS, version.stdout, texts)).encode()).hexdigest()[:24]}"
    if not target.exists():
        _compile(found, target)
    return target


def _cache() -> Path:
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus" / "testbed"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.getuid():  # others could hand us their program, to run as root
        raise TestbedUnavailable(f"{directory} belongs to another user; set XDG_CACHE_HOME")
    return directory


def _compile(found: str, target: Path) -> None:
    """Two that do so at once do it twice; each result appears whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        result = Path(scratch) / "switch"
        argv = [found, *FLAGS, str(SOURCES / "switch.cpp"), "-o", str(result)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode:
            raise TestbedUnavailable(f"{found} cannot compile switch.cpp: {' '.join(done.stderr.split())[:500]}")
        result.replace(target)
