"""What comes back: text, usage, logprobs and stream events, through the official client and through plain HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus.text import Tokenizer
from janus_gateway.app import AppConfig
from tests.gateway.cluster import MODEL, EchoCluster, echo_cluster

TEXT = "Grüße 日本語 👩‍👩‍👧, one\n\ntwo three"


@pytest.fixture
async def client(cluster: EchoCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def events(body: str) -> list[dict]:
    """The JSON events of an SSE body, which has to end with [DONE]."""
    blocks = body.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block[6:]) for block in blocks[:-2]]


async def test_the_openai_client_completes_and_streams_the_same_text(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    whole = await client.completions.create(model=MODEL, prompt=TEXT, max_tokens=100)
    assert whole.choices[0].text == TEXT
    assert whole.choices[0].finish_reason == "stop"
    count = len(tokenizer.encode(TEXT))
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (count, count + 1)  # + end of sequence
    assert whole.usage.total_tokens == 2 * count + 1

    stream = await client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


async def test_the_openai_client_chats_and_streams_the_same_text(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    parts = [{"type": "text", "text": "Grüße"}, {"type": "text", "text": "日本"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    whole = await client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=200)
    # The echo of the rendered chat, special tokens not shown; Jinja drops the newline at the end of a template.
    expected = "system\nbe brief\nuser\nGrüße\n日本\nassistant"
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"

    stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"

    terse = await client.chat.completions.create(
        model=MODEL, messages=messages, extra_body={"chat_template_kwargs": {"terse": True}}
    )
    assert "briefly: " in (terse.choices[0].message.content or "")


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4")


async def test_the_first_text_arrives_while_the_model_still_generates(cluster: EchoCluster) -> None:
    cluster.first.allow(3)
    body = {"model": MODEL, "prompt": "abcdefgh" * 20, "max_tokens": 50, "stream": True}
    async with cluster.client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        first = json.loads((await anext(lines)).removeprefix("data: "))
        assert first["choices"][0]["text"]
        assert cluster.first.running == 1
        cluster.first.allow(None)
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=st.text(min_size=1, max_size=30), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_any_text_streams_as_it_answers_and_stop_strings_never_leak(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    """Through ``Choice``, as the response does, token by token and all at once."""
    from janus_gateway.backend import News
    from janus_gateway.choice import Choice
    from janus_gateway.parse import Limits, parse_completion

    limits = Limits(model_names=(MODEL,), vocab_size=tokenizer.vocab_size, max_sequences=8)
    spec = parse_completion(json.dumps({"prompt": "x", "stop": stops}).encode(), limits)
    ids = tokenizer.encode(text)
    at_once = Choice(0, spec, tokenizer)
    whole = at_once.take(News(index=0, token_ids=ids, logprobs=[], finish_reason="stop", stop_token_id=0))
    streamed = Choice(0, spec, tokenizer)
    pieces = [streamed.take(News(index=0, token_ids=[token_id], logprobs=[])) for token_id in ids]
    pieces.append(streamed.take(News(index=0, token_ids=[], logprobs=[], finish_reason="stop", stop_token_id=0)))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert streamed.tokens == at_once.tokens
    assert not any(stop in whole.text for stop in stops)
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    if first is None:
        assert whole.text == text
    else:
        assert text.startswith(whole.text)
        assert len(whole.text) >= first  # cut at a stop string, not before the first one


async def test_a_stop_string_ends_the_answer_and_the_work_behind_it(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    response = await cluster.complete("one two STOP three four", max_tokens=200, stop=["STOP", "four"], ignore_eos=True)
    answer = response.json()
    assert answer["choices"][0]["text"] == "one two "
    assert answer["choices"][0]["finish_reason"] == "stop"
    count = len(tokenizer.encode("one two STOP"))
    assert answer["usage"]["completion_tokens"] == count
    await cluster.first.until(lambda: cluster.first.running == 0)
    assert len(cluster.first.cancelled) == 1


async def test_stop_strings_wait_for_min_tokens(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    text = "ab STOP cd STOP ef"
    least = len(tokenizer.encode("ab STOP c"))
    answer = (await cluster.complete(text, max_tokens=200, stop="STOP", min_tokens=least)).json()
    assert answer["choices"][0]["text"] == "ab STOP cd "


async def test_max_tokens_ends_with_length_and_half_a_character_as_replacement(
    cluster: EchoCluster, tokenizer: Tokenizer
) -> None:
    text = "ab 𝄞"
    limit = len(tokenizer.encode(text)) - 1
    answer = (await cluster.complete(text, max_tokens=limit)).json()
    assert answer["choices"][0]["text"] == "ab \ufffd"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == limit


async def test_ignore_eos_goes_on_to_max_tokens(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc")
    answer = (await cluster.complete(ids, max_tokens=2 * len(ids), ignore_eos=True)).json()
    assert answer["choices"][0]["text"] == "abcabc"
    n = len(ids)
    assert answer["usage"] == {"prompt_tokens": n, "completion_tokens": 2 * n, "total_tokens": 3 * n}


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_times_n_give_choices_in_order(cluster: EchoCluster, tokenizer: Tokenizer, stream: bool) -> None:
    prompts = ["abc", "日本"]
    response = await cluster.complete(
        prompts, n=2, seed=0, max_tokens=50, stream=stream, stream_options={"include_usage": True} if stream else None
    )
    counts = [len(tokenizer.encode(prompt)) for prompt in prompts]
    texts = dict.fromkeys(range(4), "")
    if stream:
        chunks = events(response.text)
        for chunk in chunks[:-1]:
            assert chunk["usage"] is None
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert chunks[-1]["choices"] == []
        usage = chunks[-1]["usage"]
    else:
        texts |= {choice["index"]: choice["text"] for choice in response.json()["choices"]}
        usage = response.json()["usage"]
    # The second choice of a prompt has the next seed: the echo begins one token later.
    rotated = tokenizer.encode("abc")[1:] + tokenizer.encode("abc")[:1]
    assert texts[0] == "abc"
    assert texts[1] == tokenizer.decode(rotated)
    assert texts[2] == "日本"
    # A prompt is counted once, however many choices it has.
    assert usage["prompt_tokens"] == sum(counts)
    assert usage["completion_tokens"] == 2 * sum(count + 1 for count in counts)


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_in_front(cluster: EchoCluster, tokenizer: Tokenizer, stream: bool) -> None:
    for prompt in ("abc", tokenizer.encode("abc")):
        response = await cluster.complete(prompt, echo=True, stream=stream)
        chunks = events(response.text) if stream else [response.json()]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abcabc"


async def test_completion_logprobs(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    whole = (await cluster.complete("a日", logprobs=2, max_tokens=8)).json()["choices"][0]["logprobs"]
    ids = tokenizer.encode("a日")
    assert whole["tokens"] == [tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    assert whole["token_logprobs"] == [-0.25] * len(ids)
    assert whole["text_offset"][:2] == [0, 1]
    assert all(top[token] == -0.25 for top, token in zip(whole["top_logprobs"], whole["tokens"], strict=True))
    streamed = events((await cluster.complete("a日", logprobs=2, max_tokens=8, stream=True)).text)
    joined = {key: [x for c in streamed for x in c["choices"][0]["logprobs"][key]] for key in whole}
    assert joined == whole


async def test_chat_logprobs(cluster: EchoCluster) -> None:
    messages = [{"role": "user", "content": "日"}]
    path = "/v1/chat/completions"
    whole = (await cluster.complete(messages, path, logprobs=True, top_logprobs=3)).json()["choices"][0]
    content = whole["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)
    shown = b"".join(bytes(entry["bytes"]) for entry in content).decode()
    for special in ("<|im_start|>", "<|im_end|>"):
        shown = shown.replace(special, "")
    assert shown == whole["message"]["content"]
    plain = (await cluster.complete(messages, path, logprobs=True)).json()["choices"][0]
    assert all(entry["top_logprobs"] == [] for entry in plain["logprobs"]["content"])


async def test_continuous_usage_counts_up(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events((await cluster.complete("abc", stream=True, stream_options=options)).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == len(tokenizer.encode("abc")) + 1


async def test_a_chat_without_a_limit_takes_the_gateways_default(tokenizer: Tokenizer) -> None:
    async with echo_cluster(tokenizer, config=AppConfig(default_max_tokens=5)) as cluster:
        messages = [{"role": "user", "content": "a long way to go"}]
        answer = (await cluster.complete(messages, "/v1/chat/completions")).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_unknown_fields_and_nulls_are_ignored(cluster: EchoCluster) -> None:
    response = await cluster.complete(
        "abc",
        temperature=None,
        stop=None,
        n=None,
        user="me",
        logit_bias={},
        guided_json={"a": [1]},
        best_of=1,
        top_k=-1,
    )
    assert response.status_code == 200
    assert response.json()["choices"][0]["text"] == "abc"


async def test_a_path_is_an_alias_of_the_model(cluster: EchoCluster) -> None:
    response = await cluster.complete("abc", model="/models/echo")
    assert response.json()["model"] == MODEL
