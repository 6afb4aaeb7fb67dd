"""Gates choose and weigh experts as the routers of transformers do, on the kernels and in torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, GptOssConfig, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from janus.errors import CheckpointError
from janus.model.config import GateConfig, ModelConfig
from janus.model.families.common import check_consistency
from janus.model.gate import CpuGates, Gates, TorchGates, make_gates
from janus.model.random_model import random_config
from janus.model.weights import RouterWeights

HIDDEN, ROWS = 48, 200


def config_of(experts: int, top_k: int, gate: GateConfig) -> ModelConfig:
    config = replace(random_config(hidden_size=HIDDEN, num_experts=experts, top_k=top_k, num_layers=1), gate=gate)
    check_consistency(config, "test")
    return config


def softmax(experts: int, top_k: int, *, normalise: bool) -> tuple[ModelConfig, torch.nn.Module]:
    settings = OlmoeConfig(hidden_size=HIDDEN, num_experts=experts, num_experts_per_tok=top_k, norm_topk_prob=normalise)
    return config_of(experts, top_k, GateConfig(normalise=normalise)), OlmoeTopKRouter(settings)


def mixtral(experts: int, top_k: int) -> tuple[ModelConfig, torch.nn.Module]:
    settings = MixtralConfig(hidden_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=top_k)
    return config_of(experts, top_k, GateConfig()), MixtralTopKRouter(settings)


def deepseek_v2(experts: int, top_k: int, groups: int, top_groups: int, scaling: float) -> Any:
    settings = DeepseekV2Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        n_group=groups,
        topk_group=top_groups,
        topk_method="greedy" if groups == 1 else "group_limited_greedy",
        routed_scaling_factor=scaling,
    )
    gate = GateConfig(normalise=False, scaling=scaling, groups=groups, top_groups=top_groups)
    return config_of(experts, top_k, gate), DeepseekV2TopkRouter(settings)


def deepseek_v3(
    experts: int, top_k: int, groups: int, top_groups: int, scaling: float, *, normalise: bool = True
) -> Any:
    settings = DeepseekV3Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        n_group=groups,
        topk_group=top_groups,
        norm_topk_prob=normalise,
        routed_scaling_factor=scaling,
    )
    gate = GateConfig(
        score="sigmoid",
        normalise=normalise,
        scaling=scaling,
        groups=groups,
        top_groups=top_groups,
        group_best=2,
        correction_bias=True,
    )
    return config_of(experts, top_k, gate), DeepseekV3TopkRouter(settings)


def gpt_oss(experts: int, top_k: int) -> tuple[ModelConfig, torch.nn.Module]:
    settings = GptOssConfig(hidden_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=top_k)
    return config_of(experts, top_k, GateConfig(logit_bias=True)), GptOssTopKRouter(settings)


CASES = {
    "softmax": lambda: softmax(33, 5, normalise=False),
    "softmax_normalised": lambda: softmax(64, 8, normalise=True),
    "softmax_one": lambda: softmax(3, 1, normalise=True),
    "softmax_all": lambda: softmax(20, 20, normalise=False),
    "mixtral": lambda: mixtral(8, 2),
    "deepseek_v2_greedy": lambda: deepseek_v2(64, 6, 1, 1, 1.0),
    "deepseek_v2_groups": lambda: deepseek_v2(40, 6, 8, 3, 16.0),
    "deepseek_v2_one_each": lambda: deepseek_v2(12, 3, 12, 4, 2.0),
    "deepseek_v3": lambda: deepseek_v3(64, 8, 8, 4, 2.5),
    "deepseek_v3_raw": lambda: deepseek_v3(48, 4, 4, 1, 1.0, normalise=False),
    "glm": lambda: deepseek_v3(18, 4, 1, 1, 1.5),
    "many_groups": lambda: deepseek_v3(80, 6, 20, 5, 1.0),
    "gpt_oss": lambda: gpt_oss(32, 4),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, torch.nn.Module]:
    torch.manual_seed(7)
    config, router = request.param()
    with torch.no_grad():
        for tensor in (*router.parameters(), *router.buffers()):
            tensor.normal_(std=0.5)
    return config, router


def weights_of(router: torch.nn.Module) -> RouterWeights:
    state = {name: tensor.detach().clone() for name, tensor in router.state_dict().items()}
    return RouterWeights(state["weight"], state.get("bias"), state.get("e_score_correction_bias"))


def both(config: ModelConfig, routers: dict[int, RouterWeights]) -> list[Gates]:
    ours = make_gates(config, torch.float32, torch.device("cpu"), routers)
    assert isinstance(ours, CpuGates)
    return [ours, TorchGates(config, routers)]


def test_experts_and_weights_are_those_of_transformers(case: tuple[ModelConfig, torch.nn.Module]) -> None:
    config, router = case
    x = torch.randn(ROWS, HIDDEN)
    with torch.inference_mode():
        _, want_weights, want_ids = router(x)
    want = torch.zeros(ROWS, config.num_experts).scatter_(1, want_ids, want_weights.float())
    for gates in both(config, {0: weights_of(router)}):
        weights, ids = gates.route(0, x)
        assert weights.dtype == torch.float32
        assert ids.dtype == torch.int32
        assert torch.equal(ids.sort().values, want_ids.sort().values.int())
        got = torch.zeros_like(want).scatter_(1, ids.long(), weights)
        torch.testing.assert_close(got, want, atol=1e-6 * config.gate.scaling, rtol=1e-5)


def test_the_best_choice_comes_first(case: tuple[ModelConfig, torch.nn.Module]) -> None:
    config, router = case
    x = torch.randn(ROWS, HIDDEN)
    ours, theirs = both(config, {0: weights_of(router)})
    assert torch.equal(ours.route(0, x)[1], theirs.route(0, x)[1])


def test_rows_do_not_see_each_other(case: tuple[ModelConfig, torch.nn.Module]) -> None:
    config, router = case
    x = torch.randn(ROWS, HIDDEN)
    gates, _ = both(config, {0: weights_of(router)})
    weights, ids = gates.route(0, x)
    for start, end in ((0, 1), (3, 20), (ROWS - 1, ROWS)):
        alone_weights, alone_ids = gates.route(0, x[start:end])
        assert torch.equal(alone_weights, weights[start:end])
        assert torch.equal(alone_ids, ids[start:end])


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_equal_scores_go_to_the_lower_ids(score: Any) -> None:
    config = config_of(24, 4, GateConfig(score=score, groups=4, top_groups=2, group_best=2))
    gates, _ = both(config, {0: RouterWeights(torch.zeros(24, HIDDEN))})
    weights, ids = gates.route(0, torch.randn(5, HIDDEN))
    assert ids.tolist() == [[0, 1, 2, 3]] * 5
    torch.testing.assert_close(weights, torch.full((5, 4), 0.25))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (GateConfig(groups=5), "24 experts cannot be ranked in n_group 5"),
        (GateConfig(groups=24, group_best=2), "24 experts cannot be ranked in n_group 24"),
        (GateConfig(groups=4, top_groups=5), "topk_group 5 of n_group 4"),
        (GateConfig(groups=12, top_groups=1), "leaves no 4 of 24 experts to choose"),
    ],
)
def test_groups_that_leave_no_choice_are_refused(gate: GateConfig, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of(24, 4, gate)
