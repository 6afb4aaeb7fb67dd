"""Sizes from configs: against transformers' models, published totals, the paper's figures, and bytes on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from janus.core.planning.catalog import named, names, sizes_of
from janus.core.planning.known_models import CONFIGS
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError
from janus.model.random_model import random_config, write_random_model
from janus.model.safetensors_file import SafetensorsFile

ROOT = Path(__file__).parents[3]
QWEN2_MOE = {
    "model_type": "qwen2_moe",
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "intermediate_size": 96,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
    "vocab_size": 300,
    "tie_word_embeddings": False,
}


def expert_params(sizes: ModelSizes) -> int:
    return sizes.moe_layers * sizes.experts * sizes.expert_params


def in_transformers(config: dict[str, Any]) -> tuple[int, int]:
    """Parameters of routed experts, and of everything else with the router's correction, which is a buffer there."""
    keys = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    family = keys.pop("model_type")
    with torch.device("meta"):
        # The same model under another name.
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model({"kimi_k2": "deepseek_v3"}.get(family, family), **keys)
        )
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    correction = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return experts, sum(p.numel() for p in model.parameters()) - experts + correction


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_counted_in_its_role(name: str) -> None:
    sizes = named(name)
    assert (expert_params(sizes), sizes.attention_side_params) == in_transformers(dict(CONFIGS[name].config))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "name", ["DeepSeek-V2", "DeepSeek-V2-Lite", "DeepSeek-V3", "Qwen3-30B-A3B", "GLM-4.5-Air", "gpt-oss-20b", "OLMoE"]
)
def test_biases_are_counted_where_a_family_has_them(name: str, biased: bool) -> None:
    config = dict(CONFIGS[name].config) | {"num_hidden_layers": 4, "vocab_size": 100, "attention_bias": biased}
    sizes = sizes_of(config)
    assert (expert_params(sizes), sizes.attention_side_params) == in_transformers(config)


@pytest.mark.parametrize("more", [{"qkv_bias": False}, {"tie_word_embeddings": True}, {"mlp_only_layers": []}])
def test_variants_of_qwen2_are_counted(more: dict[str, Any]) -> None:
    sizes = sizes_of(QWEN2_MOE | more)
    experts, others = in_transformers(QWEN2_MOE | more)
    assert (expert_params(sizes), sizes.attention_side_params) == (experts, others)


def test_dense_layers_between_are_counted() -> None:
    sizes = sizes_of(QWEN2_MOE)
    assert sizes.moe_layers == 1  # layers 1 and 3 are sparse, and 3 is named as dense
    assert (expert_params(sizes), sizes.attention_side_params) == in_transformers(QWEN2_MOE)


@pytest.mark.parametrize("name", [name for name in names() if CONFIGS[name].parameters])
def test_the_total_is_the_published_one(name: str) -> None:
    sizes = named(name)
    assert expert_params(sizes) + sizes.attention_side_params == pytest.approx(CONFIGS[name].parameters, rel=0.01)


def test_bytes_are_those_of_the_paper() -> None:
    """arXiv 2512.13525, table 1; in GiB for Qwen3, and in GB, in bfloat16, for DeepSeek."""
    qwen = named("qwen3-235b-a22b")
    assert qwen.expert_side_bytes / 2**30 == pytest.approx(423, rel=0.001)
    assert (qwen.expert_side_bytes + qwen.attention_side_bytes) / 2**30 == pytest.approx(438, rel=0.001)
    for name, gigabytes in (("DeepSeek-V2", 472), ("DeepSeek-V3", 1342)):
        sizes = named(name, dtype="bfloat16")
        assert (sizes.expert_side_bytes + sizes.attention_side_bytes) / 1e9 == pytest.approx(gigabytes, rel=0.002)


def on_disk(directory: Path) -> tuple[int, int]:
    """Bytes of the expert tensors of a checkpoint, and of the others."""
    experts = others = 0
    for path in directory.glob("*.safetensors"):
        for name, entry in SafetensorsFile(path).tensors.items():
            width = {"F32": 4, "BF16": 2}[entry.dtype]
            nbytes = width * int(torch.Size(entry.shape).numel())
            experts, others = (experts + nbytes, others) if ".experts." in name else (experts, others + nbytes)
    return experts, others


def test_the_bundled_model_has_these_bytes() -> None:
    directory = ROOT / "models" / "janus-tiny"
    sizes = sizes_of(json.loads((directory / "config.json").read_text()), name="janus-tiny")
    assert sizes == named("janus-tiny")
    assert (sizes.expert_side_bytes, sizes.attention_side_bytes) == on_disk(directory)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("moe_layers", [None, (1,), (0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_checkpoints_have_these_bytes(
    tmp_path: Path, tied: bool, moe_layers: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    config = random_config(tie_word_embeddings=tied, moe_layers=moe_layers, attention_bias=tied, dtype=dtype)
    directory = write_random_model(tmp_path, config)
    sizes = sizes_of(json.loads((directory / "config.json").read_text()))
    assert (sizes.expert_side_bytes, sizes.attention_side_bytes) == on_disk(directory)


def test_latent_attention_keeps_and_computes_in_the_latent_space() -> None:
    sizes = named("DeepSeek-V2")
    assert sizes.kv_elements == 512 + 64
    # 128 heads: scores against 512 + 64 elements, sums of 512, a multiplication and an addition each.
    assert sizes.context_flops == 128 * (2 * 576 + 2 * 512)


def test_grouped_attention_keeps_keys_and_values() -> None:
    sizes = named("Qwen3-30B-A3B")
    assert sizes.kv_elements == 2 * 4 * 128
    assert sizes.context_flops == 32 * 128 * 4


def test_quantised_widths_count_their_scales() -> None:
    fp8, mxfp4 = named("DeepSeek-V3"), named("gpt-oss-120b")
    assert fp8.expert_width == 1 + 4 / 128**2
    assert 1 < fp8.weight_width < 1.2  # the embedding stays in bfloat16
    # 4.25 bits, but for the biases in bfloat16.
    assert mxfp4.expert_width == pytest.approx(4.25 / 8, rel=0.002)
    total = mxfp4.expert_side_bytes + mxfp4.attention_side_bytes
    assert total == pytest.approx(65.25e9, rel=0.005)  # the published safetensors files together
    assert fp8.kv_width == mxfp4.kv_width == mxfp4.weight_width == 2


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_server_may_hold_everything_in_another_type(dtype: str, width: int) -> None:
    sizes = named("gpt-oss-20b", dtype=dtype)
    assert {sizes.weight_width, sizes.expert_width, sizes.kv_width, sizes.activation_width} == {width}


def test_names_ignore_case_and_an_unknown_one_names_the_known() -> None:
    assert named("deepseek-v2") == named("DeepSeek-V2")
    with pytest.raises(ConfigError, match="did you mean Mixtral-8x7B") as caught:
        named("mixtral-8x7")
    assert all(name in caught.value.remedy for name in names())


def test_scaled_models_differ_from_deepseek_v2_in_their_experts_alone() -> None:
    base, first, second = (named(name) for name in ("DeepSeek-V2", "Scaled-DS-1", "Scaled-DS-2"))
    assert (first.experts, first.top_k, first.expert_params) == (160, 8, 3 * 5120 * 1024)
    assert (second.experts, second.top_k, second.expert_params) == (200, 8, 3 * 5120 * 1536)
    assert base.attention_params == first.attention_params == second.attention_params


def test_an_unknown_family_is_read_by_the_usual_keys() -> None:
    config = {key: value for key, value in QWEN2_MOE.items() if key != "shared_expert_intermediate_size"}
    sizes = sizes_of({"model_type": "new_moe", "text_config": config | {"model_type": "new_moe"}})
    assert (sizes.name, sizes.experts, sizes.top_k, sizes.expert_params) == ("new_moe", 6, 2, 3 * 64 * 24)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_experts", "num_experts_per_tok", "num_attention_heads", "vocab_size"],
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sizes_of({name: value for name, value in QWEN2_MOE.items() if name != key} | {"model_type": "new_moe"})
    named_key = {"num_experts": "n_routed_experts"}.get(key, key)
    assert caught.value.field == f"config.json: {named_key}"
    assert key in str(caught.value)


@pytest.mark.parametrize("value", ["64", 6.5, -1, True])
def test_a_key_that_is_no_number_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: moe_intermediate_size"):
        sizes_of(QWEN2_MOE | {"moe_intermediate_size": value})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_experts_per_tok": 7}, "top_k"),
        ({"num_experts": 0}, "experts"),
        ({"torch_dtype": "int3"}, "config.json: torch_dtype"),
        ({"quantization_config": {"quant_method": "awq"}}, "config.json: quantization_config.quant_method"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sizes_of(QWEN2_MOE | change)
    assert caught.value.field == field


def test_another_type_to_serve_in_is_refused() -> None:
    with pytest.raises(ConfigError, match="give one of float32"):
        named("OLMoE", dtype="int8")


@given(
    layers=st.integers(1, 40),
    dense=st.integers(0, 5),
    experts=st.integers(2, 64),
    tied=st.booleans(),
    shared=st.integers(0, 3),
)
def test_more_of_anything_is_never_fewer_parameters(
    layers: int, dense: int, experts: int, tied: bool, shared: int
) -> None:
    config = dict(CONFIGS["DeepSeek-V2-Lite"].config) | {
        "num_hidden_layers": layers + dense,
        "first_k_dense_replace": dense,
        "n_routed_experts": experts,
        "num_experts_per_tok": 1,
        "n_shared_experts": shared,
        "tie_word_embeddings": tied,
    }
    sizes = sizes_of(config)
    assert sizes.moe_layers == layers
    more = sizes_of(config | {"n_routed_experts": experts + 1, "n_shared_experts": shared + 1})
    assert more.expert_side_bytes > sizes.expert_side_bytes
    assert more.attention_side_bytes > sizes.attention_side_bytes
    untied = sizes_of(config | {"tie_word_embeddings": False})
    assert untied.attention_side_params - sizes.attention_side_params == (102400 * 2048 if tied else 0)
