"""Interpreter, packages, compiler, GPU, limits of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from janus.cluster.checks.finding import Finding, ok, problem, warning
from janus.errors import ConfigError
from janus.transport import shared_pool

_MIN_PYTHON = (3, 11)
#: UCX's shared-memory transport and torch want room here; Docker's default is 64 MiB.
_MIN_SHM_BYTES = 128 << 20
#: UCX holds three descriptors per endpoint and side.
_MIN_FILES = 1024
_TORCH_NEEDED = "2.11"


def check_python() -> Finding:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        return problem("python", version, "use python 3.11 or newer")
    return ok("python", version)


def check_package(name: str, *, needed: str, remedy: str) -> Finding:
    """Whether distribution ``name`` is installed, from its metadata: nothing is imported."""
    try:
        return ok(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return problem(name, f"not installed; {needed}", remedy)


def check_torch() -> Finding:
    """torch's version and build."""
    return check_package("torch", needed="the model runs on it", remedy="run make install, or pip install torch")


def check_gpu() -> Finding:
    """Whether an NVIDIA driver and device are there; Janus runs without."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ok("gpu", "none: everything runs on the CPU")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return warning("gpu", "nvidia-smi does not answer", "check the driver, or use --device cpu")
    devices = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    if result.returncode or not devices:
        return warning("gpu", "a driver but no device", "check nvidia-smi, or use --device cpu")
    return ok("gpu", "; ".join(devices))


def check_compiler() -> Finding:
    """A C++ compiler, which builds the CPU kernels where they are used."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return ok("compiler", path)
    return warning("compiler", "no C++ compiler found", "install g++ or clang++, or set CXX; needed to build kernels")


def check_shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Size of the shared-memory file system."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return warning("/dev/shm", f"cannot be read: {error.strerror}", "mount a tmpfs there")
    detail = f"{usage.free / 2**20:.0f} MiB free of {usage.total / 2**20:.0f}"
    if usage.free < _MIN_SHM_BYTES:
        return warning("/dev/shm", detail, "give it 1 GiB: docker run --shm-size=1g, or remount the tmpfs")
    return ok("/dev/shm", detail)


def check_node_memory() -> Finding:
    """What instances of one node hand their activations around in, for the exchange in two phases."""
    try:
        shared_pool()
    except ConfigError as error:
        return warning(
            "node memory", f"{error.field}: {error.problem}", "each instance exchanges by itself; needs Linux"
        )
    return ok("node memory", "instances of this machine can share memory")


def check_open_files() -> Finding:
    """The limit on file descriptors per process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_FILES:
        return warning("open files", f"limit {soft}", f"raise it: ulimit -n {4 * _MIN_FILES}")
    return ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft}")


def check_cores(processes: int) -> Finding:
    """Cores, against the processes that compute."""
    cores = len(os.sched_getaffinity(0))
    detail = f"{cores} for {processes} attention and expert instances"
    if processes > 2 * cores:
        return warning("cores", detail, "start fewer instances; they will take turns on the cores")
    return ok("cores", detail)
