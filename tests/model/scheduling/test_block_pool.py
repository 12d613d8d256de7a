"""The books of the pool: who holds what, what is free, and in which order it is handed out."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.scheduling.block_pool import BlockPool

TOTAL = 12


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, rest, wake and release; the pool must know what they know."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL, 4)
        self.pool.on_evict = self.evict
        self.active: list[list[int]] = []
        self.idle: list[list[int]] = []
        self.kept: set[int] = set()

    def evict(self, block: int) -> None:
        assert not self.holders()[block], "only what nobody holds is evicted"
        self.kept.discard(block)
        self.pool.discard(block)

    def holders(self) -> Counter[int]:
        return Counter(block for table in (*self.active, *self.idle) for block in table)

    @rule(count=st.integers(0, TOTAL))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            with pytest.raises(MemoryError):
                self.pool.allocate(count)
            return
        held = self.holders()
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert not any(held[block] or block in self.kept for block in blocks)
        self.active.append(blocks)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        if table := data.draw(st.sampled_from(self.active)):
            block = data.draw(st.sampled_from(table))
            self.kept.add(block)
            self.pool.keep(block)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.share([block])
        self.active.append([block])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.kept)))
        self.kept.discard(block)
        self.pool.discard(block)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.active.pop(data.draw(st.integers(0, len(self.active) - 1)))
        self.pool.release(table)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def mark_idle(self, data: st.DataObject) -> None:
        table = self.active.pop(data.draw(st.integers(0, len(self.active) - 1)))
        self.pool.mark_idle(table)
        self.idle.append(table)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def mark_active(self, data: st.DataObject) -> None:
        table = self.idle.pop(data.draw(st.integers(0, len(self.idle) - 1)))
        self.pool.mark_active(table)
        self.active.append(table)

    @invariant()
    def the_books_are_right(self) -> None:
        holders = self.holders()
        active = {block for table in self.active for block in table}
        assert self.pool.num_used == len(holders) == TOTAL - self.pool.num_free
        assert self.pool.num_active == len(active) == TOTAL - self.pool.num_reclaimable
        for block in range(TOTAL):
            assert self.pool.is_active(block) == (block in active)
            assert self.pool.is_shared(block) == (block in self.kept or holders[block] > 1)

    def teardown(self) -> None:
        for table in self.idle:
            self.pool.mark_active(table)
        for table in (*self.active, *self.idle):
            self.pool.release(table)
        self.active, self.idle = [], []
        assert sorted(self.pool.allocate(TOTAL)) == list(range(TOTAL))


PoolMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def test_asking_for_too_many_names_both_counts_and_takes_nothing() -> None:
    pool = BlockPool(3, 4)
    pool.allocate(1)
    with pytest.raises(MemoryError, match=r"^5 KV blocks wanted, 2 are free$"):
        pool.allocate(5)
    assert pool.num_free == 2


def test_memory_is_touched_late() -> None:
    """Released blocks are used again before new ones, new ones before any that is kept."""
    pool = BlockPool(4, 4)
    first, kept = pool.allocate(2)
    pool.keep(kept)
    pool.release([first, kept])
    assert pool.allocate(1) == [first]
    assert pool.allocate(2) == [2, 3]
    assert pool.allocate(1) == [kept]


@pytest.mark.parametrize("method", ["release", "mark_idle", "mark_active"])
def test_what_nobody_holds_cannot_be_given_back(method: str) -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError, match="has no"):
        getattr(pool, method)([block])


@given(num_tokens=st.integers(0, 10_000), block_size=st.integers(1, 64))
def test_blocks_for_is_the_fewest_that_hold_the_tokens(num_tokens: int, block_size: int) -> None:
    blocks = BlockPool(1, block_size).blocks_for(num_tokens)
    assert blocks * block_size >= num_tokens
    assert blocks == 0 or (blocks - 1) * block_size < num_tokens
