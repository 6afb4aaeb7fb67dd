"""Train the 4,096-entry byte-level BPE tokenizer and encode the corpus with it."""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .registers import DEFAULT_WORKDIR, END_OF_TEXT, REGISTERS

VOCAB_SIZE = 4096


def read_documents(path: Path) -> list[str]:
    with path.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents in one uint16 row, each preceded by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    rows = [[end, *encoding.ids] for encoding in tokenizer.encode_batch(documents)]
    return np.concatenate([np.array(row, dtype=np.uint16) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=DEFAULT_WORKDIR)
    workdir: Path = parser.parse_args().workdir

    corpus = workdir / "corpus"
    train = {register: read_documents(corpus / f"{register}.train.jsonl") for register in REGISTERS}
    tokenizer = train_tokenizer([document for documents in train.values() for document in documents])
    tokenizer.save(str(workdir / "tokenizer.json"))
    for register in REGISTERS:
        heldout = encode(tokenizer, read_documents(corpus / f"{register}.heldout.jsonl"))
        np.save(workdir / f"{register}.heldout.npy", heldout)
        tokens = encode(tokenizer, train[register])
        np.save(workdir / f"{register}.train.npy", tokens)
        print(f"{register:10} {len(tokens):9,} training tokens {len(heldout):7,} held out")


if __name__ == "__main__":
    main()
