"""The allowed range of every sampling parameter, checked in one place."""

from __future__ import annotations

import math

from janus.errors import InvalidRequest
from janus.messages.control import SamplingParams

#: Far over any useful value; a bound keeps ``logits / temperature`` well inside the float range.
MAX_TEMPERATURE = 100.0
#: The largest number of alternatives that OpenAI's API and vLLM's default report for one position.
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 1024
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_INT32_MAX = (1 << 31) - 1


def validate(params: SamplingParams, vocab_size: int) -> None:
    """Check every field of ``params`` against its range.

    Raises:
        InvalidRequest: the first field out of range; ``param`` names it and the message says what is allowed.
    """
    _real("temperature", params.temperature, low=0.0, high=MAX_TEMPERATURE, hint="0 is greedy")
    _real("top_p", params.top_p, low=0.0, high=1.0, low_open=True, hint="1 is off")
    _integer("top_k", params.top_k, low=0, high=_INT32_MAX, hint="0 is off")
    _real("min_p", params.min_p, low=0.0, high=1.0, hint="0 is off")
    _real("presence_penalty", params.presence_penalty, low=-2.0, high=2.0, hint="0 is off")
    _real("frequency_penalty", params.frequency_penalty, low=-2.0, high=2.0, hint="0 is off")
    _real("repetition_penalty", params.repetition_penalty, low=0.0, high=100.0, low_open=True, hint="1 is off")
    _integer("max_tokens", params.max_tokens, low=1, high=_INT32_MAX)
    _integer("min_tokens", params.min_tokens, low=0, high=_INT32_MAX)
    if params.min_tokens > params.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {params.min_tokens}, more than max_tokens ({params.max_tokens}); "
            "lower min_tokens or raise max_tokens",
            param="min_tokens",
        )
    if params.seed is not None:
        _integer("seed", params.seed, low=_INT64_MIN, high=_INT64_MAX, hint="leave it out for a random one")
    if params.logprobs is not None:
        _integer("logprobs", params.logprobs, low=0, high=MAX_LOGPROBS, hint="leave it out for none")
    _stop_token_ids(params.stop_token_ids, vocab_size)


def _stop_token_ids(ids: list[int], vocab_size: int) -> None:
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(ids)} entries; give at most {MAX_STOP_TOKEN_IDS}", param="stop_token_ids"
        )
    for token_id in ids:
        _integer("stop_token_ids", token_id, low=0, high=vocab_size - 1, hint="ids of this model's vocabulary")


def _real(name: str, value: float, *, low: float, high: float, low_open: bool = False, hint: str = "") -> None:
    # bool is an int in Python, and ``True`` as a temperature is a client's mistake.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and low <= value <= high and not (low_open and value == low)):
        raise InvalidRequest(f"{name} is {value!r}; {_allowed('a number', low, high, low_open, hint)}", param=name)


def _integer(name: str, value: int, *, low: int, high: int, hint: str = "") -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        raise InvalidRequest(f"{name} is {value!r}; {_allowed('an integer', low, high, False, hint)}", param=name)


def _allowed(kind: str, low: float, high: float, low_open: bool, hint: str) -> str:
    lower = f"above {low:g}" if low_open else f"from {low}"
    return f"give {kind} {lower} to {high}" + (f" ({hint})" if hint else "")
