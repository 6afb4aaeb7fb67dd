"""``janus profile``: measures this machine's services and writes the profile that ``janus plan`` reckons with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from janus.config.fields import check_ranges, option
from janus.config.options import DType
from janus.errors import ConfigError, LaunchError
from janus_cli.console import output, tell
from janus_cli.up import show_launch_error

if TYPE_CHECKING:
    from janus.profiling.campaign import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """Measure what this machine's attention- and expert-servers take, and write it to a profile for janus plan.

    Starts small clusters, one after the other, puts load on them, and fits the rates of the planner's model to what
    their counters say. Nothing else should run meanwhile.
    """

    model: Path | None = option(
        None, help="Model directory to measure with.", default_text="two with random weights, written for the purpose"
    )
    out: Path = option(Path("janus-profile.toml"), help="File to write.")
    name: str = option("", help="Name of the profile.", default_text="measured-PROCESSOR")
    quick: bool = option(False, help="Fewer points: a minute or two, and wider intervals.")
    dtype: DType = option("float32", help="Type of weights, KV cache and activations.")
    threads: int = option(
        0,
        help="CPU threads of each instance; what is planned with the profile should have as many.",
        unit="threads",
        default_text="0 = the cores, shared out",
        minimum=0,
    )
    observations: Path | None = option(None, help="JSON file for every point that was measured.", default_text="none")
    add: Path | None = option(
        None, help="Such a file of an earlier run on this machine: its points are fitted too.", default_text="none"
    )

    refit: bool = option(False, help="Measure nothing: fit what --add holds, as after a change of the planner's model.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.refit and self.add is None:
            raise ConfigError("--refit", "there is nothing to fit", "name a file of --observations with --add")


def profile(options: ProfileOptions) -> int:
    """Measure, fit, write, show."""
    from janus.profiles import write_profile
    from janus.profiling import record
    from janus.profiling.campaign import Earlier, Settings, run
    from janus.profiling.points import FULL, NONE, QUICK

    effort = NONE if options.refit else QUICK if options.quick else FULL
    settings = Settings(model=options.model, effort=effort, dtype=options.dtype, threads=options.threads)
    if not options.out.resolve().parent.is_dir():
        raise ConfigError("--out", f"{options.out.parent} is no directory", "name a file that can be written")
    earlier = None
    if options.add is not None:
        # Alone, they may be of any machine.
        found = record.read(options.add, here=None if options.refit else settings.conditions())
        earlier = Earlier(
            observations=tuple(seen.observed for seen in found.observations),
            load_rates=tuple(found.load_rates),
            host_work=tuple(found.host_work),
            measured=found.measured,
            conditions=found.conditions,
        )
    try:
        result = asyncio.run(run(settings, tell, earlier=earlier))
    except LaunchError as error:
        show_launch_error(error)
        return 1
    measured = result.fit.profile
    write_profile(replace(measured, name=options.name or measured.name), options.out)
    if options.observations is not None:
        record.write(result, options.observations)
    _show(options, result)
    return 0


def _show(options: ProfileOptions, result: Result) -> None:
    from janus.profiling.report import goodness, rows, warning

    console = output()
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "what", "value", "95 % interval"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in rows(result.fit.profile):
        table.add_row(*row)
    console.print(table)
    console.print(goodness(result), soft_wrap=True)
    if problem := warning(result):
        console.print(f"[yellow]{problem}[/yellow]", soft_wrap=True)
    console.print(f"written to {options.out}", soft_wrap=True)
