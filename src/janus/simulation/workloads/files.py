"""Public traces of requests, read from CSV files.

Azure LLM inference   TIMESTAMP,ContextTokens,GeneratedTokens
                      (Patel et al., Splitwise, ISCA 2024; Stojkovic et al., DynamoLLM, HPCA 2025)
BurstGPT              Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
                      (Wang et al., BurstGPT, KDD 2025); answers of 0 tokens are failures there, and left out
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from janus.errors import ConfigError
from janus.simulation.workloads.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    name: str
    time: str
    prompt: str
    output: str
    #: Whether the time is a date, not a number of seconds.
    dated: bool


_FORMATS = (
    _Format(name="azure", time="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens", dated=True),
    _Format(name="burstgpt", time="Timestamp", prompt="Request tokens", output="Response tokens", dated=False),
)


def read_trace(path: Path) -> Workload:
    """Return the requests of a file, whichever of the two formats it has; the first one arrives at 0.

    Raises:
        ConfigError: the file cannot be read, or is of neither format; names file, line and remedy.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read(path, csv.reader(file))
    except OSError as error:
        raise ConfigError("workload", f"{path}: {error.strerror}", "name a readable CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError("workload", f"{path} is no CSV file: {error}", "unpack it, or name another file") from error


def _read(path: Path, lines: Iterator[Sequence[str]]) -> Workload:
    header = [name.strip() for name in next(lines, [])]
    found = next((each for each in _FORMATS if {each.time, each.prompt, each.output} <= set(header)), None)
    if found is None:
        wanted = " or ".join(f"{each.time}, {each.prompt}, {each.output}" for each in _FORMATS)
        raise ConfigError(
            "workload", f"{path}, line 1: the columns are {', '.join(header) or 'missing'}", f"they must have {wanted}"
        )
    columns = [header.index(name) for name in (found.time, found.prompt, found.output)]
    times, prompts, outputs, left_out = [], [], [], 0
    for number, line in enumerate(lines, 2):
        if not any(line):
            continue
        try:
            when, prompt, output = (line[column] for column in columns)
            at_s = _seconds(when) if found.dated else float(when)
            tokens = int(float(prompt)), int(float(output))
        except (ValueError, IndexError, OverflowError) as error:
            raise ConfigError(
                "workload",
                f"{path}, line {number}: {','.join(line)!r} is no request of a {found.name} trace ({error})",
                f"it needs {found.time}, {found.prompt}, {found.output}; correct or remove the line",
            ) from error
        if min(tokens) < 1:
            left_out += 1
            continue
        times.append(at_s)
        prompts.append(tokens[0])
        outputs.append(tokens[1])
    if not times:
        raise ConfigError("workload", f"{path}: no request with a prompt and an answer", "name another file")
    at = np.array(times)
    order = np.argsort(at, kind="stable")
    at = at[order] - at[order[0]]
    return Workload(
        name=f"{found.name}:{path.name}",
        at_s=at,
        prompt=np.array(prompts, dtype=np.int64)[order],
        output=np.array(outputs, dtype=np.int64)[order],
        # As long as the last request's distance to the next one would be.
        duration_s=float(at[-1]) * len(at) / max(1, len(at) - 1) or 1.0,
        left_out=left_out,
    )


def _seconds(text: str) -> float:
    when = datetime.fromisoformat(text.strip())
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
