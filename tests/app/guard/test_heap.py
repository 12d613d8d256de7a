"""Memory that bodies have left free is given back, once for many of them."""

import asyncio

import pytest

from app.guard import heap


async def test_it_is_trimmed_once_for_many_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_DELAY", 0.0)
    trimmed = asyncio.Queue[None]()
    one = heap.Heap(lambda: trimmed.put_nowait(None))
    for _ in range(3):
        for _ in range(16):  # the last two come before it is done
            one.freed(heap._EVERY // 14)
        await trimmed.get()
        assert trimmed.empty()
    one.freed(heap._EVERY - 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert trimmed.empty()
    one.freed(1)
    await trimmed.get()


def test_the_libraries_own_is_called_without_a_fault() -> None:
    heap.trim()
