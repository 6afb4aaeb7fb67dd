"""The tables in docs/transport.md, from the result file."""

from __future__ import annotations

import statistics
import textwrap
from typing import Any

from benchmarks.markdown import table

#: From this size on the goal is a ratio, below it a difference.
RATIO_FROM = 64 << 10
MAX_RATIO = 1.3
MAX_DIFFERENCE_US = 30.0


def tables(result: dict[str, Any]) -> str:
    """Return the conditions, all figures, and links against ucxx itself."""
    hardware = result["hardware"]
    head = (
        f"Measured with `{result['command']}` on {result['date']} at commit {result['commit']}: {hardware['cpu']}, "
        f"{hardware['cores']} cores, Python {hardware['python']}, {result['loop']}; others used "
        f"{result['others_cores']:.1f} cores meanwhile. Two processes on loopback; half a round trip in us, median "
        f"of {result['rounds']} turns that the stacks took one after the other, the best turn in brackets."
    )
    return (
        "\n\n".join(
            [
                textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False),
                table(list(_all(result))),
                "What Janus adds, one way: median over turns that followed each other, and the best turns compared:",
                table(list(_added(result))),
            ]
        )
        + "\n"
    )


def _all(result: dict[str, Any]) -> list[list[str]]:
    figures = {(each["stack"], each["bytes"]): each for each in result["figures"]}
    stacks = list(dict.fromkeys(stack for stack, _ in figures))
    sizes = list(dict.fromkeys(size for _, size in figures))
    return [
        ["payload", *stacks],
        *(
            [_size(size), *(f"{figures[s, size]['trip_us']:.0f} ({figures[s, size]['best_us']:.0f})" for s in stacks)]
            for size in sizes
        ),
    ]


def _added(result: dict[str, Any]) -> list[list[str]]:
    figures = {(each["stack"], each["bytes"]): each for each in result["figures"]}
    head = [
        "payload",
        "link-ucx less ucxx, us",
        "link-ucx / ucxx",
        "best turns: us",
        "best turns: ratio",
        "link-ucx / ucxx-probe",
        "goal",
        "met",
    ]
    return [
        head,
        *(
            _compared(link, figures["ucxx", size], figures.get(("ucxx-probe", size)))
            for (stack, size), link in figures.items()
            if stack == "link-ucx" and ("ucxx", size) in figures
        ),
    ]


def _compared(link: dict[str, Any], raw: dict[str, Any], probing: dict[str, Any] | None) -> list[str]:
    pairs = list(zip(link["turns_us"], raw["turns_us"], strict=True))
    difference = statistics.median(ours - theirs for ours, theirs in pairs)
    ratio = _ratio(link, raw)
    by_ratio = link["bytes"] >= RATIO_FROM
    met = ratio <= MAX_RATIO if by_ratio else difference <= MAX_DIFFERENCE_US
    return [
        _size(link["bytes"]),
        f"{difference:.0f}",
        f"{ratio:.2f}",
        f"{link['best_us'] - raw['best_us']:.0f}",
        f"{link['best_us'] / raw['best_us']:.2f}",
        "-" if probing is None else f"{_ratio(link, probing):.2f}",
        f"{MAX_RATIO:g}x" if by_ratio else f"{MAX_DIFFERENCE_US:.0f} us",
        "yes" if met else "no",
    ]


def _ratio(link: dict[str, Any], raw: dict[str, Any]) -> float:
    turns: list[tuple[float, float]] = list(zip(link["turns_us"], raw["turns_us"], strict=True))
    return statistics.median(ours / theirs for ours, theirs in turns)


def _size(nbytes: int) -> str:
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"
