"""Measure an exported model with transformers: held-out loss, expert load and sample text. Prints JSON."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .registers import DEFAULT_WORKDIR, REGISTERS

SAMPLE_TOKENS = 80
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}


@torch.no_grad()
def heldout(model: PreTrainedModel, tokens: Tensor) -> tuple[float, int, Tensor]:
    """Summed cross-entropy over windows of full context, tokens predicted, and expert counts [layers, experts]."""
    config = model.config
    context = config.max_position_embeddings
    counts = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.int64)
    loss, predicted = 0.0, 0
    for rows in tokens.unfold(0, context + 1, context).split(8):
        out = model(rows[:, :-1], output_router_logits=True)
        loss += torch.nn.functional.cross_entropy(
            out.logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
        ).item()
        predicted += rows[:, 1:].numel()
        for layer, router_logits in enumerate(out.router_logits):
            chosen = router_logits.topk(config.num_experts_per_tok, dim=-1).indices
            counts[layer] += torch.bincount(chosen.flatten(), minlength=config.num_experts)
    return loss, predicted, counts


def load_summary(counts: Tensor) -> dict[str, list[float]]:
    """Hottest and coldest expert of each layer, as multiples of an even load."""
    load = counts / counts.float().mean(1, keepdim=True)
    return {
        "max_over_mean": [round(x, 2) for x in load.amax(1).tolist()],
        "min_over_mean": [round(x, 2) for x in load.amin(1).tolist()],
    }


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, **SAMPLING)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--workdir", type=Path, default=DEFAULT_WORKDIR)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()

    model, loading = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), output_loading_info=True
    )
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise SystemExit(f"the checkpoint does not fit the model: {loading}")
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    report: dict[str, Any] = {"dtype": args.dtype, "loss": {}, "perplexity": {}, "load": {}, "samples": {}}
    losses, tokens, counts = 0.0, 0, 0
    for register in REGISTERS:
        ids = torch.from_numpy(np.load(args.workdir / f"{register}.heldout.npy").astype(np.int64))
        loss, predicted, register_counts = heldout(model, ids)
        report["loss"][register] = round(loss / predicted, 3)
        report["load"][register] = load_summary(register_counts)
        losses, tokens, counts = losses + loss, tokens + predicted, counts + register_counts
    report["loss"]["all"] = round(losses / tokens, 3)
    report["load"]["all"] = load_summary(counts)
    report["perplexity"] = {name: round(math.exp(loss), 1) for name, loss in report["loss"].items()}
    for register, prompts in json.loads((args.model / "prompts.json").read_text()).items():
        report["samples"][register] = [sample(model, tokenizer, prompt) for prompt in prompts]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
