"""``janus demo``: a whole cluster, a streamed completion, and what happened inside."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import time

import httpx

from janus.cluster.checks.network import check_port
from janus.cluster.checks.ucx import check_ucx
from janus.cluster.status import fetch_status
from janus.cluster.supervisor import Supervisor
from janus.cluster.up import run_up
from janus.config import UpOptions
from janus.errors import ConfigError, JanusError, LaunchError
from janus.messages.control import StatusReport
from janus_cli.chat import write
from janus_cli.console import output, tell
from janus_cli.options import DemoOptions, Sampling
from janus_cli.status import layers_table
from janus_cli.stream import stream
from janus_cli.up import show_launch_error

_SAMPLING = Sampling(max_tokens=120, temperature=0.75, top_p=0.9, repetition_penalty=1.1, seed=7)
#: The controller hears of a step with the next heartbeat.
_HEARTBEAT_LIMIT_S = 5.0


def demo(options: DemoOptions) -> int:
    """Run the demo; returns the exit status."""
    port = _free_port(options.port)
    for finding in check_ucx():
        if finding.level == "problem":
            raise ConfigError(finding.check, finding.detail, finding.remedy)
    up = UpOptions(
        model=options.model,
        attention=options.attention,
        experts=options.experts,
        port=port,
        name="demo",
        log_level="warning",
        restart="never",
    )
    keep = options.keep if options.keep is not None else sys.stdin.isatty() and sys.stdout.isatty()
    began = time.monotonic()

    async def session(supervisor: Supervisor) -> None:
        tell(f"ready after {time.monotonic() - began:.1f} s: {supervisor.url}/v1")
        await _show(supervisor, options)
        if keep:
            tell("still serving; press Ctrl-C to stop")
            await asyncio.get_running_loop().create_future()  # until a signal cancels it

    tell(f"starting {options.attention} attention-server(s) and {options.experts} expert-server(s), linked over UCX")
    try:
        asyncio.run(run_up(up, config=None, tell=tell, session=session))
    except LaunchError as error:
        show_launch_error(error)
        return 1
    return 0


async def _show(supervisor: Supervisor, options: DemoOptions) -> None:
    console = output()
    console.print()
    write(options.prompt)
    body = {"prompt": options.prompt, **_SAMPLING.body()}
    usage = await stream(supervisor.url, "completions", body, write)
    print(flush=True)
    console.print(f"\n[dim]{usage}[/dim]\n")
    for source, activated in (await _activated(supervisor)).items():
        console.print(f"Experts that {source} activated for the last token, per MoE layer and expert-server:")
        console.print(layers_table(activated))
    print(_next_steps(supervisor.url, options), flush=True)


async def _activated(supervisor: Supervisor) -> dict[str, dict[str, list[int]]]:
    """Activated experts per attention instance, once the controller has heard of a step."""
    deadline = time.monotonic() + _HEARTBEAT_LIMIT_S
    while True:
        try:
            report: StatusReport = await fetch_status(supervisor.controller_ops)
        except (httpx.HTTPError, ValueError) as error:
            raise JanusError(f"{supervisor.controller_ops}: the controller does not answer ({error})") from error
        found = {name: beat.activated for name, beat in sorted(report.heartbeats.items()) if beat.activated}
        if found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


def _free_port(wanted: int) -> int:
    """``wanted``, or any free port when somebody has it: a demo should not fail over that."""
    finding = check_port("127.0.0.1", wanted)
    if finding.level != "problem":
        return wanted
    tell(f"{finding.check} is {finding.detail}; taking another one")
    return 0


def _janus() -> str:
    """How to call this program from where the user is: it may not be on the PATH."""
    return "janus" if shutil.which("janus") else os.path.relpath(sys.argv[0])


def _next_steps(url: str, options: DemoOptions) -> str:
    janus = _janus()
    prompt = options.prompt
    request = {"prompt": prompt, "max_tokens": 80, "temperature": 0.75, "stream": True}
    return f"""
Send a request with curl:

  curl -N {url}/v1/completions -H 'Content-Type: application/json' \\
    -d {shlex.quote(json.dumps(request))}

or with the openai client:

  from openai import OpenAI

  client = OpenAI(base_url="{url}/v1", api_key="none")
  model = client.models.list().data[0].id
  for part in client.completions.create(model=model, prompt={prompt!r}, max_tokens=80, stream=True):
      print(part.choices[0].text, end="", flush=True)

A cluster that stays:  {janus} up --model {options.model} --attention 1 --experts 2
Then, elsewhere:       {janus} status --layers,  {janus} chat,  {janus} down
"""
