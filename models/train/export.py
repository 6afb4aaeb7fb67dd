"""Write a training state as a Hugging Face model directory (Qwen3MoeForCausalLM, bfloat16 safetensors)."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from .model import ModelConfig
from .registers import DEFAULT_WORKDIR, END_OF_TEXT

# A base model of prose: messages are joined as text, and an answer goes on where the last message stops.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}"
    "{{ ' ' if message['role'] == 'assistant' else '\\n\\n' }}"
    "{%- endif -%}"
    "{{ message['content'] | trim }}"
    "{%- endfor -%}"
)


def tensors(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Standard per-expert tensor names; the tied output matrix is not stored twice."""
    named = {"model.embed_tokens.weight": state["embedding"], "model.norm.weight": state["final_norm"]}
    for layer in range(config.layers):
        source, target = f"blocks.{layer}", f"model.layers.{layer}"
        named[f"{target}.input_layernorm.weight"] = state[f"{source}.attention_norm"]
        named[f"{target}.post_attention_layernorm.weight"] = state[f"{source}.moe_norm"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            named[f"{target}.self_attn.{name}.weight"] = state[f"{source}.attention.{name}"]
        named[f"{target}.mlp.gate.weight"] = state[f"{source}.moe.router"]
        gate, up = state[f"{source}.moe.gate_up"].chunk(2, dim=1)
        down = state[f"{source}.moe.down"]
        for expert in range(config.experts):
            prefix = f"{target}.mlp.experts.{expert}"
            named[f"{prefix}.gate_proj.weight"] = gate[expert]
            named[f"{prefix}.up_proj.weight"] = up[expert]
            named[f"{prefix}.down_proj.weight"] = down[expert]
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in named.items()}


def hf_config(config: ModelConfig, end_id: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": 4 * config.expert_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context,
        "use_sliding_window": False,
        "num_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "moe_intermediate_size": config.expert_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.00125,
        "output_router_logits": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }


def export(state: dict[str, Tensor], config: ModelConfig, tokenizer_path: Path, directory: Path) -> None:
    """Write every file into a sibling temporary directory first: a reader never sees a partial file."""
    end_id = Tokenizer.from_file(str(tokenizer_path)).token_to_id(END_OF_TEXT)
    documents = {
        "config.json": hf_config(config, end_id),
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.8,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "bos_token_id": end_id,
            "eos_token_id": end_id,
            "pad_token_id": end_id,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        for name, document in documents.items():
            (Path(scratch) / name).write_text(json.dumps(document, indent=2) + "\n")
        shutil.copy(tokenizer_path, Path(scratch) / "tokenizer.json")
        save_file(tensors(state, config), Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        for path in Path(scratch).iterdir():
            path.chmod(0o644)
            path.replace(directory / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=DEFAULT_WORKDIR)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    checkpoint = torch.load(args.workdir / "checkpoint.rank0.pt", weights_only=True)
    export(checkpoint["model"], ModelConfig(), args.workdir / "tokenizer.json", args.out)


if __name__ == "__main__":
    main()
