"""Memory for weights: pieces are handed out again, and never while a tensor lies in them."""

from __future__ import annotations

import threading

import torch

from janus.model.memory import Reused

COUNT = 3 << 20


def test_memory_is_reused_once_no_tensor_and_no_view_lies_in_it() -> None:
    memory = Reused()
    first = memory.take(COUNT)
    address, view = first.data_ptr(), first.view(torch.float32)[5:]
    assert address % (2 << 20) == 0
    del first
    second = memory.take(COUNT)
    assert second.data_ptr() != address, "a view is still there"
    del view
    third = memory.take(COUNT - 1)
    assert third.data_ptr() == address
    assert len(third) == COUNT - 1
    assert memory.take(COUNT + (1 << 20)).data_ptr() not in (address, second.data_ptr()), "too small"


def test_what_is_kept_is_bounded() -> None:
    memory = Reused(most=2)
    held = [memory.take(COUNT) for _ in range(5)]
    assert len({each.data_ptr() for each in held}) == 5
    assert len(memory._pieces) == 2
    for number, each in enumerate(held):
        each.fill_(number)
    assert [int(each[7]) for each in held] == list(range(5)), "what is not kept is its tensors' own"


def test_threads_get_pieces_of_their_own() -> None:
    memory, wrong = Reused(), list[int]()

    def work(mark: int) -> None:
        for _ in range(50):
            piece = memory.take(1 << 12).fill_(mark)
            if not bool((piece == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
