"""``python -m benchmarks.scheduling.record``: run texts through the bundled model, keep what its gate chose.

Six kinds of text: four that the model was trained on (other documents, held out), and two that it never saw, Python and
Markdown tables. The gate's choices only are kept, a few bytes per token, so that the benchmark needs no model.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.scheduling.routing import RECORDED, REPOSITORY, pack

from janus.model.attention_model import AttentionModel
from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.model.kv_cache import PagedKVCache
from janus.text.tokenizer import Tokenizer

_MODEL = REPOSITORY / "models" / "janus-tiny"
_HELD_OUT = REPOSITORY / "models" / "train" / "heldout"
_WINDOW = 512
_WINDOWS = 6
_BLOCK_SIZE = 16


def texts() -> dict[str, str]:
    """Return the kinds of text."""
    spoken = [part for part in (_HELD_OUT / "novels.txt").read_text().split("\n\n") if part.startswith('"')]
    return {
        "speeches": (_HELD_OUT / "presidents.txt").read_text(),
        "scripture": (_HELD_OUT / "bible.txt").read_text(),
        "narrative": (_HELD_OUT / "whaling.txt").read_text(),
        "dialogue": "\n\n".join(spoken),
        "code": "\n\n".join(path.read_text() for path in sorted((REPOSITORY / "src/janus/core").glob("*.py"))),
        "tables": "\n".join(_table_rows()),
    }


def _table_rows() -> Iterator[str]:
    for path in sorted([*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "models").rglob("*.md")]):
        yield from re.findall(r"^(?:\||- |\d+\. ).*$", path.read_text(), flags=re.MULTILINE)


class Recorder:
    """The bundled model, whole, in one process."""

    def __init__(self, path: Path) -> None:
        checkpoint = Checkpoint.open(path)
        self._config = config = checkpoint.config
        self._model = AttentionModel.load(checkpoint, config, torch.float32)
        self._bank = ExpertBank(config, config.num_moe_layers, config.num_experts, torch.float32)
        for layer in range(config.num_moe_layers):
            for expert in range(config.num_experts):
                self._bank.load(checkpoint, layer, expert, expert)
        self._blocks = _WINDOW // _BLOCK_SIZE
        self._kv = PagedKVCache(config, self._blocks, _BLOCK_SIZE, torch.float32)

    def window(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return int32[T, L, K], the experts of every token of one text of at most 512 tokens."""
        tokens = len(token_ids)
        batch = StepBatch(
            token_ids=token_ids,
            positions=np.arange(tokens),
            slot_mapping=np.arange(tokens),
            query_start=np.array([0, tokens]),
            context_len=np.array([tokens]),
            block_tables=np.arange(self._blocks)[None],
            sample_rows=np.array([tokens - 1]),
        )
        h = self._model.embed(batch)
        chosen = []
        for layer in range(self._config.num_layers):
            h, x = self._model.attention(layer, h, batch, self._kv)
            weights, ids = self._model.route(layer, x)
            chosen.append(ids.numpy().copy())
            h = h + self._bank.forward(layer, x, ids, weights)
        return np.stack(chosen, axis=1)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling.record", description=__doc__)
    parser.add_argument("--output", type=Path, default=RECORDED)
    given = parser.parse_args()
    tokenizer, recorder = Tokenizer.load(_MODEL), Recorder(_MODEL)
    found = {}
    with torch.inference_mode():
        for name, text in texts().items():
            ids = np.array(tokenizer.encode(text), dtype=np.int64)
            windows = ids[: len(ids) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
            if len(windows) < _WINDOWS:
                raise ValueError(f"{name}: {len(ids)} tokens, {_WINDOW * _WINDOWS} are needed")
            # From all over the text.
            chosen = windows[np.linspace(0, len(windows) - 1, _WINDOWS).round().astype(int)]
            found[name] = pack(np.concatenate([recorder.window(window) for window in chosen]))
            print(f"{name}: {found[name].shape[0]} of {len(ids)} tokens", file=sys.stderr)
    np.savez_compressed(given.output, **found)  # type: ignore[arg-type]  # the stub takes names for flags
    print(f"written: {given.output} ({given.output.stat().st_size} bytes)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
