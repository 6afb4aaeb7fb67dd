"""The plots of docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.paper import published
from benchmarks.scheduling.plot import Line, Panel, chart

#: Colours that differ for colour-blind eyes too, after Okabe and Ito (2008).
_BLUE, _RED, _GREEN, _SKY, _ORANGE, _GREY = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#e69f00", "#8a8a8a"
_CYCLE = (_BLUE, _RED, _GREEN, _ORANGE, _SKY, _GREY)
_SYSTEMS = {
    "janus": _BLUE,
    "monolithic": _RED,
    "one-degree": _ORANGE,
    "megascale": _GREEN,
    "xdeepserve": _SKY,
}


def figures(result: Mapping[str, Any]) -> dict[str, str]:
    """Return SVG text by file name."""
    data = {figure["figure"]: figure["data"] for figure in result["figures"]}
    return {
        "paper-fig-1.svg": _layer_time(data["1"]),
        "paper-fig-8.svg": _throughput(data["8"]),
        "paper-fig-9.svg": _choices(data["9"]),
        "paper-fig-10.svg": _tpot(data["10"]),
        "paper-fig-11.svg": _day(data["11"]),
        "paper-fig-12.svg": _ladder(data["12"]),
        "paper-fig-13.svg": _policies(data["13"]),
        "paper-fig-16.svg": _space(data["16"]),
        "paper-fig-17.svg": _columns(data["17"]),
    }


def _layer_time(data: Mapping[str, Any]) -> str:
    lines = [
        Line(name=name, colour=colour, points=[(each["batch"], each[key]) for each in data["points"]])
        for name, key, colour in (("attention", "attention_us", _BLUE), ("experts", "experts_us", _RED))
    ]
    panel = Panel(title=f"{data['model']}, 1A{data['experts']}E", lines=lines)
    return chart(
        "Figure 1, simulated: layer time",
        [panel],
        x_label="tokens in the batch",
        y_label="microseconds",
        y_log=True,
    )


def _throughput(data: Mapping[str, Any]) -> str:
    cases = [case for case in next(iter(data["cases"].values())) if case["slo_ms"] == min(_slos())]
    panels = []
    for model in dict.fromkeys(case["model"] for case in cases):
        of_model = [case for case in cases if case["model"] == model]
        lines = [
            Line(
                name=system,
                colour=colour,
                points=[(case["batch"], case[system]["tpg"]) for case in of_model if case[system]],
            )
            for system, colour in _SYSTEMS.items()
            if any(case[system] for case in of_model)
        ]
        panels.append(Panel(title=model, lines=lines))
    return chart(
        f"Figure 8, simulated: tokens/s per GPU, TPOT up to {min(_slos())} ms",
        panels,
        x_label="tokens in the batch",
        y_label="tokens/s per GPU",
    )


def _slos() -> list[int]:
    return [round(1e3 * slo_s) for slo_s in published.TPOT_SLO_S]


def _choices(data: Mapping[str, Any]) -> str:
    lines = [
        Line(
            name=f"B = {batch}",
            colour=colour,
            points=[(each["slo_ms"], each["tpg"]) for each in chosen if each["choice"]],
            marks=False,
        )
        for (batch, chosen), colour in zip(data["choices"].items(), _CYCLE, strict=False)
    ]
    return chart(
        "Figure 9, simulated: the choice",
        [Panel(title="DeepSeek-V2, fewest GPUs", lines=lines)],
        x_label="TPOT objective, ms",
        y_label="tokens/s per GPU",
        x_log=False,
    )


def _tpot(data: Mapping[str, Any]) -> str:
    panels = [
        Panel(
            title=name,
            lines=[
                Line(
                    name=system,
                    colour=_SYSTEMS[system],
                    points=[(each["batch"], each[f"{system}_ms"]) for each in line],
                )
                for system in ("megascale", "janus")
            ],
        )
        for name, line in data["lines"].items()
    ]
    return chart(
        "Figure 10, simulated: Scaled-DS-2, 16 expert instances",
        panels,
        x_label="tokens in the batch",
        y_label="TPOT, ms",
    )


def _day(data: Mapping[str, Any]) -> str:
    panels = []
    hours = data["interval_s"] / 3600
    for name, world in data.items():
        if isinstance(world, dict):
            lines = [
                Line(
                    name=system,
                    colour=_SYSTEMS[system],
                    points=list(_steps([index * hours for index in range(len(gpus))], gpus, hours)),
                    marks=False,
                    width=1.6,
                )
                for system, gpus in world["gpus"].items()
            ]
            panels.append(Panel(title=name, lines=lines))
    return chart(
        "Figure 11, simulated: GPUs over a day, every 15 minutes",
        panels,
        x_label="hour",
        y_label="GPUs",
        x_log=False,
    )


def _steps(at: Sequence[float], values: Sequence[float], lasts: float) -> Iterator[tuple[float, float]]:
    for start, value in zip(at, values, strict=True):
        yield start, value
        yield start + lasts, value


def _ladder(data: Mapping[str, Any]) -> str:
    panels = [
        Panel(
            title=name,
            lines=[
                Line(name=step, colour=colour, points=[(int(batch), tpot) for batch, tpot in of.items()])
                for (step, of), colour in zip(steps.items(), _CYCLE, strict=True)
            ],
        )
        for name, steps in data["tpot_ms"].items()
    ]
    return chart(
        f"Figure 12, simulated: the ladder, {data['attention']}A{data['experts']}E",
        panels,
        x_label="tokens in the batch",
        y_label="TPOT, ms",
    )


def _policies(data: Mapping[str, Any]) -> str:
    panels = [
        Panel(
            title=f"{each['instances']} instances",
            lines=[
                Line(name=name, colour=colour, points=list(zip(each["batches"], values, strict=True)))
                for (name, values), colour in zip(each["a_max"].items(), (_RED, _SKY, _ORANGE, _BLUE), strict=True)
            ],
        )
        for each in data["lines"]
    ]
    return chart(
        "Figure 13, simulated: a_max by policy, DeepSeek-V2",
        panels,
        x_label="tokens in the batch",
        y_label="a_max (mean)",
    )


def _space(data: Mapping[str, Any]) -> str:
    panels = []
    attention = sorted({each["attention"] for each in data["space"]})
    for batch in sorted({each["batch"] for each in data["space"]}):
        lines = [
            Line(
                name=f"{a}A",
                colour=colour,
                points=[
                    (each["experts"], each["tpot_ms"])
                    for each in data["space"]
                    if (each["batch"], each["attention"]) == (batch, a)
                ],
            )
            for a, colour in zip(attention, _CYCLE, strict=False)
        ]
        panels.append(Panel(title=f"B = {batch}", lines=lines))
    return chart(
        "Figure 16, simulated: TPOT over the search space, DeepSeek-V2",
        panels,
        x_label="expert instances",
        y_label="TPOT, ms",
        x_log=False,
    )


def _columns(data: Mapping[str, Any]) -> str:
    best = data["best"]["instances"]
    panels = []
    for column, instances in ((published.FITTED_COLUMN, best), (12, 12), (16, 16)):
        of_column = [each for each in data["table"] if each["instances"] == instances]
        words = f"n_e = {column}" if column == instances else f"n_e = {column}, read as {instances}: fitted"
        panels.append(
            Panel(
                title=words,
                lines=[
                    Line(name="paper's policies", colour=_ORANGE, points=[(e["batch"], e["paper"]) for e in of_column]),
                    Line(name="Janus's", colour=_BLUE, points=[(e["batch"], e["ours"]) for e in of_column]),
                    Line(
                        name="paper, figure 17",
                        colour="#222222",
                        dash="2 4",
                        points=[(size, value) for (n, size), value in published.A_MAX.items() if n == column],
                    ),
                ],
            )
        )
    return chart(
        "Figure 17, simulated: a_max of DeepSeek-V2, 27 slots",
        panels,
        x_label="tokens in the batch",
        y_label="a_max (mean)",
    )
