"""``janus models``: which models are known, what one is made of, and random weights of any of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from janus.config.fields import check_ranges, option
from janus.config.options import DType
from janus.errors import CheckpointError, ConfigError
from janus_cli.console import output, tell

if TYPE_CHECKING:
    from janus.model.checkpoint import Checkpoint
    from janus.model.config import ModelConfig

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Keys of ``config.json`` that say how many experts there are, by family.
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsListOptions:
    """List the families that are served, and the models known by name with their sizes."""

    json: bool = option(False, help="Print JSON, for programs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsInspectOptions:
    """Show what a model is made of: shapes, bytes by role, experts, and what each instance of a cluster would hold.

    Of a directory, every tensor that serving needs is checked by name, shape and type; none is read.
    """

    model: str = option(help="Model directory, or a name of janus models list.", positional=True)
    experts: int = option(1, help="Expert instances to divide the experts among.", unit="instances", minimum=1)
    dtype: DType = option("bfloat16", help="Type of weights and KV cache to serve in.")
    json: bool = option(False, help="Print JSON, for programs.")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsRandomOptions:
    """Write a checkpoint with random weights, to try a model's shape and speed without its weights.

    Fewer layers and experts make it fit; the rest of its shape stays, unless --set changes it.
    """

    model: str = option(help="Name of janus models list, or a directory with a config.json.", positional=True)
    out: Path = option(help="Directory to write.")
    layers: int = option(0, help="Layers, the first ones.", unit="layers", default_text="the model's", minimum=0)
    experts: int = option(0, help="Experts of a layer.", unit="experts", default_text="the model's", minimum=0)
    set: str = option(
        "", help="Other keys of config.json, such as hidden_size=512,vocab_size=1000.", default_text="the model's"
    )
    dtype: Literal["published", "float32", "float16", "bfloat16"] = option(
        "published", help="Type of the weights; published keeps FP8 and MXFP4."
    )
    seed: int = option(0, help="Of what is drawn.")
    std: float = option(0.04, help="Standard deviation of the weights.", minimum=0)
    shards: int = option(1, help="Files to divide the weights among.", unit="files", minimum=1)
    tokenizer: bool = option(True, help="Write a tokenizer of single bytes too.")
    force: bool = option(False, help="Write into a directory that is there already.")

    def __post_init__(self) -> None:
        check_ranges(self)


def show_list(options: ModelsListOptions) -> int:
    """Print families and models."""
    from janus.core.planning.catalog import named, names
    from janus.model.families import FAMILIES

    rows: list[dict[str, Any]] = []
    for name in names():
        sizes = named(name)
        served, why = _served(name)
        rows.append(
            {
                "name": name,
                "served": served,
                "why_not": why,
                "layers": sizes.layers,
                "moe_layers": sizes.moe_layers,
                "experts": sizes.experts,
                "top_k": sizes.top_k,
                "attention_side_bytes": int(sizes.attention_side_bytes),
                "expert_side_bytes": int(sizes.expert_side_bytes),
                "kv_bytes_per_token": int(sizes.kv_bytes_per_token),
            }
        )
    if options.json:
        print(json.dumps({"families": sorted(FAMILIES), "models": rows}, indent=2))
        return 0
    console = output()
    console.print(f"families served: {', '.join(sorted(FAMILIES))}\n")
    table = Table(box=None, pad_edge=False)
    for column in ("model", "layers", "experts", "chosen", "attention side", "experts' side", "KV per token", "served"):
        table.add_column(column, justify="left" if column in ("model", "served") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["layers"]),
            str(row["experts"]),
            str(row["top_k"]),
            _bytes(row["attention_side_bytes"]),
            _bytes(row["expert_side_bytes"]),
            _bytes(row["kv_bytes_per_token"]),
            "yes" if row["served"] else "no",
        )
    console.print(table)
    console.print("\nBytes are those of the published weights. Of a directory, see janus models inspect DIRECTORY.")
    for row in rows:
        if not row["served"]:
            console.print(f"{row['name']}: {row['why_not']}")
    return 0


def inspect(options: ModelsInspectOptions) -> int:
    """Print what a model is made of."""
    from janus.model.inventory import parts_of, placed

    config, checkpoint = _inspected(options.model)
    held = placed(config, experts=options.experts, dtype_bytes=_DTYPE_BYTES[options.dtype])
    found = parts_of(config, frozenset() if checkpoint is None else checkpoint.names)
    stored: list[int | None] = [None] * len(found)
    if checkpoint is not None:
        stored = [sum(checkpoint.stored_nbytes(spec.name) for spec in part.tensors) for part in found]
    if options.json:
        shape = {"layers": config.num_layers, "moe_layers": config.num_moe_layers, "experts": config.num_experts}
        instances = {name: getattr(held, name) for name in held.__dataclass_fields__}
        parts = [
            {"role": part.role, "parameters": part.parameters, "stored_bytes": nbytes}
            for part, nbytes in zip(found, stored, strict=True)
        ]
        print(json.dumps({"family": config.family, **shape, "parts": parts, **instances}, indent=2))
        return 0
    console = output()
    for line in _shape_lines(config):
        console.print(line)
    table = Table(box=None, pad_edge=False)
    table.add_column("\nrole", no_wrap=True)
    for column in ("parameters", "stored", options.dtype):
        table.add_column(f"\n{column}", justify="right", no_wrap=True)
    width = _DTYPE_BYTES[options.dtype]
    for part, nbytes in zip(found, stored, strict=True):
        there = "-" if nbytes is None else _bytes(nbytes)
        table.add_row(part.role, f"{part.parameters:,}", there, _bytes(part.parameters * width))
    console.print(table)
    console.print(
        f"\nevery attention instance    {_bytes(held.attention_instance)} of weights; "
        f"{_bytes(held.kv_per_token)} of KV cache per token"
    )
    console.print(
        f"each of {options.experts} expert instances  {_bytes(held.expert_instance)}: {held.slots} slots in each of "
        f"{config.num_moe_layers} MoE layers, {_bytes(held.one_expert)} an expert, every expert once"
    )
    return 0


def random(options: ModelsRandomOptions) -> int:
    """Write the checkpoint."""
    from janus.model.inventory import parts_of

    raw = _changed(_raw_config(options.model), options)
    config = _parsed(raw, options.model)
    if options.tokenizer and config.vocab_size < 258:
        raise ConfigError("--tokenizer", f"needs a vocab_size of 258, it is {config.vocab_size}", "give --no-tokenizer")
    if options.out.exists() and not options.force:
        raise ConfigError("--out", f"{options.out} exists", "give --force to write into it")
    parameters = sum(part.parameters for part in parts_of(config))
    # FP8 and MXFP4 take less: this is the most that is needed.
    needed = parameters * _DTYPE_BYTES[config.torch_dtype]
    home = options.out if options.out.exists() else options.out.resolve().parent
    if not home.is_dir():
        raise ConfigError("--out", f"{home} is no directory", "name a directory in one that exists")
    free = shutil.disk_usage(home).free
    if needed > free:
        raise ConfigError(
            "--out",
            f"{_bytes(needed)} of weights do not fit, {_bytes(free)} are free there",
            "use fewer --layers or --experts",
        )
    tell(f"writing {parameters:,} parameters, {_bytes(needed)} at most, to {options.out}")
    from janus.model.random_model import write_random_model

    write_random_model(
        options.out, config, seed=options.seed, std=options.std, shards=options.shards, tokenizer=options.tokenizer
    )
    tell(f"written; janus up --model {options.out} serves it")
    return 0


def _changed(raw: dict[str, Any], options: ModelsRandomOptions) -> dict[str, Any]:
    """``raw`` with what the options change; lists by layer are cut to the layers that are left."""
    if options.layers:
        raw["num_hidden_layers"] = options.layers
        for key in ("layer_types", "mlp_only_layers"):
            if isinstance(raw.get(key), list):
                keep = raw[key]
                raw[key] = keep[: options.layers] if key == "layer_types" else [n for n in keep if n < options.layers]
    if options.experts:
        raw[next((key for key in _EXPERT_KEYS if key in raw), _EXPERT_KEYS[0])] = options.experts
    if options.dtype != "published":
        raw.pop("quantization_config", None)
        raw.pop("dtype", None)
        raw["torch_dtype"] = options.dtype
    for item in filter(None, options.set.split(",")):
        key, equals, text = item.partition("=")
        try:
            raw[key.strip()] = json.loads(text)
        except json.JSONDecodeError as error:
            problem = f"{item!r} has no value" if not equals else f"{text!r} is no JSON value"
            raise ConfigError("--set", problem, "give key=value, with a number, true, false or null") from error
    return raw


def _raw_config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a directory or of a known model."""
    from janus.core.planning.catalog import named
    from janus.core.planning.known_models import CONFIGS
    from janus.model.config import read_json

    if (Path(model) / "config.json").exists():
        return read_json(Path(model) / "config.json")
    sizes = named(model)  # names those that are known
    config: Mapping[str, Any] = CONFIGS[sizes.name].config
    return dict(config)


def _parsed(raw: Mapping[str, Any], where: str) -> ModelConfig:
    from janus.model.families import family_of

    return family_of(raw, where).parse_config(raw, {}, where)


def _served(name: str) -> tuple[bool, str]:
    try:
        _parsed(_raw_config(name), name)
    except CheckpointError as error:
        return False, error.problem
    return True, ""


def _inspected(model: str) -> tuple[ModelConfig, Checkpoint | None]:
    """The config, and the checkpoint where there is one."""
    from janus.model.checkpoint import Checkpoint

    if not (Path(model) / "config.json").exists():
        return _parsed(_raw_config(model), model), None
    checkpoint = Checkpoint.open(model)
    checkpoint.close()
    return checkpoint.config, checkpoint


def _shape_lines(config: ModelConfig) -> list[str]:
    gate = config.gate
    heads = f"{config.num_heads} heads, {config.num_kv_heads} of keys and values, {config.head_dim} wide"
    if config.latent is not None:
        heads = f"{config.num_heads} heads over a latent of {config.latent.width}"
    groups = f" in {gate.top_groups} of {gate.groups} groups" if gate.groups > 1 else ""
    shared = f", shared expert {config.shared_intermediate_size} wide" if config.shared_intermediate_size else ""
    dense = f", dense MLPs {config.intermediate_size} wide" if config.dense_layers else ""
    chosen = f"{config.top_k} chosen by {gate.score}{groups}"
    return [
        f"{config.family}: {config.num_layers} layers, {config.num_moe_layers} of them with experts{dense}",
        f"hidden size {config.hidden_size}, vocabulary {config.vocab_size}, {heads}",
        f"{config.num_experts} experts {config.moe_intermediate_size} wide, {chosen}{shared}",
    ]


def _bytes(count: int | float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
