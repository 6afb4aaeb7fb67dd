"""From the result to Markdown: the one table, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import table

Result = dict[str, Any]


def tables(result: Result) -> str:
    """Return everything that docs/evaluation.md has between its markers."""
    figures = {figure["figure"]: figure for figure in result["figures"]}
    sections = [
        _head(result),
        "### Every figure",
        _every_figure(result),
        "### Routing that explains figure 17",
        _readings(figures["17"]["data"]),
        "### a_max of the paper's policies and of Janus's",
        _by_policies(figures["17"]["data"]),
        "### The cost model",
        _coefficients(result),
        "### Figure 9 and 16: choices by objective",
        _choices(figures["9"]["data"], figures["16"]["data"]),
        "### Figure 8: largest gains, by cost model",
        _gains(figures["8"]["data"], result["slower"]),
        "### Figure 8: DeepSeek-V2, every system at its best",
        _best(figures["8"]["data"]),
        "### Figure 11: GPU-hours of the day",
        _hours(figures["11"]["data"]),
        "### Figure 11: what Janus does beyond the paper",
        _beyond(figures["11"]["data"]),
        "### Figure 12: TPOT in ms up the ladder",
        _ladder(figures["12"]["data"]),
    ]
    return "\n\n".join(sections) + "\n"


def _head(result: Result) -> str:
    hardware, seconds = result["hardware"], result["cpu_seconds"]
    return (
        f"Simulated {result['date']} at commit `{result['commit']}` with `{result['command']}`, {seconds:.0f} s on one "
        f"core of {hardware['cpu']}. All but what is called measured or counted follows from the "
        "cost model below."
    )


def _every_figure(result: Result) -> str:
    rows = [["figure", "what", "paper", "ours", "difference", "ours is", "why"]]
    for figure in sorted(result["figures"], key=lambda each: int(each["figure"])):
        rows += [
            [
                row["figure"],
                f"{row['what']} ({row['unit']})",
                _paper(row["paper"]),
                "not measured" if row["ours"] is None else _number(row["ours"]),
                _difference(row),
                row["kind"],
                row["why"],
            ]
            for row in figure["rows"]
        ]
    return table(rows)


def _paper(paper: Any) -> str:
    if paper is None:
        return "-"
    if isinstance(paper, list):
        low, high = sorted(paper)
        return f"<= {_number(high)}" if low == 0 else f"{_number(low)} to {_number(high)}"
    return _number(paper)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _difference(row: Result) -> str:
    if row["difference"] is None:
        return "-"
    if isinstance(row["paper"], list) and row["difference"] == 0:
        return "within"
    return f"{row['difference']:+.1%}"


def _readings(data: Result) -> str:
    rows = [["first column taken to be of", "routing", "a_max at B = 16, 64, 256, 512", "rms error"]]
    for fit in (*data["readings"], data["labelled"]):
        label = " (as labelled, best family)" if fit is data["labelled"] else ""
        found = ", ".join(f"{value:.2f}" for value in fit["fitted"].values())
        rows.append([f"{fit['instances']} instances{label}", _routing(fit["routing"]), found, f"{fit['error']:.1%}"])
    return table(rows)


def _routing(routing: Result) -> str:
    parts = [f"rank^-{routing['popularity']:.2f}"]
    if routing["unused"]:
        parts.append(f"{routing['unused']:.0%} unused")
    if routing["affinity"]:
        parts.append(f"{routing['clusters']} topics, affinity {routing['affinity']:g}")
    return ", ".join(parts)


def _by_policies(data: Result) -> str:
    instances = sorted({each["instances"] for each in data["table"]})
    rows = [["a_max: paper's policies / Janus's", *(f"n_e = {n}" for n in instances)]]
    for batch in sorted({each["batch"] for each in data["table"]}):
        cells = {each["instances"]: each for each in data["table"] if each["batch"] == batch}
        rows.append([f"B = {batch}", *(f"{cells[n]['paper']:.2f} / {cells[n]['ours']:.2f}" for n in instances)])
    return table(rows)


def _coefficients(result: Result) -> str:
    calibration = result["calibration"]
    rows = [["coefficient", "value", "from"]]
    of_sheet = "data sheet"
    rows += [
        ["weights and KV cache, bytes/s", f"{calibration['weight_bytes_s']:.3g}", f"{of_sheet}, 3.35 TB/s x 0.8"],
        ["products, FLOP/s", f"{calibration['flops_s']:.4g}", f"{of_sheet}, 989 TFLOP/s dense x 0.5"],
        ["memory, bytes", f"{calibration['memory_bytes']:.4g}", "81,559 MiB, as nvidia-smi shows"],
    ]
    words = {
        "layer": "seconds per layer and side",
        "token": "seconds per stream and step at attention",
        "row": "seconds per row and layer at experts",
    }
    for name, value in calibration["seconds"].items():
        rows.append([words[name], f"{value:.3g}", "fitted to figure 9's four points"])
    for name, link in result["links"].items():
        for field, value in link.items():
            rows.append([f"{name} {field}", f"{value:.4g}", result["link_sources"].get(f"{name}.{field}", "")])
    slower = next(figure for figure in result["figures"] if figure["figure"] == "12")["data"]["slower_bytes"]
    rows.append(
        ["bytes between nodes, times slower in the second network", f"{slower:.2f}", "fitted to figure 12's first"]
    )
    return table(rows)


def _choices(nine: Result, sixteen: Result) -> str:
    batches = list(nine["choices"])
    rows = [["TPOT objective, ms", *(f"B = {batch}" for batch in batches)]]
    for index, entry in enumerate(nine["choices"][batches[0]]):
        cells = []
        for batch in batches:
            each = nine["choices"][batch][index]
            cells.append(f"{each['choice']} ({each['tpg']:.0f} tokens/s per GPU)" if each["choice"] else "none")
        if entry["slo_ms"] % 10 == 0:
            rows.append([f"{entry['slo_ms']:.0f}", *cells])
    between = [sixteen["same_choice_between_ms"][batch] for batch in batches]
    rows.append(["where the paper's is chosen", *map(_span, between)])
    return table(rows)


def _span(between: Sequence[float | None] | None) -> str:
    if between is None:
        return "never"
    low, high = between
    return f"{low:.1f} and more" if high is None else f"{low:.1f} to {high:.1f}"


def _gains(data: Result, slower: Result) -> str:
    worlds = list(data["largest_gains"])
    rows = [["largest gain over", *worlds, "steps that explain the paper's"]]
    for system in next(iter(data["largest_gains"].values())):
        cells = [data["largest_gains"][world][system] for world in worlds]
        times = f"{slower[system]:.2f} times as long" if system in slower else "-"
        rows.append([system, *(_gain(cell) for cell in cells), times])
    return table(rows)


def _gain(cell: Result | None) -> str:
    return "-" if cell is None else f"{cell['ratio']:.2f} ({cell['where']})"


def _best(data: Result) -> str:
    cases = next(iter(data["cases"].values()))
    systems = [key for key in cases[0] if key not in {"model", "batch", "slo_ms"}]
    rows = [["tokens/s per GPU", *systems]]
    for case in cases:
        if case["model"] == "DeepSeek-V2":
            cells = [f"{case[s]['tpg']:.0f} ({case[s]['deployment']})" if case[s] else "none" for s in systems]
            rows.append([f"B = {case['batch']}, {case['slo_ms']} ms", *cells])
    return table(rows)


def _hours(data: Result) -> str:
    worlds = [name for name, each in data.items() if isinstance(each, dict)]
    systems = list(dict.fromkeys(system for name in worlds for system in data[name]["gpu_hours"]))
    rows = [["GPU-hours (Janus's against them)", *systems]]
    for name in worlds:
        hours, served = data[name]["gpu_hours"], data[name]["within"]
        cells = []
        for system in systems:
            words = [f"{hours['janus'] / hours[system] - 1:+.0%}"] if system != "janus" else []
            words += [f"serves {served[system]:.0%}"] if served[system] < 1 else []
            cells.append(f"{hours[system]:,.0f}" + (f" ({', '.join(words)})" if words else ""))
        rows.append([name, *cells])
    return table(rows)


def _beyond(data: Result) -> str:
    rows = [["Janus, provisioned every", "GPU-hours", "change", "requests within the objective"]]
    rows += [
        [each["what"], f"{each['gpu_hours']:,.0f}", f"{each['change']:+.1%}", f"{each['within']:.1%}"]
        for each in data["beyond"]
    ]
    return table(rows)


def _ladder(data: Result) -> str:
    worlds = data["tpot_ms"]
    batches = ("256", "512")
    head = [f"{world}, B = {batch}" for world in worlds for batch in batches]
    rows = [[f"{data['attention']}A{data['experts']}E", *head]]
    rows += [
        [step, *(f"{worlds[world][step][batch]:.1f}" for world in worlds for batch in batches)]
        for step in next(iter(worlds.values()))
    ]
    return table(rows)
