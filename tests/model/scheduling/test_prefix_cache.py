"""What is found again, what is shared, what is copied, and what goes first."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.scheduling.block_pool import BlockPool
from model.scheduling.prefix_cache import PrefixCache, block_hash, root_hash
from tests.model.scheduling.drive import BLOCK, Drive

TEXT = list(range(40))


def keys(number: int, salt: str = "") -> list[bytes]:
    chain = [root_hash(salt)]
    for n in range(number):
        chain.append(block_hash(chain[-1], [n] * BLOCK))
    return chain[1:]


def test_keys_are_a_sha256_chain_over_a_fixed_encoding() -> None:
    root = hashlib.sha256(b"\0salt").digest()
    first = hashlib.sha256(b"\1" + root + struct.pack("<4I", 1, 2, 3, 2**32 - 1)).digest()
    assert root_hash("salt") == root
    assert block_hash(root, [1, 2, 3, 2**32 - 1]) == first


@given(st.lists(st.lists(st.integers(0, 300), min_size=4, max_size=4), min_size=2, unique_by=tuple))
def test_different_tokens_parents_and_salts_have_different_keys(blocks: list[list[int]]) -> None:
    roots = [root_hash(salt) for salt in ("", "a", "b")]
    found = {block_hash(root, block) for root in roots for block in blocks}
    assert len(found) == len(roots) * len(blocks)


def test_a_salt_cannot_pass_for_the_tokens_of_another_chain() -> None:
    parent = root_hash("")
    salt = parent.decode("latin-1") + struct.pack("<4I", 1, 2, 3, 4).decode()
    assert root_hash(salt) != block_hash(parent, [1, 2, 3, 4])


def test_the_longest_beginning_is_found_and_only_a_beginning() -> None:
    pool = BlockPool(10, BLOCK)
    cache = PrefixCache(pool)
    blocks, chain = pool.allocate(4), keys(4)
    for index in (0, 1, 3):  # the one before 3 is not there
        cache.add(chain, index, blocks[index])
    assert cache.find(chain) == blocks[:2]
    cache.add(chain, 2, blocks[2])
    assert cache.find(chain) == blocks[:3]
    assert cache.find(keys(4, "other salt")) == []
    cache.add(chain, 1, 9)
    assert cache.find(chain) == blocks[:3], "the first one stays"


def test_forgetting_a_block_forgets_all_that_follow_it() -> None:
    pool = BlockPool(10, BLOCK)
    cache = PrefixCache(pool)
    blocks, chain = pool.allocate(4), keys(4)
    for index, block in enumerate(blocks):
        cache.add(chain, index, block)
    pool.release(reversed(blocks))
    cache.forget(blocks[1])
    assert cache.find(chain) == blocks[:1]
    assert sorted(pool.allocate(10)) == list(range(10)), "what was forgotten can be had"


def test_a_prompt_that_was_served_is_found_but_for_its_last_tokens() -> None:
    drive = Drive()
    drive.add("first", TEXT[:11], max_tokens=2)
    drive.finish()
    assert drive.pool.num_used == 0
    drive.add("second", TEXT[:30], max_tokens=2)
    (chunk,) = drive.step()
    assert (chunk.start, chunk.count) == (8, 22)


def test_outputs_are_found_too() -> None:
    drive = Drive()
    first = drive.add("first", TEXT[:5], max_tokens=9)
    drive.finish()
    drive.add("second", [*first.token_ids, 1, 2, 3], max_tokens=1)
    (chunk,) = drive.step()
    assert chunk.start == 12


def test_a_prompt_found_whole_computes_one_token_in_a_block_of_its_own() -> None:
    drive = Drive()
    drive.add("first", TEXT[:8], max_tokens=1)
    drive.finish()
    second = drive.add("second", TEXT[:8], max_tokens=6)
    third = drive.add("third", TEXT[:8], max_tokens=6)
    chunks = drive.step()
    assert [(chunk.start, chunk.count) for chunk in chunks] == [(7, 1), (7, 1)]
    assert second.block_table[0] == third.block_table[0]
    assert second.block_table[1] != third.block_table[1]
    drive.finish()
    assert second.token_ids == third.token_ids


def test_a_pool_that_a_prompt_fills_serves_it_again_when_it_is_found_whole() -> None:
    drive = Drive(blocks=4)
    for id in ("first", "second"):
        drive.add(id, TEXT[: 3 * BLOCK], max_tokens=BLOCK)
        drive.finish()
    assert drive.done == ["first", "second"]


def test_blocks_are_shared_while_the_first_still_runs() -> None:
    drive = Drive(budget=6)
    first = drive.add("first", TEXT[:20], max_tokens=3)
    drive.step()
    drive.step()
    second = drive.add("second", TEXT[:12] + [99] * 8, max_tokens=3)
    while not second.num_computed:
        drive.step()
    assert second.num_cached == 12
    assert second.block_table[:3] == first.block_table[:3]
    used = drive.pool.num_used
    drive.scheduler.remove("first")
    assert drive.pool.num_used == used - 2, "what the second one shares is still held"
    drive.finish()
    drive.check_tokens(second)


@pytest.mark.parametrize("budget", [8, 30, 100])
def test_prompts_that_come_together_are_computed_once(budget: int) -> None:
    drive = Drive(budget=budget)
    for id in ("a", "b", "c"):
        drive.add(id, TEXT[:24], max_tokens=3)
    drive.finish()
    assert sorted(drive.done) == ["a", "b", "c"]
    assert drive.computed == 24 + 3 * 3 - 1, "each of the others computes one token of the prompt"


def test_who_waits_for_anothers_blocks_goes_on_alone_when_that_one_leaves() -> None:
    drive = Drive(budget=30)
    drive.add("first", TEXT[:24], max_tokens=3)
    drive.add("second", TEXT[:20] + [99] * 4, max_tokens=3)
    (chunk,) = drive.step()
    assert chunk.sequence.id == "first"
    drive.scheduler.remove("first")
    (chunk,) = drive.step()
    assert (chunk.sequence.id, chunk.start) == ("second", 20)
    drive.finish()
    assert drive.done == ["second"]


@pytest.mark.parametrize(("salt", "start"), [("a", 8), ("b", 0), ("", 0)])
def test_only_the_same_salt_shares(salt: str, start: int) -> None:
    drive = Drive()
    drive.add("first", TEXT[:11], salt="a")
    drive.finish()
    drive.add("second", TEXT[:11], salt=salt)
    (chunk,) = drive.step()
    assert chunk.start == start


def test_nothing_is_found_when_it_is_switched_off() -> None:
    drive = Drive(prefix_cache=False)
    for id in ("first", "second"):
        drive.add(id, TEXT[:20])
        (chunk,) = drive.step()
        assert chunk.start == 0


def test_untouched_blocks_go_first_and_then_the_least_recently_used() -> None:
    drive = Drive(blocks=8)
    for id, token in [("old", 100), ("new", 200)]:
        drive.add(id, [token] * (2 * BLOCK + 1))
        drive.finish()
    drive.add("old again", [100] * (2 * BLOCK + 1))
    drive.finish()
    drive.add("other", [300] * (4 * BLOCK + 1))
    drive.finish()
    assert starts(drive, [100] * 9, [200] * 9) == [8, 4], "one block was needed, the last of 'new'"


def test_what_follows_goes_before_what_it_follows_on() -> None:
    drive = Drive(blocks=5)
    drive.add("long", TEXT[: 4 * BLOCK + 1])
    drive.finish()
    left = []
    for number in range(1, 5):
        drive.add(f"{number}", [100 + number] * (number * BLOCK + 1))
        drive.finish()
        left.append(len(drive.scheduler._find(drive.add("probe", TEXT[:17]))))
        drive.scheduler.remove("probe")
    assert left == [3, 1, 0, 0]


def starts(drive: Drive, *prompts: list[int]) -> list[int]:
    """Where a request for each prompt would begin, by what is found now."""
    found = []
    for prompt in prompts:
        request = drive.add("probe", prompt)
        found.append(len(drive.scheduler._find(request)) * BLOCK)
        drive.scheduler.remove("probe")
    return found


def test_nothing_that_a_failed_row_has_touched_is_found_again() -> None:
    drive = Drive()
    drive.add("before", TEXT[:8])
    drive.finish()
    failed = drive.add("failed", TEXT[:20], max_tokens=8)
    drive.step()
    table = list(failed.block_table)
    child = drive.add("child", TEXT[:20] + [7] * 9, max_tokens=2)
    drive.step()
    assert child.num_cached == 20
    drive.fail("failed")
    assert not any(drive.findable(block) for block in (*table, *child.block_table))
    drive.scheduler.remove("child")
    assert starts(drive, TEXT[:29]) == [0]


def test_what_follows_a_forgotten_block_is_not_added_later() -> None:
    drive = Drive()
    drive.add("one", TEXT[:12], max_tokens=9)
    other = drive.add("other", TEXT[:12], max_tokens=20)
    drive.step()
    drive.step()
    drive.fail("one")
    drive.finish()
    assert drive.done == ["other"]
    assert starts(drive, other.token_ids) == [0]
