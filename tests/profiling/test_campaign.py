"""A small profile of a real cluster, from its start to the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from janus.core.planning.performance import Deployment, Load, step_time
from janus.errors import ConfigError
from janus.model.random_model import random_config, write_random_model
from janus.profiles import load_profile, write_profile
from janus.profiling.campaign import Earlier, Settings, run
from janus.profiling.models import measured, write_models
from janus.profiling.points import NONE, Effort
from tests.profiling import planted

TINY = Effort(
    experts=(2,),
    batches=(1, 6),
    contexts=(8, 64),
    windows=1,
    window_s=0.1,
    bursts=((1, 8), (6, 8), (1, 32), (6, 32), (3, 16)),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = random_config(vocab_size=300, max_position_embeddings=4096, dtype=torch.bfloat16)
    return write_random_model(tmp_path / "model", config, tokenizer=True)


@pytest.mark.cluster
@pytest.mark.timeout(240)
async def test_a_real_cluster_is_measured(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    told: list[str] = []
    result = await run(Settings(model=model, effort=TINY), told.append)
    seen = result.observations
    assert [(each.load.batch, each.load.prefill > 0) for each in seen] == [
        (1, False),
        (6, False),
        (1, False),
        (6, False),
        (0, True),
        (0, True),
    ]
    assert len(told) == 6
    assert [(each.requests, each.tokens) for each in result.host_work] == [(1, 8), (6, 48), (1, 32), (6, 192), (3, 48)]
    for work in result.host_work:
        assert work.tokens / work.requests <= work.messages + 1  # the first of them may come with the prompt's step
        assert 0 < work.client_s < 5 and 0 < work.gateway_s < 5
    for each in seen:
        assert each.model == measured(model, dtype="float32").sizes
        assert 0 < each.low_s <= each.total_s <= each.high_s
        assert 1 <= each.a_max <= 4  # four of eight experts on each instance
    # Contexts are those of the middle of the window, and longer than the prompt by then.
    assert all(each.load.context > prompt for each, prompt in zip(seen[:4], (8, 8, 64, 64), strict=True))
    assert [each.load.prefill for each in seen[4:]] == [128, 512]
    profile = result.fit.profile
    write_profile(profile, tmp_path / "profile.toml")
    read = load_profile(tmp_path / "profile.toml")
    assert read == profile
    assert read.device().shared_cores == 1
    assert read.host.cores == result.conditions.cores
    assert 0 < read.host.message_s(1) < 0.1
    assert {"command", "hardware", "commit", "date", "dtype", "threads"} <= set(read.measured)
    device = read.device()
    deployment = Deployment(attention=1, experts=2, attention_device=device, expert_device=device)
    step = step_time(seen[0].model, read, deployment, Load(batch=4, context=32), a_max=lambda *_: 3)
    assert 1e-4 < step.total_s < 10


async def test_what_was_seen_earlier_is_fitted_too(model: Path) -> None:
    machine = planted.profile()
    seen = tuple(planted.observe(machine, random.Random(1), noise=0.0))
    earlier = Earlier(observations=seen, load_rates=(1e9, 1.1e9, 1.2e9))
    result = await run(Settings(model=model, effort=NONE, threads=1), print, earlier=earlier)
    assert result.observations == seen
    figure = result.fit.profile.figures["cpu-1.load_bytes_s"]
    assert figure.low is not None and figure.high is not None
    assert figure.low < 1.1e9 == figure.value < figure.high


def test_without_a_config_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a Hugging Face model directory"):
        measured(tmp_path, dtype="float32")


def test_a_model_without_a_context_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        measured(tmp_path, dtype="float32")


def test_the_models_that_are_written_differ_in_size_and_can_be_served(tmp_path: Path) -> None:
    small, large = write_models(tmp_path, dtype="float32", quick=True)
    assert large.sizes.expert_side_bytes > 10 * small.sizes.expert_side_bytes
    for each in (small, large):
        assert (each.path / "tokenizer.json").exists()
        assert each.sizes.weight_width == 4
        assert each.max_model_len == 2048
