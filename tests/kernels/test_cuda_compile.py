"""The kernels compile for the GPUs that are meant, within the registers that a block of 1024 threads has."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).parents[2] / "kernels").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
#: 65536 registers of a multiprocessor by 1024 threads.
MAX_REGISTERS = 64
#: What CuPy's RawModule gives NVRTC.
OPTIONS = (
    "--std=c++17",
    "-ftz=true",
    "--device-as-default-execution-space",
    "--ptxas-options=-v",
    "--ptxas-options=-warn-spills",
)


def nvrtc() -> ctypes.CDLL:
    """Return NVRTC of the ``nvidia-cuda-nvrtc`` wheels; skip where they are not installed."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (found.submodule_search_locations or []) if found else []:
            for library in sorted(Path(place).glob("lib/libnvrtc.so.1*")):
                return ctypes.CDLL(str(library))
    pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")


def compile_nvrtc(library: ctypes.CDLL, source: Path, arch: str) -> str:
    """Compile to machine code and return the log, ptxas' words included; AssertionError with the log if it fails."""
    program = c_void_p()
    library.nvrtcCreateProgram.argtypes = (POINTER(c_void_p), c_char_p, c_char_p, c_int, c_void_p, c_void_p)
    library.nvrtcCompileProgram.argtypes = (c_void_p, c_int, POINTER(c_char_p))
    library.nvrtcGetProgramLogSize.argtypes = (c_void_p, POINTER(c_size_t))
    library.nvrtcGetProgramLog.argtypes = (c_void_p, c_char_p)
    assert library.nvrtcCreateProgram(byref(program), source.read_bytes(), source.name.encode(), 0, None, None) == 0
    options = [option.encode() for option in (*OPTIONS, f"-arch={arch}")]
    status = library.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
    size = c_size_t()
    assert library.nvrtcGetProgramLogSize(program, byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetProgramLog(program, log) == 0
    assert library.nvrtcDestroyProgram(byref(program)) == 0
    text = log.value.decode()
    assert status == 0, text
    return text


def within_limits(log: str) -> None:
    """Assert on what ``ptxas -v`` said: nothing spilled, and few enough registers for a block of 1024 threads."""
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert spills and not any(spills), log
    assert registers and max(registers) <= MAX_REGISTERS, log
    assert "warning" not in log.lower(), log


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_nvrtc(source: Path, arch: str) -> None:
    within_limits(compile_nvrtc(nvrtc(), source, arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_nvcc(tmp_path: Path, source: Path, arch: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc, of the CUDA toolkit")
    done = subprocess.run(
        [nvcc, "--std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v,-warn-spills", "-o", tmp_path / "k", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    within_limits(done.stderr)
