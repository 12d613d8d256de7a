"""The pool hands every block to one owner at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.block_pool import BlockPool

Moves = list[tuple[bool, int]]


@given(
    total=st.integers(0, 20),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=40),
)
def test_no_block_is_handed_out_twice_and_none_is_lost(total: int, moves: Moves) -> None:
    pool = BlockPool(total, 4)
    owned: list[list[int]] = []
    for takes, number in moves:
        if takes and number <= pool.num_free:
            owned.append(pool.allocate(number))
            assert len(owned[-1]) == number
        elif not takes and owned:
            pool.release(owned.pop(number % len(owned)))
        held = [block for blocks in owned for block in blocks]
        assert len(set(held)) == len(held) == pool.num_used
        assert set(held) <= set(range(total))
        assert pool.num_free + pool.num_used == total
    for blocks in owned:
        pool.release(blocks)
    assert sorted(pool.allocate(total)) == list(range(total))


def test_asking_for_too_many_names_both_counts_and_takes_nothing() -> None:
    pool = BlockPool(3, 4)
    pool.allocate(1)
    with pytest.raises(MemoryError, match=r"^5 KV blocks wanted, 2 are free$"):
        pool.allocate(5)
    assert pool.num_free == 2


@given(num_tokens=st.integers(0, 10_000), block_size=st.integers(1, 64))
def test_blocks_for_is_the_fewest_that_hold_the_tokens(num_tokens: int, block_size: int) -> None:
    blocks = BlockPool(1, block_size).blocks_for(num_tokens)
    assert blocks * block_size >= num_tokens
    assert blocks == 0 or (blocks - 1) * block_size < num_tokens
