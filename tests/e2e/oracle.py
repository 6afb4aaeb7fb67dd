"""What ``transformers`` says: the tokens of greedy generation and the log-probabilities at every step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

#: Tokens of every answer.
NEW_TOKENS = 64
#: A prompt on which the choice of one token, or of one expert, hangs on less than this in logits says nothing about
#: who computes it right, and is left out. In float32 the bundled model is up to 1.2e-5 and 4e-6 off float64 there, the
#: random ones 4e-5 and 1e-5.
_MIN_TOKEN_GAP = 1e-4
_MIN_EXPERT_GAP = 2e-5


@dataclass(frozen=True)
class Expected:
    """The oracle's answer to one prompt."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    #: [NEW_TOKENS, vocabulary], natural logarithms.
    logprobs: torch.Tensor


class Oracle:
    """One checkpoint in ``transformers``, computed in ``dtype``."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not ours to keep clean
            self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model.train(False)
        self.model.generation_config = GenerationConfig.from_dict(
            {}
        )  # no end of sequence: every answer has the same length
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._answers: dict[tuple[int, ...], Expected | None] = {}

    def expect(self, prompts: Sequence[Sequence[int]]) -> list[Expected]:
        """The answers to those of ``prompts`` that have a clear one, in order."""
        keys = [tuple(prompt) for prompt in prompts]
        missing = [key for key in dict.fromkeys(keys) if key not in self._answers]
        if missing:
            rows = self._generate(missing)
            self._answers |= {key: self._examine(key, row) for key, row in zip(missing, rows, strict=True)}
        return [answer for key in keys if (answer := self._answers[key]) is not None]

    @torch.inference_mode()
    def _generate(self, prompts: list[tuple[int, ...]]) -> list[list[int]]:
        """Greedy generation by ``transformers`` itself, all prompts in one batch, padded on the left."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = self.model.generate(ids, attention_mask=mask, **settings)
        return [row[longest:].tolist() for row in rows]

    def _examine(self, prompt: tuple[int, ...], tokens: list[int]) -> Expected | None:
        """The answer, unless it hangs on rounding: then any correct implementation may give another one."""
        assert len(tokens) == NEW_TOKENS
        logits, expert_gap = self.score(prompt, tokens)
        best = logits.topk(2)
        token_gap = float((best.values[:, 0] - best.values[:, 1]).min())
        if token_gap < _MIN_TOKEN_GAP or expert_gap < _MIN_EXPERT_GAP:
            return None
        assert best.indices[:, 0].tolist() == tokens
        return Expected(prompt, tuple(tokens), self.decode(tokens), logits.log_softmax(-1))

    @torch.inference_mode()
    def score(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[torch.Tensor, float]:
        """Logits [tokens, vocabulary] that gave ``tokens``, and how close the choice of experts ever was."""
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        output = self.model(ids, output_router_logits=True)
        gaps = [gap for scores in self._scores(output.router_logits) for gap in self._gaps(scores)]
        return output.logits[0, len(prompt) - 1 :].float(), min(gaps, default=1.0)

    def _scores(self, router_logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the experts of each MoE layer are chosen by."""
        name = "e_score_correction_bias"
        biases = [getattr(module, name) for module in self.model.modules() if hasattr(module, name)]
        if not biases:
            return [logits.float() for logits in router_logits]
        return [logits.float().sigmoid() + bias for logits, bias in zip(router_logits, biases, strict=True)]

    def _gaps(self, scores: torch.Tensor) -> list[float]:
        """How close the last that is chosen and the next one ever are: of groups, where there are any, of experts."""
        config, gaps = self.model.config, []
        groups, chosen = getattr(config, "n_group", None) or 1, config.num_experts_per_tok
        if groups > 1:
            # DeepSeek-V2 ranks a group by its best expert, all with a correction bias by the two best.
            best_of_group = 1 if config.model_type == "deepseek_v2" else 2
            ranks = scores.unflatten(1, (groups, -1)).topk(best_of_group).values.sum(-1)
            best = ranks.topk(config.topk_group + 1)
            gaps.append(float((best.values[:, -2] - best.values[:, -1]).min()))
            left_out = torch.ones_like(ranks, dtype=torch.bool).scatter_(1, best.indices[:, :-1], False)
            scores = scores.masked_fill(left_out.repeat_interleave(scores.shape[1] // groups, dim=1), -torch.inf)
        if chosen < scores.shape[1]:
            experts = scores.topk(chosen + 1).values
            gaps.append(float((experts[:, -2] - experts[:, -1]).min()))
        return gaps

    @torch.inference_mode()
    def score_batched(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """As ``score`` of every pair, computed in one batch padded on the left."""
        rows = [[*prompt, *own[:-1]] for prompt, own in zip(prompts, tokens, strict=True)]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(ids, attention_mask=mask, position_ids=positions).logits
        return [row[-len(own) :].float() for row, own in zip(logits, tokens, strict=True)]

    @torch.inference_mode()
    def score_stepwise(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """As ``score``, one token after the other with a KV cache: how generation computes them."""
        rows, cache, given = [], None, list(prompt)
        for token in tokens:
            output = self.model(torch.tensor([given]), past_key_values=cache, use_cache=True)
            rows.append(output.logits[0, -1].float())
            cache, given = output.past_key_values, [token]
        return torch.stack(rows)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, without special ones."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def name(self, token: int) -> str:
        """What one token reads on its own; bytes that are no character read U+FFFD."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text
