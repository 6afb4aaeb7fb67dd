"""``janus plan``: how many instances of each role, of which kinds, a load needs within an SLO, and why."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from janus.config.fields import parse_duration
from janus.errors import ConfigError
from janus_cli.console import logs_on_stderr, output, tell
from janus_cli.plan_options import LoadOptions, PlanOptions, RoutingOptions

if TYPE_CHECKING:
    from janus.core.planning.activation import AMaxTable
    from janus.core.planning.plan import Problem
    from janus.core.planning.sizes import ModelSizes
    from janus.core.planning.steady import Traffic

__all__ = ["PlanOptions", "RoutingOptions", "a_max_table", "model_sizes", "plan", "problem_of", "seconds"]

#: Tokens and layers of synthetic routing.
_TOKENS, _LAYERS = 8192, 2
#: A trace of fewer tokens says too little: half of them make the placement, batches are drawn from the others.
_LEAST_TOKENS = 64


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
    """Return the seconds that a duration such as ``150ms`` or ``2s`` says. A number alone might be either.

    Raises:
        ConfigError: it is none, or not positive.
    """
    with contextlib.suppress(ValueError):
        value = parse_duration(text, bare=False)
        if value > 0:
            return value
    raise ConfigError(flag, f"{text!r} is no duration", "give a number with its unit, such as 150ms or 2s")


def a_max_table(options: RoutingOptions, model: ModelSizes, slots: int, most: int) -> AMaxTable:
    """Return the table of ``slots`` slots per instance, up to ``most`` instances.

    Raises:
        ConfigError: the trace is of another model.
    """
    from janus.core.planning.activation import by_weight, estimate, instance_grid
    from janus.core.planning.memory import least_experts
    from janus.core.planning.routing import synthetic_routing
    from janus.model.kernels.scheduling import fastest_scheduler

    logs_on_stderr()  # kernels that are not there yet are built now, and say so
    if options.trace is not None:
        from janus_cli.trace import read

        trace = read(options.trace)
        shape, wanted = (
            f"{layers} MoE layers of {experts} experts, {top_k} per token"
            for layers, experts, top_k in (
                (trace.num_layers, trace.num_experts, trace.top_k),
                (model.moe_layers, model.experts, model.top_k),
            )
        )
        if shape != wanted:
            raise ConfigError(
                "--trace",
                f"{options.trace} is of a model with {shape}; {model.name} has {wanted}",
                "give a trace of this model",
            )
        if trace.tokens < _LEAST_TOKENS:
            raise ConfigError(
                "--trace",
                f"{options.trace} has {trace.tokens} tokens",
                f"give one with {_LEAST_TOKENS} or more, from a cluster that has served for a while",
            )
        ids = by_weight(trace.expert_ids, trace.weights)
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
