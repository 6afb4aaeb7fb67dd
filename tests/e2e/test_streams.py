"""Streams over HTTP: text comes as it is generated, in whole characters; a client that leaves ends the work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.e2e.cases import NAMED, TORN, prompts_for, spec_of
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster
from tests.e2e.lab import Lab
from tests.e2e.oracle import NEW_TOKENS, Expected
from tests.e2e.waiting import until_async

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

_LONG = 400


@pytest.fixture(params=[NAMED, TORN], ids=["named", "torn"])
def served(request: pytest.FixtureRequest, lab: Lab) -> tuple[Cluster, list[Expected]]:
    """A cluster, and eight prompts with their answers."""
    name, topology = request.param
    return lab.clusters.get(spec_of(lab.model_dir(name), topology)), prompts_for(lab.oracle(name))[:8]


@pytest.fixture
def named(lab: Lab) -> tuple[Cluster, list[Expected]]:
    name, topology = NAMED
    return lab.clusters.get(spec_of(lab.model_dir(name), topology)), prompts_for(lab.oracle(name))[:8]


async def test_deltas_add_up_to_the_whole_text(
    served: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = served
    client = connect(cluster)
    usage = {"stream_options": {"include_usage": True}}
    streams = await asyncio.gather(*(client.stream(each.prompt, logprobs=5, **usage) for each in expected))
    wholes = await asyncio.gather(*(client.complete(each.prompt, logprobs=5) for each in expected))
    for stream, whole, each in zip(streams, wholes, expected, strict=True):
        assert (stream.status, stream.error, stream.finish_reason) == (200, None, "length")
        assert "".join(stream.deltas) == whole.text == each.text
        assert len(stream.deltas) > NEW_TOKENS // 2, "it came in a few large pieces"
        assert stream.usage == whole.usage
        assert stream.logprobs["tokens"] == whole.logprobs["tokens"]
        assert stream.logprobs["token_logprobs"] == pytest.approx(whole.logprobs["token_logprobs"], abs=1e-4)


async def test_no_character_is_ever_split(lab: Lab, connect: Callable[[Cluster], Client]) -> None:
    name, topology = TORN
    expected = prompts_for(lab.oracle(name))[:8]
    client = connect(lab.clusters.get(spec_of(lab.model_dir(name), topology)))
    streams = await asyncio.gather(*(client.stream(each.prompt) for each in expected))
    for stream, each in zip(streams, expected, strict=True):
        assert stream.text == each.text
        spoken = [delta for delta in stream.deltas if delta]
        # The text begins and ends inside a character; everything between is whole, and was held back until it was.
        assert each.text.strip("\ufffd") == "".join(spoken).strip("\ufffd")
        assert not [delta for delta in spoken[1:-1] if "\ufffd" in delta]
        assert len(spoken) > NEW_TOKENS // 2


async def test_the_first_text_comes_before_the_last_token(
    named: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = named
    before = cluster.metrics("attention", "janus_attention_tokens_total")
    events = connect(cluster).events(expected[0].prompt, max_tokens=_LONG)
    first = await anext(events)
    sampled = cluster.metrics("attention", "janus_attention_tokens_total") - before
    assert first["choices"][0]["text"]
    assert sampled < _LONG, "the whole answer had been generated when its first text came"
    assert len([event async for event in events]) > _LONG // 2


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_stop_strings_never_leak(
    streamed: bool, served: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = served
    ask = getattr(connect(cluster), "stream" if streamed else "complete")
    cuts = []
    for each in expected:
        middle = len(each.text) // 2
        # Spans several tokens and ends within one; beside it, one that begins like it and never comes.
        stop = each.text[middle : middle + 9]
        cuts.append((each, stop, each.text.index(stop)))
    answers = await asyncio.gather(
        *(ask(each.prompt, stop=[stop[:-1] + "\N{SNOWMAN}", stop]) for each, stop, _ in cuts)
    )
    for answer, (each, stop, at) in zip(answers, cuts, strict=True):
        assert answer.text == each.text[:at]
        assert answer.finish_reason == "stop"
        assert stop not in answer.text
    cluster.wait_idle()


async def test_what_only_begins_like_a_stop_string_is_not_lost(
    served: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = served
    client = connect(cluster)
    # The last characters of the text begin a stop string that never comes to its end: held back, then given out.
    answers = await asyncio.gather(
        *(client.stream(each.prompt, stop=[each.text[-6:] + "\N{SNOWMAN}"]) for each in expected)
    )
    assert [answer.text for answer in answers] == [each.text for each in expected]
    assert {answer.finish_reason for answer in answers} == {"length"}


async def test_a_client_that_goes_away_ends_the_work_everywhere(
    named: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = named
    client = connect(cluster)

    async def leave(each: Expected, after: int) -> None:
        events = client.events(each.prompt, max_tokens=_LONG)
        for _ in range(after):
            await anext(events)
        await events.aclose()

    before = cluster.metrics("attention", "janus_attention_tokens_total")
    async with asyncio.TaskGroup() as group:
        for index, each in enumerate(expected):
            group.create_task(leave(each, after=1 + index))
    cluster.wait_idle()
    sampled = cluster.metrics("attention", "janus_attention_tokens_total") - before
    assert sampled < len(expected) * _LONG, "the answers were generated to their ends"


async def test_a_client_that_goes_away_without_a_stream_ends_the_work_too(
    named: tuple[Cluster, list[Expected]], connect: Callable[[Cluster], Client]
) -> None:
    cluster, expected = named
    client = connect(cluster)
    started = cluster.metrics("attention", "janus_attention_tokens_total")
    tasks = [asyncio.create_task(client.complete(each.prompt, max_tokens=_LONG)) for each in expected]

    async def begun() -> bool:
        return cluster.metrics("attention", "janus_attention_tokens_total") > started

    await until_async(begun, "the answers have begun")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    cluster.wait_idle()
    sampled = cluster.metrics("attention", "janus_attention_tokens_total") - started
    assert sampled < len(expected) * _LONG
