"""What a service logs: one event per line, and nothing that only some may know."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from janus.cluster.controller_tool import ControllerTool
from janus.config.options import CommonOptions
from janus.runtime import logs
from janus_gateway.app import AppConfig

SECRET = "a secret of a cluster"


@pytest.fixture
def configured() -> Iterator[None]:
    """Afterwards logging is as it was."""
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    yield
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers


def fail_with(secret: str) -> None:
    raise RuntimeError("it failed")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_tells_where_and_not_what_variables_hold(
    form: Literal["json", "console"], configured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(CommonOptions(name="gateway-0", log_format=form), role="gateway")
    try:
        fail_with(SECRET)
    except RuntimeError:
        structlog.get_logger().exception("service_crashed")
    text = capsys.readouterr().err
    assert "fail_with" in text and "it failed" in text
    assert SECRET not in text
    if form == "json":
        (line,) = text.splitlines()
        event: dict[str, Any] = json.loads(line)
        assert (event["event"], event["role"], event["instance"]) == ("service_crashed", "gateway", "gateway-0")


@pytest.mark.parametrize(
    "holder",
    [
        CommonOptions(secret=SECRET),
        AppConfig(api_key=SECRET),
        ControllerTool(find=lambda: pytest.fail("nobody asks"), transport="tcp", secret=SECRET),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_what_holds_a_secret_does_not_show_it(holder: object) -> None:
    assert SECRET not in repr(holder)
