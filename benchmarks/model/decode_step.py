"""``python -m benchmarks.model.decode_step``: time per operation of a decode step, beside transformers' generate.

One process, random weights of the benchmark shape ``qwen3moe-tiny`` (481 MB in bf16). ``bound`` is the time that
reading the activated weights would take at this machine's measured bandwidth: what a perfect kernel would need.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from janus.model.attention_model import AttentionModel
from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.kernels import configure_threads
from janus.model.kv_cache import PagedKVCache
from janus.model.random_model import benchmark_config, write_random_model

_BLOCK_SIZE = 16


class Decoder:
    """One model with all its experts, and decode steps of any batch size at a fixed context length."""

    def __init__(self, path: Path, dtype: torch.dtype, context: int, kernels: bool) -> None:
        checkpoint = Checkpoint.open(path)
        self.config = config = checkpoint.config
        self.model = AttentionModel.load(checkpoint, config, dtype, kernels=kernels)
        self.bank = ExpertBank(config, config.num_moe_layers, config.num_experts, dtype, kernels=kernels)
        for layer in range(config.num_moe_layers):
            for expert in range(config.num_experts):
                self.bank.load(checkpoint, layer, expert, expert)
        self.context = context
        self.blocks = -(-context // _BLOCK_SIZE)
        self.kv = PagedKVCache(config, 64 * self.blocks, _BLOCK_SIZE, dtype)
        self._random = np.random.default_rng(0)

    def batch(self, size: int) -> StepBatch:
        tables = np.arange(size * self.blocks).reshape(size, self.blocks)
        position = np.full(size, self.context - 1)
        return StepBatch(
            token_ids=self._random.integers(0, self.config.vocab_size, size),
            positions=position,
            slot_mapping=tables[:, -1] * _BLOCK_SIZE + position % _BLOCK_SIZE,
            query_start=np.arange(size + 1),
            context_len=np.full(size, self.context),
            block_tables=tables,
            sample_rows=np.arange(size),
        )

    def step(self, size: int, spent: dict[str, float]) -> float:
        """Run one step; adds seconds per operation to ``spent`` and returns the mean of activated experts per layer."""
        last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            spent[name] += now - last
            last = now

        activated = 0
        batch = self.batch(size)
        lap("batch")
        h = self.model.embed(batch)
        lap("embed")
        for layer in range(self.config.num_layers):
            h, x = self.model.attention(layer, h, batch, self.kv)
            lap("attention")
            weights, ids = self.model.route(layer, x)
            lap("gate")
            y = self.bank.forward(layer, x, ids, weights)
            lap("experts")
            h = h + y
            lap("residual")
            activated += self.bank.activated(ids)
            last = time.perf_counter()
        self.model.logits(h, batch)
        lap("head")
        return activated / self.config.num_layers


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=48, help="tokens of context per sequence")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--torch", action="store_true", help="measure the torch path instead of the CPU kernels")
    parser.add_argument("--transformers", action="store_true", help="measure transformers' generate as well")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    if given.torch:
        torch.set_num_threads(given.threads)
    else:
        configure_threads(given.threads)
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        path = write_random_model(directory, benchmark_config())
        _report(Decoder(path, dtype, given.context, not given.torch), given)
        if given.transformers:
            torch.set_num_threads(given.threads)
            _report_transformers(path, dtype, given)


def _report(decoder: Decoder, given: argparse.Namespace) -> None:
    bandwidth = _bandwidth(given.threads)
    print(
        f"read bandwidth of {given.threads} threads: {bandwidth / 1e9:.1f} GB/s; times in ms, median of {given.steps}"
    )
    for size in given.batch:
        samples: defaultdict[str, list[float]] = defaultdict(list)
        activated = []
        for _ in range(given.steps + 3):
            spent: dict[str, float] = defaultdict(float)
            activated.append(decoder.step(size, spent))
            for name, seconds in spent.items():
                samples[name].append(seconds)
            samples["step"].append(sum(spent.values()))
        medians = {name: statistics.median(values[3:]) * 1e3 for name, values in samples.items()}
        step = medians.pop("step")
        bound = _weight_bytes(decoder.config, statistics.mean(activated), decoder.model.dtype) / bandwidth * 1e3
        parts = "  ".join(f"{name} {value:.2f}" for name, value in medians.items())
        print(f"B={size:<3} step {step:6.2f} ({size / step * 1e3:5.0f} tok/s, bound {bound:5.2f})  {parts}")


def _weight_bytes(config: ModelConfig, activated: float, dtype: torch.dtype) -> float:
    """Bytes of the weights that a step reads: activated experts, attention, gates, output head."""
    hidden, head = config.hidden_size, config.head_dim
    attention = hidden * head * (2 * config.num_heads + 2 * config.num_kv_heads) + hidden * config.num_experts
    experts = activated * 3 * hidden * config.moe_intermediate_size
    return (config.num_layers * (attention + experts) + config.vocab_size * hidden) * dtype.itemsize


def _bandwidth(threads: int) -> float:
    """Bytes per second of reading memory, best of a few sums over 512 MB."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    memory = torch.ones(64 << 20, dtype=torch.int64)
    best = min(_seconds(memory.sum) for _ in range(6))
    torch.set_num_threads(before)
    return memory.nbytes / best


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _report_transformers(path: Path, dtype: torch.dtype, given: argparse.Namespace) -> None:
    from transformers import GenerationConfig, Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM.from_pretrained(path, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    prompt_length = max(1, given.context - 16)
    for size in given.batch:
        ids = torch.randint(0, model.config.vocab_size, (size, prompt_length))

        def run(new_tokens: int, ids: torch.Tensor = ids) -> float:
            settings = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
            return _seconds(
                lambda: model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            )

        run(2)
        step = (run(33) - run(1)) / 32 * 1e3
        print(f"transformers generate B={size:<3} step {step:6.2f} ms ({size / step * 1e3:5.0f} tok/s)")


if __name__ == "__main__":
    main()
