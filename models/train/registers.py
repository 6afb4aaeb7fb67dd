"""The four kinds of text that janus-tiny is trained on, and where the pipeline keeps its files."""

from pathlib import Path

REGISTERS = ("presidents", "novels", "bible", "whaling")

DEFAULT_WORKDIR = Path("/tmp/janus-train")

END_OF_TEXT = "<|endoftext|>"
"""Opens and closes every document; the model's bos and eos token."""
