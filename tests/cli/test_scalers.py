"""What the autoscaler acts through: the control socket of ``janus up``, and a command of the user's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from janus.cluster.scalers import CommandScaler, ControlSocketScaler, ScalingFailed, ScalingRefused, ScalingTimedOut
from janus.core.scaling import Counts
from janus.errors import ConfigError
from janus.runtime.http import HttpServer
from janus.runtime.sockets import open_unix

WANTED = Counts(attention=2, experts=3)


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


async def test_the_command_gets_the_numbers_and_no_shell(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = "import json, sys; open(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))"
    template = python(code, str(said), "--scale", "attention-server={attention}", "experts={experts};$(id)")
    await CommandScaler(template).scale(WANTED, timeout_s=30)
    assert json.loads(said.read_text()) == ["--scale", "attention-server=2", "experts=3;$(id)"]


async def test_a_command_that_fails_says_what_it_said_last() -> None:
    scaler = CommandScaler(python("import sys; print('no such service'); sys.exit(3)", "{attention}", "{experts}"))
    with pytest.raises(ScalingFailed, match=r"ended with status 3: no such service") as caught:
        await scaler.scale(WANTED, timeout_s=30)
    assert not isinstance(caught.value, ScalingTimedOut)


async def test_a_command_that_says_very_much_is_not_kept_whole() -> None:
    code = "import sys; print('x' * 10_000_000); print('the end'); sys.exit(1)"
    with pytest.raises(ScalingFailed, match="the end") as caught:
        await CommandScaler(python(code)).scale(WANTED, timeout_s=60)
    assert len(str(caught.value)) < 200_000


async def test_a_command_that_hangs_is_ended_with_its_children() -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with pytest.raises(ScalingTimedOut, match=r"still runs after 2 s: (\d+)") as caught:
        await CommandScaler(python(code)).scale(WANTED, timeout_s=2)
    child = int(str(caught.value).rpartition(" ")[2])
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE


async def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(ScalingFailed, match="no-such-command 2 3: cannot be run"):
        await CommandScaler("no-such-command {attention} {experts}").scale(WANTED, timeout_s=5)


@pytest.mark.parametrize("template", ["", "echo 'unbalanced"])
def test_a_command_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="--scale-command"):
        CommandScaler(template)


@contextlib.asynccontextmanager
async def socket(path: Path, answer: Callable[[Request], object]) -> AsyncIterator[ControlSocketScaler]:
    """A control socket that answers ``POST /scale`` with what ``answer`` returns."""

    async def scale(request: Request) -> Response:
        response = answer(request)
        assert asyncio.iscoroutine(response)
        found: Response = await response
        return found

    server = HttpServer(
        Starlette(routes=[Route("/scale", scale, methods=["POST"])]), listener=open_unix(path / "control.sock")
    )
    await server.start()
    try:
        yield ControlSocketScaler(path / "control.sock")
    finally:
        await server.close()


async def lines(*events: dict[str, object]) -> AsyncIterator[bytes]:
    for event in events:
        yield json.dumps(event).encode() + b"\n"


async def test_the_control_socket_is_asked_for_the_numbers_and_waited_for(tmp_path: Path) -> None:
    asked: list[object] = []

    async def answer(request: Request) -> Response:
        asked.append(await request.json())
        return StreamingResponse(lines({"line": "scaling"}, {"done": True}))

    async with socket(tmp_path, answer) as scaler:
        await scaler.scale(WANTED, timeout_s=10)
        await scaler.scale(Counts(attention=1, experts=0), timeout_s=10)  # monolithic: there are none to speak of
    assert asked == [{"attention": 2, "experts": 3}, {"attention": 1}]


async def test_what_janus_up_refuses_or_fails_at_is_told(tmp_path: Path) -> None:
    answers: list[Response] = [
        JSONResponse({"error": {"message": "restart is under way"}}, 409),
        StreamingResponse(lines({"line": "scaling"}, {"error": {"message": "expert-1: no memory"}})),
        StreamingResponse(lines({"line": "scaling"})),
    ]

    async def answer(request: Request) -> Response:
        await request.body()
        return answers.pop(0)

    async with socket(tmp_path, answer) as scaler:
        with pytest.raises(ScalingRefused, match="restart is under way"):
            await scaler.scale(WANTED, timeout_s=10)
        with pytest.raises(ScalingFailed, match="expert-1: no memory"):
            await scaler.scale(WANTED, timeout_s=10)
        with pytest.raises(ScalingFailed, match="ended before"):
            await scaler.scale(WANTED, timeout_s=10)


async def test_an_operation_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"line": "waiting"}\n'
        await over.wait()

    async def answer(request: Request) -> Response:
        await request.body()
        return StreamingResponse(slow())

    async with socket(tmp_path, answer) as scaler:
        with pytest.raises(ScalingTimedOut, match=r"2A3E in 0\.2 s"):
            await scaler.scale(WANTED, timeout_s=0.2)
        over.set()


async def test_without_janus_up_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ScalingFailed, match=r"control\.sock"):
        await ControlSocketScaler(tmp_path / "control.sock").scale(WANTED, timeout_s=5)
