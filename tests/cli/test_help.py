"""The help of every executable: each option with its unit and default; and quick, without torch, UCX or CuPy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer.testing

from janus.config import AttentionOptions, ControllerOptions, ExpertOptions, GatewayOptions, UpOptions
from janus.config.cli import help_text, options_command
from janus.config.fields import option_fields
from janus_cli.models import ModelsInspectOptions, ModelsListOptions, ModelsRandomOptions
from janus_cli.options import (
    ChatOptions,
    DemoOptions,
    DoctorOptions,
    DownOptions,
    DrainOptions,
    RestartOptions,
    ScaleOptions,
    StatusOptions,
)

OPTIONS = [
    AttentionOptions,
    ControllerOptions,
    ExpertOptions,
    GatewayOptions,
    UpOptions,
    ChatOptions,
    DemoOptions,
    DoctorOptions,
    DownOptions,
    DrainOptions,
    RestartOptions,
    ScaleOptions,
    StatusOptions,
    ModelsInspectOptions,
    ModelsListOptions,
    ModelsRandomOptions,
]
EXECUTABLES = [
    ("janus_gateway", "janus-gateway"),
    ("janus_attention_server", "janus-attention-server"),
    ("janus_expert_server", "janus-expert-server"),
    ("janus_placement_controller", "janus-placement-controller"),
    ("janus_cli", "janus"),
]


@pytest.mark.parametrize("cls", OPTIONS)
def test_every_option_is_shown_with_unit_and_default(cls: type) -> None:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(options_command(cls, lambda _options, _config: None))
    result = typer.testing.CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    text = "".join(result.output.split())  # lines are broken anywhere, at hyphens too
    hidden = getattr(cls, "HIDDEN", frozenset())
    for item in option_fields(cls):
        if item.name not in hidden:
            value = f"/ --no-{item.flag[2:]}" if item.is_bool else item.metavar
            if item.info.positional:
                assert "".join(help_text(item).split()) in text
                assert f"[{item.metavar}]" in result.output.partition("\n")[0]
                continue
            assert "".join(f"{item.flag} {value} {help_text(item)}".split()) in text
            assert "default: " in help_text(item) or "(required)" in help_text(item)
            assert value not in ("TEXT", "INTEGER", "NUMBER") or not item.info.unit


@pytest.mark.parametrize(("module", "prog"), EXECUTABLES)
def test_help_needs_no_torch_no_ucx_no_cupy(module: str, prog: str) -> None:
    code = (
        f"import sys; sys.argv = [{prog!r}, '--help']\n"
        f"from {module}.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'ucxx', 'cupy', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert prog in result.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("janus_expert_server", ["--controler", "x:1"], "error: --controler: is no option; did you mean --controller?"),
        ("janus_expert_server", ["--model", "x", "--threads", "-1"], "error: --threads: -1 is out of range; use at "),
        ("janus_gateway", ["--model", "x"], "error: --controller: is not given; pass --controller HOST:PORT"),
        ("janus_cli", ["up"], "error: --model: is required; pass --model PATH or set JANUS_UP_MODEL"),
        ("janus_cli", ["up", "--model", "/none"], "error: --model: /none has no config.json; give a Hugging Face"),
        ("janus_cli", ["drain"], "error: INSTANCE: is required; pass INSTANCE"),
        (
            "janus_cli",
            ["scale", "--experts", "2", "--name", "nobody"],
            "error: --name: no cluster 'nobody' is running; ",
        ),
        ("janus_cli", ["status", "--name", "nobody"], "error: --name: no cluster 'nobody' is running; "),
        ("janus_cli", ["chat", "--temperature", "-1"], "error: --temperature: -1.0 is out of range; use at least 0"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(module: str, arguments: list[str], message: str) -> None:
    environ = {"JANUS_SECRET": "long enough", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
