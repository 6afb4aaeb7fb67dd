"""The compiled runtime, and AEBS in its builds; made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.shim import RawModule, Runtime, compiler

AEBS = Path(__file__).parents[2] / "kernels" / "aebs.cu"


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    if compiler() is None:
        pytest.skip("needs g++, to run CUDA text on the CPU")
    return Runtime(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def code() -> str:
    return AEBS.read_text()


@pytest.fixture(scope="session")
def plain(runtime: Runtime, code: str) -> Iterator[RawModule]:
    with RawModule(code=code, runtime=runtime) as module:
        yield module


@pytest.fixture(scope="session")
def address(runtime: Runtime, code: str) -> Iterator[RawModule]:
    with RawModule(code=code, runtime=runtime, build="address") as module:
        yield module


@pytest.fixture(scope="session")
def thread(runtime: Runtime, code: str) -> Iterator[RawModule]:
    with RawModule(code=code, runtime=runtime, build="thread") as module:
        yield module
