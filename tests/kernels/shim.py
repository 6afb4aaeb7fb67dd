"""CUDA kernels on the CPU: a look-alike of CuPy's ``RawModule(code=...).get_function(name)(grid, block, args)``.

The text of a kernel is compiled by g++, behind the headers of ``kernels/shim``, into a program that runs the launches
that it is sent; a kernel that breaks memory or never ends takes only that program along. Three builds: ``plain``;
``address``, with AddressSanitizer and UndefinedBehaviorSanitizer; ``thread``, with ThreadSanitizer, which finds races
between the threads of a block. CuPy checks no argument; here their number, kind and size are checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Build = Literal["plain", "address", "thread"]
Order = Literal["ascending", "descending", "random"]

SOURCES = Path(__file__).parents[2] / "kernels" / "shim"
LAUNCH_TIMEOUT_S = 60.0
_COMPILE_TIMEOUT_S = 120.0
_ORDERS: dict[str, int] = {"ascending": 0, "descending": 1, "random": 2}
_SCALAR, _ARRAY, _SAME = range(3)

_FLAGS = ("-std=c++17", "-g", "-O1", "-fno-omit-frame-pointer")
#: Build -> flags of the kernel, of the runtime, of the link. The runtime is never instrumented.
_BUILDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), (), ()),
    "address": (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=shim_shared"),
        ("-DSHIM_ASAN",),
        ("-fsanitize=address,undefined",),
    ),
    "thread": (
        ("-fsanitize=thread", "--param=tsan-distinguish-volatile=1"),
        ("-DSHIM_TSAN",),
        ("-fsanitize=thread",),
    ),
}
_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
    "UBSAN_OPTIONS": "halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0:history_size=2",
}


class KernelError(Exception):
    """The kernel broke a rule, was caught by a sanitizer, or did not end; the text is what was said about it."""


def compiler() -> str | None:
    """Path of g++, which alone has the flags that are needed; None where there is none."""
    return shutil.which("g++")


class Runtime:
    """The compiled runtime of each build, made once and shared by modules; ``directory`` receives all programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._objects: dict[Build, list[Path]] = {}
        self._programs = 0

    def program(self, code: str, build: Build) -> Path:
        """Compile ``code`` and return the program's path; KernelError with the compiler's words if it cannot be."""
        names = re.findall(r'extern\s+"C"\s+__global__\s+[^(]*?(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(', code)
        exports = ", ".join(f'shim::Export<{name}>::as("{name}")' for name in names)
        self._programs += 1
        unit = self.directory / f"module-{self._programs}.cpp"
        unit.write_text(
            f'#include "{SOURCES / "cuda_on_cpu.h"}"\n#line 1 "kernel"\n{code}\n#line 1 "exports"\n'
            f"extern const shim::Kernel shim_kernels[] = {{{exports}{', ' if names else ''}{{}}}};\n"
        )
        target = unit.with_suffix("")
        kernel_flags, _, link_flags = _BUILDS[build]
        kernel = unit.with_suffix(".o")
        _compile([*_FLAGS, *kernel_flags, "-fsanitize-coverage=trace-pc", "-c", str(unit), "-o", str(kernel)])
        _compile([*link_flags, str(kernel), *map(str, self._runtime(build)), "-o", str(target)])
        return target

    def _runtime(self, build: Build) -> list[Path]:
        if build not in self._objects:
            objects = []
            for unit in sorted(SOURCES.glob("*.cpp")):
                objects.append(self.directory / f"{unit.stem}-{build}.o")
                _compile([*_FLAGS, "-Wall", *_BUILDS[build][1], "-c", str(unit), "-o", str(objects[-1])])
            self._objects[build] = objects
        return self._objects[build]


def _compile(arguments: list[str]) -> None:
    done = subprocess.run(
        [compiler() or "g++", *arguments], capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
    )
    if done.returncode:
        raise KernelError(f"g++ failed:\n{done.stderr[:4000]}")


class RawModule:
    """The kernels of one source text, compiled for the CPU. ``order`` and ``seed`` may be changed between launches."""

    def __init__(
        self, code: str, *, runtime: Runtime, build: Build = "plain", order: Order = "ascending", seed: int = 0
    ) -> None:
        self.order: Order = order
        self.seed = seed
        self._build = build
        self._program = runtime.program(code, build)
        self._process: subprocess.Popen[bytes] | None = None
        self._said = self._program.with_suffix(".log")
        self._kernels: dict[str, list[list[int]]] = {}
        self._start()

    def get_function(self, name: str) -> Kernel:
        """Return the kernel of that name; KeyError, with the names there are, if there is none."""
        if name not in self._kernels:
            raise KeyError(f"no kernel {name!r}; the module has {sorted(self._kernels)}")
        return Kernel(self, name, self._kernels[name])

    def close(self) -> None:
        """End the program; may be called twice. A launch after it starts another."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def __enter__(self) -> RawModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, request: bytes, sizes: Sequence[int], timeout_s: float) -> list[bytes]:
        """Send one launch and return the bytes of its arrays.

        Raises:
            KernelError: the program ended, or did not answer in time; it is gone then.
        """
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        watch = threading.Timer(timeout_s, process.kill)
        watch.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            head = process.stdout.read(4)
            arrays = [process.stdout.read(size) for size in sizes]
        except BrokenPipeError:
            head, arrays = b"", []
        finally:
            in_time = watch.is_alive()
            watch.cancel()
        if head != b"\0\0\0\0" or [len(array) for array in arrays] != list(sizes):
            words = self._last_words()
            raise KernelError(words if in_time else f"the kernel did not end within {timeout_s} s")
        return arrays

    def _start(self) -> None:
        # ThreadSanitizer's shadow does not fit every layout of the address space; without randomisation it does.
        fixed = ["setarch", "-R"] if self._build == "thread" and shutil.which("setarch") else []
        for prefix in ([], fixed) if fixed else ([],):
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    [*prefix, str(self._program)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=os.environ | _ENVIRONMENT,
                )
            assert self._process.stdout is not None
            if description := self._process.stdout.readline():
                self._kernels = json.loads(description)
                return
            words = self._last_words()
        raise KernelError(words)

    def _last_words(self) -> str:
        process = self._process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        self.close()
        return f"{self._said.read_text(errors='replace').strip()}\n(exit status {status})"


class Kernel:
    """One ``extern "C" __global__`` function; called like CuPy's."""

    def __init__(self, module: RawModule, name: str, parameters: list[list[int]]) -> None:
        self._module = module
        self._name = name
        self._parameters = parameters

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        timeout_s: float = LAUNCH_TIMEOUT_S,
    ) -> None:
        """Run one launch; arrays that the kernel writes are written in place. An array may be given twice.

        Arguments are numpy arrays for pointers, ``np.uint64(0)`` for a null one, and numpy scalars of the parameter's
        size (never a bare int, which CuPy takes for 64 bits).

        Raises:
            TypeError: the arguments are not those of the kernel.
            KernelError: see there.
        """
        if shared_mem:
            raise TypeError("dynamic shared memory cannot be had here; declare it static")
        if len(args) != len(self._parameters):
            raise TypeError(f"{self._name} takes {len(self._parameters)} arguments, got {len(args)}")
        parts, arrays = [], []
        for i, (value, (size, pointer)) in enumerate(zip(args, self._parameters, strict=True)):
            same = [j for j in range(i) if args[j] is value]
            if isinstance(value, np.ndarray) and not pointer:
                raise TypeError(f"argument {i} of {self._name} is an array where a value of {size} bytes is wanted")
            if isinstance(value, np.ndarray) and same:
                parts.append(struct.pack("<IIQ", _SAME, 0, same[0]))
            elif isinstance(value, np.ndarray):
                self._check_array(i, value, arrays)
                arrays.append(value)
                parts.append(struct.pack("<IIQ", _ARRAY, value.ctypes.data % 64, value.nbytes) + value.tobytes())
            elif not isinstance(value, np.generic) or value.nbytes != size or (pointer and value != 0):
                wanted = "an array or np.uint64(0)" if pointer else f"a numpy scalar of {size} bytes"
                raise TypeError(f"argument {i} of {self._name} is {value!r}, wanted {wanted}")
            else:
                parts.append(struct.pack("<IIQ", _SCALAR, 0, size) + value.tobytes())
        shape = [*grid, 1, 1, 1][:3] + [*block, 1, 1, 1][:3]
        threads = int(np.prod(shape[3:]))
        if not 1 <= threads <= 1024:
            raise TypeError(f"a block of {threads} threads; 1 to 1024 are possible")
        head = struct.pack(
            "<128s6IIIQ",
            self._name.encode(),
            *shape,
            _ORDERS[self._module.order],
            len(args),
            self._module.seed,
        )
        results = self._module.exchange(head + b"".join(parts), [a.nbytes for a in arrays], timeout_s)
        for array, result in zip(arrays, results, strict=True):
            if array.flags.writeable:
                array[...] = np.frombuffer(result, array.dtype).reshape(array.shape)
            elif result != array.tobytes():
                raise KernelError(f"{self._name} wrote to an array that is read-only")

    def _check_array(self, index: int, value: np.ndarray[Any, Any], before: list[np.ndarray[Any, Any]]) -> None:
        if not value.flags.c_contiguous:
            raise TypeError(f"argument {index} of {self._name} is not contiguous")
        if any(np.may_share_memory(value, other) for other in before):
            raise TypeError(f"argument {index} of {self._name} overlaps another; give the same array for both")
