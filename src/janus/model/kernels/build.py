"""Compiles ``kernels/cpu`` with the system's C++ compiler into a per-user cache, once per source, flags and CPU."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi")
_COMPILE_TIMEOUT_S = 120


class KernelBuildError(Exception):
    """The kernels cannot be compiled here; the message says why. Callers fall back to torch."""


def build() -> Path:
    """Return the path of the compiled library, compiling it if this machine has not done so before.

    The result appears atomically, and only one process compiles while others wait for it.

    Raises:
        KernelBuildError: no sources, no compiler, or a compiler error.
    """
    sources = _source_directory()
    compiler = _compiler()
    directory = _cache_directory()
    target = directory / f"janus-cpu-{_key(sources, compiler)}.so"
    if target.exists():
        return target
    with (directory / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            started = time.monotonic()
            _compile(sources, compiler, target)
            _log.info("kernels_built", seconds=round(time.monotonic() - started, 1), path=str(target))
    return target


def _source_directory() -> Path:
    """``kernels/cpu`` of the checkout, or its copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[2]  # .../janus
    for candidate in (package / "_kernels" / "cpu", package.parents[1] / "kernels" / "cpu"):
        if (candidate / "api.h").exists():
            return candidate
    raise KernelBuildError("kernel sources are not installed")


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise KernelBuildError("no C++ compiler (looked for $CXX, c++, g++, clang++); install g++")


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "janus" / "kernels"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK):
            raise PermissionError(f"{directory} is not writable")
    except OSError as error:
        raise KernelBuildError(f"no cache directory: {error}; set XDG_CACHE_HOME") from error
    # A directory that others may write to could hand us their code.
    if directory.stat().st_uid != os.getuid():
        raise KernelBuildError(f"{directory} belongs to another user; set XDG_CACHE_HOME")
    return directory


def _key(sources: Path, compiler: str) -> str:
    """Hash of everything that the machine code depends on."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=_COMPILE_TIMEOUT_S)
    digest.update(repr((FLAGS, version.stdout, platform.machine(), _cpu_features())).encode())
    return digest.hexdigest()[:24]


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(sources: Path, compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        units = sorted(sources.glob("*.cpp"))
        objects = [Path(scratch) / f"{unit.stem}.o" for unit in units]
        _run_all(
            [[compiler, *FLAGS, "-c", str(unit), "-o", str(obj)] for unit, obj in zip(units, objects, strict=True)]
        )
        library = Path(scratch) / "library.so"
        _run_all([[compiler, "-shared", "-pthread", *map(str, objects), "-o", str(library)]])
        library.replace(target)


def _run_all(commands: list[list[str]]) -> None:
    """Run the commands side by side; raise KernelBuildError with the first lines of what went wrong."""
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    problems = []
    for process in running:
        try:
            output, _ = process.communicate(timeout=_COMPILE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        if process.returncode:
            problems.append(output.decode(errors="replace")[:2000])
    if problems:
        raise KernelBuildError(f"compiler failed: {problems[0]}")
