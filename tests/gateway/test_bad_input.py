"""Whatever a client sends, the answer is an error that names the field, in OpenAI's shape, and others never notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from janus.text import Tokenizer
from janus_gateway.app import AppConfig
from tests.gateway.cluster import CONTEXT, MODEL, EchoCluster, echo_cluster

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
MAX_BODY = 64 << 10


def completion(**body: object) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "abc", **body}).encode()


def chat(**body: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": USER, **body}).encode()


#: name: (path, body, status, param of the error, a word of its message)
CASES: dict[str, tuple[str, bytes, int, str | None, str]] = {
    "empty body": (COMPLETIONS, b"", 400, None, "JSON"),
    "malformed JSON": (COMPLETIONS, b'{"prompt": "a"', 400, None, "JSON"),
    "trailing bytes": (COMPLETIONS, b'{"prompt": "a"} x', 400, None, "JSON"),
    "not UTF-8": (COMPLETIONS, b'{"prompt": "\xff\xfe"}', 400, None, "utf-8"),
    "lone surrogate": (COMPLETIONS, b'{"prompt": "\\ud800"}', 400, None, "JSON"),
    "an array": (COMPLETIONS, b"[1]", 400, None, "object"),
    "absurd nesting": (COMPLETIONS, b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, None, "JSON"),
    "NaN": (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, None, "JSON"),
    "infinite number": (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', 400, "temperature", "range"),
    "no prompt": (COMPLETIONS, b"{}", 400, "prompt", "missing"),
    "empty prompt": (COMPLETIONS, completion(prompt=""), 400, "prompt", "empty"),
    "empty list": (COMPLETIONS, completion(prompt=[]), 400, "prompt", "empty"),
    "an empty text among others": (COMPLETIONS, completion(prompt=["a", ""]), 400, "prompt", "empty"),
    "an empty row": (COMPLETIONS, completion(prompt=[[1], []]), 400, "prompt[1]", "no token ids"),
    "mixed prompt": (COMPLETIONS, completion(prompt=["a", 1]), 400, "prompt", "mixes"),
    "prompt of objects": (COMPLETIONS, completion(prompt=[{}]), 400, "prompt[0]", "object"),
    "prompt of booleans": (COMPLETIONS, completion(prompt=[True]), 400, "prompt[0]", "bool"),
    "negative token id": (COMPLETIONS, completion(prompt=[1, -1]), 400, "prompt", "-1"),
    "token id too high": (COMPLETIONS, completion(prompt=[[1], [10**9]]), 400, "prompt[1]", "1000000000"),
    "prompt over the context": (COMPLETIONS, completion(prompt=[5] * CONTEXT), 400, "prompt", str(CONTEXT)),
    "max_tokens over the context": (COMPLETIONS, completion(max_tokens=CONTEXT), 400, "prompt", str(CONTEXT)),
    "too many sequences": (COMPLETIONS, completion(prompt=["a"] * 300), 400, "prompt", "256"),
    "max_tokens 0": (COMPLETIONS, completion(max_tokens=0), 400, "max_tokens", "1"),
    "max_tokens negative": (COMPLETIONS, completion(max_tokens=-5), 400, "max_tokens", "-5"),
    "max_tokens a string": (COMPLETIONS, completion(max_tokens="16"), 400, "max_tokens", "integer"),
    "max_tokens a fraction": (COMPLETIONS, completion(max_tokens=1.5), 400, "max_tokens", "integer"),
    "max_tokens huge": (COMPLETIONS, completion(max_tokens=10**30), 400, "max_tokens", ""),
    "min over max": (COMPLETIONS, completion(max_tokens=2, min_tokens=3), 400, "min_tokens", "max_tokens"),
    "temperature negative": (COMPLETIONS, completion(temperature=-0.1), 400, "temperature", "0"),
    "temperature huge": (COMPLETIONS, completion(temperature=1e30), 400, "temperature", "100"),
    "temperature a boolean": (COMPLETIONS, completion(temperature=True), 400, "temperature", "number"),
    "top_p 0": (COMPLETIONS, completion(top_p=0), 400, "top_p", "above 0"),
    "top_p over 1": (COMPLETIONS, completion(top_p=1.1), 400, "top_p", "1"),
    "top_k below -1": (COMPLETIONS, completion(top_k=-2), 400, "top_k", "0"),
    "min_p over 1": (COMPLETIONS, completion(min_p=2), 400, "min_p", "1"),
    "seed too large": (COMPLETIONS, completion(seed=1 << 63), 400, "seed", ""),
    "penalty out of range": (COMPLETIONS, completion(presence_penalty=3), 400, "presence_penalty", "2"),
    "repetition_penalty 0": (COMPLETIONS, completion(repetition_penalty=0), 400, "repetition_penalty", "above 0"),
    "n 0": (COMPLETIONS, completion(n=0), 400, "n", "1 to 8"),
    "n too large": (COMPLETIONS, completion(n=9), 400, "n", "1 to 8"),
    "too many stops": (COMPLETIONS, completion(stop=["x"] * 17), 400, "stop", "16"),
    "empty stop": (COMPLETIONS, completion(stop=[""]), 400, "stop", "0 characters"),
    "long stop": (COMPLETIONS, completion(stop="x" * 1025), 400, "stop", "1024"),
    "stop a number": (COMPLETIONS, completion(stop=5), 400, "stop", "array"),
    "stop token out of range": (COMPLETIONS, completion(stop_token_ids=[10**6]), 400, "stop_token_ids", "1000000"),
    "logprobs too many": (COMPLETIONS, completion(logprobs=21), 400, "logprobs", "20"),
    "best_of": (COMPLETIONS, completion(best_of=4), 400, "best_of", "not supported"),
    "suffix": (COMPLETIONS, completion(suffix="end"), 400, "suffix", "not supported"),
    "echo with logprobs": (COMPLETIONS, completion(echo=True, logprobs=1), 400, "echo", "not supported"),
    "logit_bias": (COMPLETIONS, completion(logit_bias={"5": 10}), 400, "logit_bias", "not supported"),
    "stream_options alone": (COMPLETIONS, completion(stream_options={}), 400, "stream_options", "stream"),
    "stream a string": (COMPLETIONS, completion(stream="yes"), 400, "stream", "boolean"),
    "another model": (COMPLETIONS, completion(model="gpt-4"), 404, "model", "gpt-4"),
    "model a number": (COMPLETIONS, completion(model=4), 400, "model", "string"),
    "body too large": (COMPLETIONS, completion(prompt="a" * MAX_BODY), 413, None, str(MAX_BODY)),
    "no messages": (CHAT, b"{}", 400, "messages", "missing"),
    "empty messages": (CHAT, chat(messages=[]), 400, "messages", "empty"),
    "messages a string": (CHAT, chat(messages="hi"), 400, "messages", "array"),
    "message without role": (CHAT, chat(messages=[{"content": "x"}]), 400, "messages[0]", "role"),
    "unknown role": (CHAT, chat(messages=[{"role": "boss", "content": "x"}]), 400, "messages[0].role", "boss"),
    "no content": (CHAT, chat(messages=[{"role": "user"}]), 400, "messages[0].content", "missing"),
    "content a number": (CHAT, chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content", "string"),
    "an image": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
        "messages[0].content[0]",
        "image_url",
    ),
    "refused by the template": (
        CHAT,
        chat(messages=[{"role": "tool", "content": "x"}]),
        400,
        "messages",
        "no tools here",
    ),
    "chat over the context": (
        CHAT,
        chat(messages=[{"role": "user", "content": "§" * CONTEXT}]),
        400,
        "messages",
        "2048",
    ),
    "tools": (CHAT, chat(tools=[{"type": "function"}]), 400, "tools", "not supported"),
    "JSON mode": (CHAT, chat(response_format={"type": "json_object"}), 400, "response_format", "text"),
    "top_logprobs alone": (CHAT, chat(top_logprobs=2), 400, "top_logprobs", "logprobs"),
    "top_logprobs too many": (CHAT, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs", "20"),
    "min_tokens over the room": (CHAT, chat(min_tokens=CONTEXT), 400, "min_tokens", "limit"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tokenizer: Tokenizer) -> AsyncIterator[EchoCluster]:
    async with echo_cluster(tokenizer, config=AppConfig(max_body_bytes=MAX_BODY)) as running:
        yield running


@pytest.fixture
async def cluster_64k(tokenizer: Tokenizer) -> AsyncIterator[EchoCluster]:
    async with echo_cluster(tokenizer, config=AppConfig(max_body_bytes=MAX_BODY)) as running:
        yield running


def assert_error(response: object, status: int, param: str | None, word: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert word in error["message"], error
    assert error["type"]
    assert error["code"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_a_bad_request_is_named(shared: EchoCluster, name: str) -> None:
    path, body, status, param, word = CASES[name]
    refused = await shared.metric("janus_gateway_requests_refused_total")
    response = await shared.client.post(path, content=body, headers={"content-type": "application/json"})
    assert_error(response, status, param, word)
    assert shared.first.submitted == []
    assert await shared.metric("janus_gateway_requests_refused_total") == refused + 1


async def test_eight_streams_beside_all_bad_requests_never_notice(cluster_64k: EchoCluster) -> None:
    text, cluster = "The quick brown fox. " * 8, cluster_64k
    alone = (await cluster.complete(text, max_tokens=600)).json()["choices"][0]["text"]
    cluster.first.allow(3)
    body = {"model": MODEL, "prompt": text, "max_tokens": 600, "stream": True}

    async def stream() -> str:
        shown = ""
        async with cluster.client.stream("POST", COMPLETIONS, json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    shown += json.loads(line[6:])["choices"][0]["text"]
        return shown

    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream()) for _ in range(8)]
        await cluster.first.until(lambda: cluster.first.running == 8)
        for path, bad, status, _, _ in CASES.values():
            response = await cluster.client.post(path, content=bad)
            assert response.status_code == status
            cluster.first.allow(2)
        cluster.first.allow(None)
    assert [task.result() for task in streams] == [alone] * 8
    assert alone == text


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/nothing", 404, "/nothing"),
        ("POST", "/v1/embeddings", 404, "embeddings"),
        ("GET", COMPLETIONS, 405, "Method Not Allowed"),
        ("DELETE", "/v1/models", 405, "Method Not Allowed"),
        ("GET", "/v1/models/other", 404, "other"),
    ],
)
async def test_the_router_speaks_the_same_way(
    cluster: EchoCluster, method: str, path: str, status: int, word: str
) -> None:
    response = await cluster.client.request(method, path)
    assert_error(response, status, "model" if path.endswith("other") else None, word)
    if status == 405:
        assert response.headers["allow"]


async def test_a_body_without_a_length_is_cut_off_at_the_limit(cluster_64k: EchoCluster) -> None:
    """The answer comes while the client still sends: nothing waits for the end of the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(cluster_64k.url.rsplit(":", 1)[1]))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(MAX_BODY // 4096 + 1):
        writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
    async with asyncio.timeout(10):
        assert b" 413 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic c2VjcmV0", "secret", "Bearer sécret"])
async def test_a_wrong_key_is_refused_and_probes_need_none(tokenizer: Tokenizer, header: str | None) -> None:
    async with echo_cluster(tokenizer, config=AppConfig(api_key="secret")) as cluster:
        headers = {} if header is None else {"authorization": header.encode("latin-1")}
        for request in (("POST", COMPLETIONS), ("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/echo")):
            response = await cluster.client.request(*request, headers=headers)
            assert_error(response, 401, None, "API key")
            assert response.headers["www-authenticate"] == "Bearer"
        good = await cluster.client.post(COMPLETIONS, content=completion(), headers={"authorization": "bearer secret"})
        assert good.status_code == 200
        for path in ("/health", "/live", "/ready", "/metrics"):
            assert (await cluster.client.get(path)).status_code == 200


async def test_what_an_instance_refuses_reaches_the_client(cluster: EchoCluster) -> None:
    """The instance has 1024 blocks of 16; its context here is smaller, so an inner limit has to be provoked."""
    cluster.first._batcher.config = type(cluster.first._batcher.config)(
        max_running=64, token_budget=512, block_size=16, num_blocks=2, max_model_len=CONTEXT, max_waiting=512
    )
    response = await cluster.complete("abc", max_tokens=100)
    assert_error(response, 400, None, "KV blocks")
