"""transformers' generate as a rival: its fastest expert implementation for each batch size, found at warm-up."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from benchmarks.serving.worker import serve

#: transformers' choices for these layers. Not batched_mm: it gathers weights per token and warms up for minutes.
_EXPERTS = ("grouped_mm", "eager")
_WARMUP_TOKENS = 6


class _FirstToken:
    """A stopping criterion that never stops, and remembers when it was asked first."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class _Rival:
    def __init__(self, path: str, dtype: str, threads: int, *, choose: bool) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        # In evaluation mode already: from_pretrained leaves it so.
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        self._candidates = _EXPERTS if choose else _EXPERTS[:1]
        #: Batch size -> implementation.
        self._best: dict[int, str] = {}

    def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        if "ping" in job:
            return {}
        prompts = torch.tensor(job["prompts"])
        if len(prompts) not in self._best:
            self._best[len(prompts)] = self._choose(prompts)
        self._model.set_experts_implementation(self._best[len(prompts)])
        return self._generate(prompts, job["output_tokens"])

    def _choose(self, prompts: torch.Tensor) -> str:
        if len(self._candidates) == 1:
            return self._candidates[0]
        return min(self._candidates, key=lambda name: self._time(name, prompts))

    def _time(self, implementation: str, prompts: torch.Tensor) -> float:
        self._model.set_experts_implementation(implementation)
        self._generate(prompts, 2)
        took: float = self._generate(prompts, _WARMUP_TOKENS)["wall_s"]
        print(f"experts {implementation}, batch {len(prompts)}: {took:.3f} s", file=sys.stderr, flush=True)
        return took

    @torch.inference_mode()
    def _generate(self, prompts: torch.Tensor, output_tokens: int) -> dict[str, Any]:
        from transformers import StoppingCriteriaList

        first = _FirstToken()
        started = time.perf_counter()
        output = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=output_tokens,
            max_new_tokens=output_tokens,
            stopping_criteria=StoppingCriteriaList([first]),
            pad_token_id=0,
        )
        ended = time.perf_counter()
        assert first.at is not None
        tokens = output.shape[1] - prompts.shape[1]
        return {
            "wall_s": ended - started,
            "output_tokens": tokens * len(prompts),
            "tpot_s": (ended - first.at) / max(1, tokens - 1),
            "ttft_s": first.at - started,
        }


if __name__ == "__main__":
    serve(_Rival(sys.argv[1], sys.argv[2], int(sys.argv[3]), choose=sys.argv[4] == "choose").handle)
