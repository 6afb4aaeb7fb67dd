"""The tokenizers of ``builders``, as the library's and as ours."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from janus.text import Tokenizer as JanusTokenizer
from tests.text.builders import FAMILIES, byte_level, save


@pytest.fixture(scope="session", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, JanusTokenizer]:
    """(the library's tokenizer, ours loaded from its file)."""
    reference = FAMILIES[request.param]()
    return reference, JanusTokenizer.load(save(reference, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> JanusTokenizer:
    return JanusTokenizer.load(save(byte_level(), tmp_path_factory.mktemp("bytes")))
