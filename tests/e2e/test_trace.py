"""What a cluster exports as its trace is what the router chose for exactly the tokens that it served."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from janus.core.trace import Trace
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.oracle import NEW_TOKENS, Expected, Oracle
from tests.e2e.waiting import LIMIT_S, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: Short enough to be sampled whole: of a step with more tokens than this, only so many are.
_LONGEST = 8


@torch.inference_mode()
def routed(oracle: Oracle, answers: Sequence[Expected]) -> np.ndarray:
    """[L, E]: how often ``transformers`` chooses each expert for all tokens that are computed for these answers."""
    config = oracle.model.config
    counts = np.zeros((config.num_hidden_layers, config.num_experts))
    for answer in answers:
        ids = torch.tensor([[*answer.prompt, *answer.tokens[:-1]]])  # the last one is never computed
        for layer, logits in enumerate(oracle.model(ids, output_router_logits=True).router_logits):
            chosen = logits.topk(config.num_experts_per_tok).indices.flatten().numpy()
            counts[layer] += np.bincount(chosen, minlength=config.num_experts)
    return counts


def sampled(cluster: Cluster) -> int:
    """Tokens in the controller's window."""
    url = f"{cluster.state().controller_ops}/status"
    tokens: int = httpx.get(url, timeout=LIMIT_S, trust_env=False).json()["statistics"]["window_tokens"]
    return tokens


def janus(cluster: Cluster, *arguments: str) -> str:
    command = [sys.executable, "-m", "janus_cli", *arguments]
    environ = dict(cluster.environ)
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("gate", ["attention", pytest.param("expert", marks=pytest.mark.slow)])
async def test_the_trace_is_what_the_router_chose(
    lab: Lab,
    own_cluster: Callable[[Spec], Cluster],
    connect: Callable[[Cluster], Client],
    tmp_path: Path,
    gate: str,
) -> None:
    oracle, file = lab.oracle("janus-tiny"), tmp_path / "trace.safetensors"
    source = np.random.default_rng(7)
    prompts = [source.integers(2, oracle.model.config.vocab_size, 1 + index % _LONGEST).tolist() for index in range(8)]
    answers = oracle.expect(prompts)
    assert len(answers) >= 4
    environment = (("JANUS_ATTENTION_ROUTING_SAMPLE_RATE", "4096"),)  # that is, every token
    model = lab.model_dir("janus-tiny")
    cluster = own_cluster(Spec(model=model, environment=environment, arguments=("--gate", gate)))
    client = connect(cluster)
    for expected in answers:
        answer = await client.complete(expected.prompt, max_tokens=NEW_TOKENS)
        assert answer.text == expected.text
    total = sum(len(answer.prompt) + NEW_TOKENS - 1 for answer in answers)
    until(lambda: sampled(cluster) >= total, f"all of {total} tokens are reported", within_s=LIMIT_S)

    assert f"{total} tokens" in janus(cluster, "trace", "export", str(file))
    trace = Trace.from_bytes(file.read_bytes())
    config = oracle.model.config
    assert (trace.num_layers, trace.num_experts) == (config.num_hidden_layers, config.num_experts)
    assert (trace.tokens, trace.top_k) == (total, config.num_experts_per_tok)
    assert (trace.weights == 1).all()
    np.testing.assert_array_equal(trace.counts(), routed(oracle, answers))

    assert f"imported {total} tokens" in janus(cluster, "trace", "import", str(file))
    assert sampled(cluster) == 2 * total
    assert "busiest/mean" in janus(cluster, "trace", "show", str(file))
    kept = cluster.directory / "janus" / "default"
    cluster.terminate()
    cluster.process.wait(LIMIT_S)
    (state,) = kept.glob("activations-*.safetensors")  # what the next cluster of this name begins with
    assert Trace.from_bytes(state.read_bytes()).tokens == 2 * total
