"""The tokenizer and the cluster that the gateway's tests run against."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from janus.text import Tokenizer
from tests.gateway.cluster import EchoCluster, echo_cluster
from tests.text.builders import byte_level, save

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if terse is defined and terse %}briefly: {% endif %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("echo")
    return Tokenizer.load(save(byte_level(), directory, eos_token="<|endoftext|>", chat_template=CHAT_TEMPLATE))


@pytest.fixture
async def cluster(tokenizer: Tokenizer) -> AsyncIterator[EchoCluster]:
    async with echo_cluster(tokenizer) as running:
        yield running
