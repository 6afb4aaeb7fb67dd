"""``janus plan``: how many instances of each role, of which kinds, a load needs within an SLO, and why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from janus.config.fields import check_ranges, option
from janus.config.options import DType, PlacementName
from janus.errors import ConfigError
from janus_cli.console import output, tell

if TYPE_CHECKING:
    from janus.core.planning.activation import AMaxTable
    from janus.core.planning.plan import Problem
    from janus.core.planning.sizes import ModelSizes
    from janus.core.planning.steady import Traffic

_LOAD, _ROUTING, _SPACE = "Load", "Routing", "What may be chosen"
#: Tokens and layers of synthetic routing.
_TOKENS, _LAYERS = 8192, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is to be served: a rate, a file of requests, or a batch that is always full."""

    rate: float = option(
        0.0, help="Requests per second.", unit="requests/s", default_text="none", minimum=0, panel=_LOAD
    )
    input: float = option(512.0, help="Mean tokens of a prompt.", unit="tokens", minimum=0, panel=_LOAD)
    output: float = option(256.0, help="Mean tokens of an answer.", unit="tokens", minimum=1, panel=_LOAD)
    burstiness: float = option(
        1.0,
        help="Coefficient of variation of the times between arrivals: 1 = Poisson, more = bursts.",
        minimum=0,
        panel=_LOAD,
    )
    workload: str = option(
        "",
        help="Instead: CSV of requests (Azure LLM inference, BurstGPT), or one in words as for janus simulate. "
        "The plan is for its busiest window.",
        unit="file",
        default_text="none",
        panel=_LOAD,
    )
    window_s: float = option(900.0, help="Length of that window.", unit="seconds", minimum=1, panel=_LOAD)
    batch: float = option(
        0.0,
        help="Instead: streams that decode at the same time, always.",
        unit="streams",
        default_text="none",
        minimum=0,
        panel=_LOAD,
    )
    context: float = option(
        0.0,
        help="With --batch: tokens of context of each.",
        unit="tokens",
        default_text="--input and half of --output",
        minimum=0,
        panel=_LOAD,
    )
    headroom: float = option(
        0.2,
        help="Share of more load than that which must be borne within the SLO.",
        unit="share",
        minimum=0,
        panel=_LOAD,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        given = [name for name in ("rate", "workload", "batch") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) if given else "no load"
            raise ConfigError("--rate", f"{found} is given", "give one of --rate, --workload and --batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingOptions:
    """Which experts tokens choose: a_max follows from it."""

    trace: Path | None = option(
        None, help="Trace of janus trace export.", default_text="none: synthetic routing", panel=_ROUTING
    )
    popularity: float = option(
        0.0,
        help="Without a trace: exponent of Zipf's law for the popularity of experts. 0, all alike, activates the most.",
        minimum=0,
        panel=_ROUTING,
    )
    placement: PlacementName | None = option(
        None,
        help="Who places replicas.",
        # Where tokens choose experts independently, as in synthetic routing, the even deal is as good.
        default_text="with a trace activation-aware, else static",
        panel=_ROUTING,
    )
    scheduler: Literal["aebs", "aebs-greedy", "random", "static", "token-balanced"] = option(
        "aebs", help="Who chooses replicas.", panel=_ROUTING
    )
    draws: int = option(
        16, help="Batches of each size and layer that a_max is the mean of.", unit="batches", minimum=1, panel=_ROUTING
    )
    seed: int = option(0, help="Of what is drawn.", panel=_ROUTING)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOptions:
    """What the plan may choose from."""

    attention_devices: str = option(
        "",
        help="Kinds of the profile that attention may run on, separated by commas.",
        default_text="all",
        panel=_SPACE,
    )
    expert_devices: str = option("", help="Kinds that experts may run on.", default_text="all", panel=_SPACE)
    limits: str = option(
        "", help="Devices that there are, by kind: H100-80GB=16,H20-96GB=8.", default_text="no limits", panel=_SPACE
    )
    objective: Literal["devices", "cost", "auto"] = option(
        "auto", help="What to have least of; auto: cost where kinds differ, else devices.", panel=_SPACE
    )
    max_attention: int = option(64, help="Attention instances at most.", minimum=1, maximum=64, panel=_SPACE)
    max_experts: int = option(64, help="Expert instances at most.", minimum=1, maximum=64, panel=_SPACE)
    slots: int = option(
        0, help="Slots per expert instance and layer.", default_text="as many as fit", minimum=0, panel=_SPACE
    )
    micro_batches: str = option("1,2", help="Micro-batches to choose from.", panel=_SPACE)
    tensor_parallel: str = option(
        "1",
        help="Devices per attention instance to choose from. Janus serves with 1: more is for comparison.",
        panel=_SPACE,
    )
    max_running: int = option(
        0,
        help="Streams of one attention instance at most.",
        default_text="as many as its memory has room for",
        minimum=0,
        panel=_SPACE,
    )
    token_budget: int = option(
        512, help="Tokens in one step of an attention instance.", unit="tokens", minimum=1, panel=_SPACE
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Say how many instances of each role a load needs within an SLO, on which devices, and why not fewer.

    Ends with status 1 when nothing that may be chosen keeps it, and says what stands in the way.
    """

    model: str = option(help="Name of a model, such as DeepSeek-V2, or its config.json or directory.", unit="model")
    hardware: str = option("h100-80gb", help="Hardware profile: its name, or a file of janus profile.", unit="profile")
    slo_tpot: str = option(help="TPOT to keep: 150ms, 0.15s.", unit="duration")
    percentile: float = option(
        99.0,
        help="Percentile of TPOT over requests that must keep it; 0 = the mean, as always with --batch.",
        minimum=0,
        maximum=99.99,
    )
    slo_ttft: str = option("", help="Mean TTFT to keep.", unit="duration", default_text="none")
    dtype: DType | None = option(None, help="Type of weights and KV cache.", default_text="as published")
    load: LoadOptions
    routing: RoutingOptions
    space: SpaceOptions
    json: bool = option(False, help="Print JSON, for programs.")
    picture: Path | None = option(None, help="SVG file for a map of all numbers of instances.", default_text="none")

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.percentile < 50:
            raise ConfigError("--percentile", f"is {self.percentile:g}", "give 50 up to 99.99, or 0 for the mean")


def plan(options: PlanOptions) -> int:
    """Search, and show."""
    from janus.core.planning.search import search
    from janus_cli.plan_picture import picture
    from janus_cli.plan_tables import as_dict, show

    problem, tables = problem_of(options)
    found = search(problem)
    if options.json:
        print(json.dumps(as_dict(found, tables), indent=1))
    else:
        show(found, tables, output())
    if options.picture is not None:
        try:
            options.picture.write_text(picture(found), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "--picture", f"{options.picture}: {error.strerror}", "name a file that can be written"
            ) from error
        tell(f"{options.picture}: written")
    return 0 if found.chosen else 1


def problem_of(options: PlanOptions) -> tuple[Problem, dict[int, AMaxTable]]:
    """Return the question, and the tables of a_max that will have been made when it is answered, by C.

    Raises:
        ConfigError: an option names what there is not.
    """
    from janus.core.planning.plan import Problem
    from janus.profiles import load_profile

    model, profile = model_sizes(options.model, options.dtype), load_profile(options.hardware)
    load, space = options.load, options.space
    kinds = tuple(profile.devices)
    tables: dict[int, AMaxTable] = {}

    def a_max(slots: int) -> AMaxTable:
        if slots not in tables:
            tables[slots] = a_max_table(options.routing, model, slots, space.max_experts)
        return tables[slots]

    _check_kinds("--attention-devices", _names(space.attention_devices), kinds, options.hardware)
    _check_kinds("--expert-devices", _names(space.expert_devices), kinds, options.hardware)
    _check_kinds("--limits", tuple(_limits(space.limits)), kinds, options.hardware)
    if space.slots > model.experts:
        raise ConfigError("--slots", f"is {space.slots}", f"give at most {model.experts}, the experts of a layer")
    objective = space.objective
    if objective == "auto":
        objective = "cost" if len({profile.device(kind).cost_per_hour for kind in kinds}) > 1 else "devices"
    problem = Problem(
        model=model,
        profile=profile,
        slo_tpot_s=seconds("--slo-tpot", options.slo_tpot),
        percentile=0.0 if load.batch else options.percentile,
        slo_ttft_s=seconds("--slo-ttft", options.slo_ttft) if options.slo_ttft else 0.0,
        traffic=None if load.batch else _traffic(load),
        batch=load.batch,
        context=load.context or load.input + load.output / 2,
        headroom=load.headroom,
        a_max=a_max,
        attention_devices=_names(space.attention_devices) or kinds,
        expert_devices=_names(space.expert_devices) or kinds,
        limits=_limits(space.limits),
        most_attention=space.max_attention,
        most_experts=space.max_experts,
        tensor_parallel=_numbers("--tensor-parallel", space.tensor_parallel),
        micro_batches=_numbers("--micro-batches", space.micro_batches),
        slots=space.slots,
        max_running=space.max_running,
        token_budget=space.token_budget,
        objective=objective,
    )
    return problem, tables


def model_sizes(name_or_path: str, dtype: str | None = None) -> ModelSizes:
    """Return the sizes of a model known by name, or of a ``config.json`` or the directory that has one.

    Raises:
        ConfigError: neither is there, or it is no model with experts.
    """
    from janus.core.planning.catalog import named, sizes_of

    path = Path(name_or_path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        return named(name_or_path, dtype=dtype)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("--model", f"{path} cannot be read ({error})", "name a Hugging Face config.json") from error
    if not isinstance(config, dict):
        raise ConfigError("--model", f"{path} is no JSON object", "name a Hugging Face config.json")
    return sizes_of(config, name=path.parent.resolve().name, dtype=dtype)


def seconds(flag: str, text: str) -> float:
    """Return the seconds that a duration such as ``150ms`` or ``2s`` says.

    Raises:
        ConfigError: it is none, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min)\s*", text)
    value = float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}[found[2]] if found else 0.0
    if not value > 0:
        raise ConfigError(flag, f"{text!r} is no duration", "give a number with its unit, such as 150ms or 2s")
    return value


def a_max_table(options: RoutingOptions, model: ModelSizes, slots: int, most: int) -> AMaxTable:
    """Return the table of ``slots`` slots per instance, up to ``most`` instances.

    Raises:
        ConfigError: the trace is of another model.
    """
    from janus.core.planning.activation import estimate, instance_grid
    from janus.core.planning.memory import least_experts
    from janus.core.planning.routing import synthetic_routing
    from janus.model.kernels.scheduling import fastest_scheduler

    if options.trace is not None:
        from janus_cli.trace import read

        trace = read(options.trace)
        if (trace.num_experts, trace.top_k) != (model.experts, model.top_k):
            raise ConfigError(
                "--trace",
                f"{options.trace} is of a model with {trace.num_experts} experts, {trace.top_k} per token; "
                f"{model.name} has {model.experts}, {model.top_k} per token",
                "give a trace of this model",
            )
        ids = trace.expert_ids
    else:
        ids = synthetic_routing(
            model.experts, model.top_k, _TOKENS, layers=_LAYERS, popularity=options.popularity, seed=options.seed
        )
    return estimate(
        ids,
        num_experts=model.experts,
        slots=slots,
        instances=instance_grid(least_experts(model, slots), max(most, least_experts(model, slots))),
        policy=options.placement or ("static" if options.trace is None else "activation-aware"),
        scheduler=fastest_scheduler(options.scheduler),
        draws=options.draws,
        seed=options.seed,
    )


def _traffic(load: LoadOptions) -> Traffic:
    from janus.core.planning.steady import Traffic

    if not load.workload:
        return Traffic(
            requests_s=load.rate, prompt_tokens=load.input, output_tokens=load.output, arrival_cv=load.burstiness
        )
    from janus_cli.plan_traffic import busiest

    return busiest(load.workload, load.window_s)


def _check_kinds(flag: str, names: tuple[str, ...], kinds: tuple[str, ...], profile: str) -> None:
    for name in names:
        if name not in kinds:
            raise ConfigError(flag, f"profile {profile} has no device {name!r}", f"it has: {', '.join(kinds)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    names = _names(text)
    if not names or not all(name.isdecimal() and int(name) for name in names):
        raise ConfigError(flag, f"{text!r} is no list of numbers", "give numbers from 1 on, separated by commas: 1,2")
    return tuple(sorted({int(name) for name in names}))


def _limits(text: str) -> dict[str, int]:
    limits = {}
    for each in _names(text):
        kind, equals, number = each.partition("=")
        if not equals or not number.strip().isdecimal():
            raise ConfigError("--limits", f"{each!r} is no limit", "give KIND=NUMBER, separated by commas")
        limits[kind.strip()] = int(number)
    return limits
