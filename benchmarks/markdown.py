"""Tables in the documents: written by benchmarks, between markers, never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows``, the heading first, as a Markdown table that reads well on a terminal too."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_into(document: Path, text: str, *, result: str) -> None:
    """Replace what ``document`` has between the markers of the file ``result``.

    Raises:
        ValueError: the document has no such markers.
    """
    first, last = f"<!-- {result}: begin -->", f"<!-- {result}: end -->"
    content = document.read_text()
    head, begin, rest = content.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{document} has no line {first} with a line {last} below it")
    document.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}")
