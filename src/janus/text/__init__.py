"""Between text and token ids: tokenizer, incremental detokenizer, chat template, stop strings."""

from janus.text.chat_template import ChatTemplate
from janus.text.detokenizer import Detokenizer
from janus.text.stop import StopMatcher
from janus.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopMatcher", "Tokenizer"]
