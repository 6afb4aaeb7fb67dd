"""From cases to what is said about them: shares and means, Markdown tables, and the document that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.markdown import table
from benchmarks.paper.published import A_MAX
from benchmarks.scheduling.layer_time import RIDGES
from benchmarks.scheduling.quality import POLICIES

Case = dict[str, Any]


def optimal_share(cases: Sequence[Case]) -> dict[str, float]:
    """Return the share of launches in which each policy reached the least a_max."""
    launches = sum(case["draws"] for case in cases)
    return {
        policy: round(sum(case["optimal_share"][policy] * case["draws"] for case in cases) / launches, 4)
        for policy in POLICIES
    }


def imbalance_mean(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Return, per shape, the mean over its cases of (max - min) activated experts per instance, of every policy.

    ``least`` is what no choice of replicas can beat: that of aebs less what the checked launches have to spare.
    """
    return {shape: _imbalance(_where(cases, shape=shape)) for shape in _values(cases, "shape")}


def _imbalance(cases: Sequence[Case]) -> dict[str, float]:
    means = {policy: round(fmean(case["imbalance"][policy] for case in cases), 3) for policy in POLICIES}
    return means | {"least": round(fmean(case["imbalance_least"] for case in cases), 3)}


def tables(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    cases = result["cases"]
    large = [case for case in cases if case["shape"] != "janus-tiny"]
    tiny = [case for case in cases if case["shape"] == "janus-tiny"]
    sections = [
        _head(result),
        "### Launches at the optimum",
        _share_table(large, tiny),
        _repairs(cases),
        "### a_max",
        _a_max_table(large, by="instances", batch=64),
        _a_max_table(large, by="batch", instances=16),
        _shape_table(large),
        "### Beside the paper's figure 17",
        _figure_17_table(large),
        "### Imbalance",
        _imbalance_table(result["imbalance_mean"]),
        _imbalance_by_instances(large),
        "### Recorded routing of janus-tiny",
        _tiny_table(tiny),
        "### CPU time per call",
        _times_by_policy(result["cpu_us"]),
        _times_by_shape(result["cpu_us"]),
        "### When tokens matter more",
        _token_table(large),
        _layer_time_table(result["layer_time"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    return (
        f"Measured {result['date']} at commit `{result['commit']}` with `{result['command']}` on {hardware['cpu']}, "
        f"{hardware['cores']} cores: {result['launches']:,} launches per policy in {len(result['cases'])} cases. aebs "
        f"proved {result['proven_share']:.2%} of its choices the best possible; of {result['checked']:,} the optimum "
        f"was found a second way, by matching, and was the same in every one. While the CPU times were taken, others "
        f"used {result['others_cores']:.2f} cores."
    )


def _share_table(large: Sequence[Case], tiny: Sequence[Case]) -> str:
    rows = [["share of launches with the least a_max", *POLICIES]]

    def row(name: str, cases: Sequence[Case]) -> None:
        if cases:
            rows.append([name, *(f"{share:.1%}" for share in optimal_share(cases).values())])

    for n in _values(large, "instances"):
        row(f"{n} instances", _where(large, instances=n))
    row("all large shapes", large)
    row("janus-tiny, recorded", tiny)
    return table(rows)


def _repairs(cases: Sequence[Case]) -> str:
    launches = sum(case["draws"] for case in cases)
    repaired = sum(case["repaired"] * case["draws"] for case in cases) / launches
    return (
        f"aebs repaired its first choice in {repaired:.1%} of the launches, with at most "
        f"{max(case['most_repairs'] for case in cases)} shifts."
    )


def _a_max_table(large: Sequence[Case], *, by: str, **fixed: int) -> str:
    cases = _where(large, shape="deepseek-v2", routing="zipf-1.0", **fixed)
    what = ", ".join(f"{'B' if key == 'batch' else 'n_e'} = {value}" for key, value in fixed.items())
    label = "n_e" if by == "instances" else "B"
    return _policy_table(f"a_max, DeepSeek-V2, Zipf 1.0, {what}", cases, lambda case: f"{label} = {case[by]}")


def _shape_table(large: Sequence[Case]) -> str:
    cases = _where(large, instances=16, batch=64)
    title = "a_max, n_e = 16, B = 64"
    return _policy_table(title, cases, lambda case: f"{case['shape']}, {case['routing']}, C = {case['slots']}")


def _policy_table(title: str, cases: Sequence[Case], name: Callable[[Case], str]) -> str:
    if not cases:
        return ""
    rows = [[title, "activated", *POLICIES, "optimum"]]
    for case in cases:
        values = [case["activated"], *(case["a_max"][policy] for policy in POLICIES), case["optimum"]]
        rows.append([name(case), *(f"{value:.2f}" for value in values)])
    return table(rows)


def _figure_17_table(large: Sequence[Case]) -> str:
    cases = _where(large, shape="deepseek-v2")
    routings = _values(cases, "routing")
    rows = [["a_max of AEBS, DeepSeek-V2, C = 27", "paper", *(f"ours, {routing}" for routing in routings)]]
    for (n, size), value in A_MAX.items():
        ours = [_where(cases, instances=n, batch=size, routing=routing) for routing in routings]
        if all(ours):
            rows.append([f"n_e = {n}, B = {size}", f"{value:.2f}", *(f"{found[0]['optimum']:.2f}" for found in ours)])
    return table(rows) if len(rows) > 1 else ""


def _imbalance_table(means: dict[str, dict[str, float]]) -> str:
    columns = [*POLICIES, "least"]
    rows = [["mean of max - min, all cases", *POLICIES, "least possible"]]
    rows += [[shape, *(f"{of[column]:.2f}" for column in columns)] for shape, of in means.items()]
    return table(rows)


def _imbalance_by_instances(large: Sequence[Case]) -> str:
    cases = _where(large, shape="deepseek-v2")
    rows = [["mean of max - min, DeepSeek-V2", *POLICIES, "least possible"]]
    for n in _values(cases, "instances"):
        found = _imbalance(_where(cases, instances=n))
        rows.append([f"{n} instances", *(f"{value:.2f}" for value in found.values())])
    return table(rows) if cases else ""


def _tiny_table(tiny: Sequence[Case]) -> str:
    cases = [case for case in tiny if case["batch"] == 16 and case["instances"] in (4, 8)]
    return _policy_table(
        "a_max, B = 16", cases, lambda case: f"{case['routing']}, n_e = {case['instances']}, C = {case['slots']}"
    )


def _times_by_policy(times: Sequence[Case]) -> str:
    detail = _where(times, shape="qwen3-235b", instances=16)
    batches = _values(detail, "batch")
    rows = [["µs per call, median (best); E = 128, k = 8, n_e = 16", *(f"B = {size}" for size in batches)]]
    for policy in POLICIES:
        found = [_where(detail, policy=policy, batch=size)[0] for size in batches]
        rows.append([policy, *(_time(time) for time in found)])
    return table(rows)


def _times_by_shape(times: Sequence[Case]) -> str:
    aebs = [time for time in times if time["policy"] == "aebs" and time["batch"] in (64, 4096)]
    rows = [["µs per call of aebs, median (best)", "B = 64", "B = 4096"]]
    for shape in _values(aebs, "shape"):
        for n in _values(_where(aebs, shape=shape), "instances"):
            by_batch = {time["batch"]: _time(time) for time in _where(aebs, shape=shape, instances=n)}
            rows.append([f"{shape}, n_e = {n}", by_batch.get(64, ""), by_batch.get(4096, "")])
    return table(rows)


def _time(time: Case) -> str:
    return f"{time['median']:.1f} ({time['best']:.1f})"


def _token_table(large: Sequence[Case]) -> str:
    cases = [case for case in _where(large, shape="deepseek-v2", instances=16) if case["batch"] >= 64]
    rows = [["tokens on the busiest instance over the mean; DeepSeek-V2, n_e = 16", *POLICIES]]
    for case in cases:
        name = f"{case['routing']}, B = {case['batch']}"
        rows.append([name, *(f"{case['token_imbalance'][policy]:.2f}" for policy in POLICIES)])
    return table(rows) if cases else ""


def _layer_time_table(times: Sequence[Case]) -> str:
    chosen = [time for time in times if time["batch"] >= 1024]
    batches = _values(chosen, "batch")
    rows = [["modelled layer time, token-balanced / aebs", *(f"B = {size}" for size in batches)]]
    for shape in _values(chosen, "shape"):
        for routing in _values(_where(chosen, shape=shape), "routing"):
            for device in RIDGES:
                found = _where(chosen, shape=shape, routing=routing, device=device)
                pairs = [f"{time['time']['token-balanced']:.1f} / {time['time']['aebs']:.1f}" for time in found]
                rows.append([f"{shape}, {routing}, n_e = {found[0]['instances']}, {device}", *pairs])
    return table(rows) if chosen else ""


# -- rows ----------------------------------------------------------------------------------------------------------


def _where(cases: Iterable[Case], **wanted: object) -> list[Case]:
    return [case for case in cases if all(case[key] == value for key, value in wanted.items())]


def _values(cases: Iterable[Case], key: str) -> list[Any]:
    return list(dict.fromkeys(case[key] for case in cases))
