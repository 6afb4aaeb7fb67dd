"""From cells to the result file, a table on the terminal, and the same table in the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.markdown import table
from benchmarks.serving.campaign import Campaign, Cell

#: The engine whose figures are the headline.
CLUSTER = "1A1E"


def summary(campaign: Campaign) -> dict[str, Any]:
    """Return the medians over the rounds of one model in one dtype, and its raw cells."""
    cells = campaign.cells
    engines = list(dict.fromkeys(cell.engine for cell in cells))
    medians = {key: {engine: _medians(cells, engine, value) for engine in engines} for key, value in _VALUES.items()}
    ratios = {f"vs_{other}": vs(cells, CLUSTER, other) for other in engines if other != CLUSTER and CLUSTER in engines}
    return {
        **ratios,
        **medians,
        "cpu_ms_per_token": {engine: _cpu(cells, engine) for engine in engines},
        "step_breakdown_us": campaign.breakdowns,
        "skipped": campaign.skipped,
        **campaign.as_json(),
    }


_VALUES: dict[str, Callable[[Cell], float]] = {
    "output_tokens_per_s": lambda cell: cell.tokens_per_s,
    "tpot_ms": lambda cell: cell.tpot_ms,
    "ttft_ms": lambda cell: cell.ttft_ms,
    "others_cores": lambda cell: cell.others_cores,
}


def vs(cells: Sequence[Cell], engine: str, other: str) -> dict[str, float]:
    """Return, per concurrency, the median over the rounds of ``engine``'s throughput divided by ``other``'s.

    Pairs are of one round, minutes apart at most, so what slows the whole machine down for a while cancels out.
    """
    rates = {(cell.engine, cell.concurrency, cell.round): cell for cell in cells}
    ratios: dict[int, list[tuple[bool, float]]] = {}
    for (name, concurrency, number), cell in rates.items():
        partner = rates.get((other, concurrency, number))
        if name == engine and partner is not None:
            pair = (cell.disturbed or partner.disturbed, cell.tokens_per_s / partner.tokens_per_s)
            ratios.setdefault(concurrency, []).append(pair)
    return {str(concurrency): round(_quiet_median(pairs), 3) for concurrency, pairs in ratios.items()}


def _medians(cells: Sequence[Cell], engine: str, value: Callable[[Cell], float]) -> dict[str, float]:
    found: dict[int, list[tuple[bool, float]]] = {}
    for cell in cells:
        if cell.engine == engine:
            found.setdefault(cell.concurrency, []).append((cell.disturbed, value(cell)))
    return {str(concurrency): round(_quiet_median(pairs), 3) for concurrency, pairs in found.items()}


def _quiet_median(pairs: Sequence[tuple[bool, float]]) -> float:
    """The median of the undisturbed values, or of all when there is none."""
    quiet = [value for disturbed, value in pairs if not disturbed]
    return statistics.median(quiet or [value for _, value in pairs])


def _cpu(cells: Sequence[Cell], engine: str) -> dict[str, dict[str, float]]:
    processes = dict.fromkeys(name for cell in cells if cell.engine == engine for name in cell.cpu_ms_per_token)
    by_process = {name: _medians(cells, engine, partial(_used, process=name)) for name in processes}
    concurrencies = dict.fromkeys(key for values in by_process.values() for key in values)
    return {key: {name: values[key] for name, values in by_process.items()} for key in concurrencies}


def _used(cell: Cell, process: str) -> float:
    return cell.cpu_ms_per_token[process]


# -- tables --------------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> str:
    """Return the result in Markdown, which reads well on a terminal too."""
    hardware = result["hardware"]
    flags = ", ".join(flag for flag, there in hardware["flags"].items() if there)
    parts = [
        f"Measured {result['date']} at commit `{result['commit']}` with `{result['command']}` on {hardware['cpu']}, "
        f"{hardware['cores_used']} of {hardware['cores']} cores ({flags}), {hardware['memory_gib']} GiB. "
        f"{result['load']}"
    ]
    for model, dtypes in result["models"].items():
        for dtype, data in dtypes.items():
            parts.append(f"### {model}, {dtype}")
            parts.append(_speed_table(data))
            parts += [_breakdown_table(engine, data) for engine in data["step_breakdown_us"]]
            if data["skipped"]:
                reasons = [f"{engine}: {reason}" for engine, reason in data["skipped"].items()]
                parts.append("Not measured: " + "; ".join(reasons) + ".")
    return "\n\n".join(parts) + "\n"


def _speed_table(data: dict[str, Any]) -> str:
    engines = list(data["output_tokens_per_s"])
    concurrencies = list(data["output_tokens_per_s"][engines[0]])
    rows = [["output tokens/s / TPOT ms [TTFT ms]", *(f"N={n}" for n in concurrencies)]]
    for engine in engines:
        cells = [
            f"{data['output_tokens_per_s'][engine][n]:.0f} / {data['tpot_ms'][engine][n]:.2f} "
            f"[{data['ttft_ms'][engine][n]:.0f}]"
            for n in concurrencies
        ]
        rows.append([engine, *cells])
    for key in (key for key in data if key.startswith("vs_")):
        ratios = [f"{data[key][n]:.2f}x" if n in data[key] else "" for n in concurrencies]
        rows.append([f"{CLUSTER} over {key.removeprefix('vs_')}", *ratios])
    for engine in engines:
        used = [data["cpu_ms_per_token"][engine][n] for n in concurrencies]
        own = [f"{sum(v for k, v in use.items() if k != 'client'):.2f} + {use['client']:.2f}" for use in used]
        rows.append([f"CPU ms per token, {engine} + client", *own])
    return table(rows)


def _breakdown_table(engine: str, data: dict[str, Any]) -> str:
    columns = data["step_breakdown_us"][engine]
    parts = list(next(iter(columns.values())))
    rows = [[f"µs of a decode step, {engine}", *(f"N={n}" for n in columns)]]
    rows += [[part, *(f"{column[part]:.0f}" for column in columns.values())] for part in parts]
    return table(rows)
