"""The frames of a bundle: rows of all members for one destination, and each member's part of what comes back."""

from __future__ import annotations

import torch

from janus.exchange.bundle import Batch, Bundle
from janus.exchange.layout import UngatedLayout, dispatch_layout
from janus.exchange.packing import Answer, Numbering, Packing, Rows
from janus.transport.contract import OutFrame
from janus.transport.frame import Flags
from janus.transport.link import Link


def fill(
    bundle: Bundle, link: Link, numbering: Numbering, total: int, *, packing: Packing, dtype: torch.dtype
) -> tuple[OutFrame, int, int]:
    """Return a frame with everybody's rows for a destination, ``total`` of them, its size, and its K.

    Notes in each batch which of its rows are in it.
    """
    hidden, top_k, at = bundle.key[5], bundle.key[3], 0
    if bundle.key[4] & Flags.EGATE:
        ungated = UngatedLayout(total, hidden, len(bundle.batches), dtype)
        frame = link.allocate(ungated.nbytes)
        x, counts = ungated.views(frame.payload)
        for index, batch in enumerate(bundle.batches):
            rows = batch.total
            assert batch.x_TH is not None
            x[at : at + rows].copy_(batch.x_TH)
            counts[index] = rows
            batch.rows.append(None)
            at += rows
        ungated.left_out(frame.payload)[0] = bundle.plan.left_out
        return frame, ungated.nbytes, len(bundle.batches)
    layout = dispatch_layout(total, hidden, top_k, dtype)
    frame = link.allocate(layout.nbytes)
    for batch in bundle.batches:
        count = batch.counts[-1]
        rows_index: Rows = None
        if count:
            assert batch.routed is not None
            rows_index = packing.pack(frame, layout, batch.routed, to=numbering, count=count, at=at)
        batch.rows.append(rows_index)
        at += count
    return frame, layout.nbytes, top_k


def answers_for(batch: Batch, bundle: Bundle, offsets: list[int], *, itemsize: int) -> tuple[list[Answer], list[int]]:
    """Return a member's rows of each answer, and the node of each; moves ``offsets`` past them."""
    row_nbytes = bundle.key[5] * itemsize
    answers, groups = [], []
    for index, frame in enumerate(bundle.answers):
        count = batch.counts[index]
        if frame is None or not count:
            continue
        start = offsets[index] * row_nbytes
        offsets[index] += count
        answers.append(Answer(frame.payload, frame.address + start, count, batch.rows[index], start))
        groups.append(bundle.plan.destinations[index].group)
    return answers, groups
