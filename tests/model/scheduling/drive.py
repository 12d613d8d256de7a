"""A scheduler with a made-up model: no tensors, no time, and a cache that knows what is in it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from model.protocol.sampling_params import SamplingParams
from model.scheduling.block_pool import BlockPool
from model.scheduling.prefill_budget import PrefillBudget
from model.scheduling.scheduler import Chunk, Scheduler, SchedulerOutput
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer

BLOCK = 4
ALPHABET = 50


def next_token(token_ids: list[int]) -> int:
    """What the made-up model says: the same after the same tokens."""
    return (token_ids[-1] * 7 + len(token_ids)) % ALPHABET


@dataclass
class Drive:
    """Plays the engine, and checks every plan before, and every block table after it is run.

    `memory` has for each token slot a hash of the salt and all the tokens up to the one whose key
    and value are there: a sequence may only read slots that were written for its own tokens. With
    `paced`, a decode takes 20 ms and a prompt token 1 ms.
    """

    blocks: int = 100
    seats: int = 100
    budget: int = 1000
    prefix_cache: bool = True
    paced: bool = False
    sequences: dict[str, Sequence] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    computed: int = 0
    poisoned: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks, BLOCK)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.seats,
            max_step_tokens=self.budget,
            prefix_cache=self.prefix_cache,
        )
        self.pace = PrefillBudget() if self.paced else None
        self.memory: list[int | None] = [None] * (self.blocks * BLOCK)
        self._prefixes: dict[str, list[int]] = {}

    def add(
        self,
        id: str,
        prompt: int | list[int],
        max_tokens: int = 1,
        priority: int = 0,
        salt: str = "",
        client: str = "",
    ) -> Sequence:
        """A prompt of so many tokens shares none with any other's."""
        if isinstance(prompt, int):
            prompt = [1000 * (len(self.sequences) + 1) + n for n in range(prompt)]
        params = SamplingParams(max_tokens=max_tokens, seed=0)
        detokenizer = cast(Detokenizer, None)
        sequence = Sequence(
            token_ids=list(prompt),
            params=params,
            id=id,
            detokenizer=detokenizer,
            arrived=0.0,
            priority=priority,
            salt=salt,
            client=client,
        )
        self.sequences[id] = sequence
        self._prefixes[id] = [hash(salt)]
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        running = list(self.scheduler.running.values())
        decoding = [one for one in running if one.num_pending == 1]
        plan = self.scheduler.schedule(self.pace)
        self.check_plan(plan, running, decoding)
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.num_logits]
        self.run(plan)
        self.scheduler.computed(plan.chunks)
        if self.pace and plan.chunks:
            seconds = 0.02 * plan.num_decoding + 0.001 * plan.num_prefill_tokens
            self.pace.observe(plan.num_decoding, plan.num_prefill_tokens, seconds)
        for one in sampling:
            one.token_ids.append(next_token(one.token_ids))
            if one.num_output == one.params.max_tokens:
                self.scheduler.remove(one.id)
                self.done.append(one.id)
        self.check_blocks()
        return list(plan.chunks)

    def run(self, plan: SchedulerOutput) -> None:
        """As the runner does: copy, write and read slots."""
        assert len({target for _, target in plan.copies}) == len(plan.copies)
        for source, target in plan.copies:
            assert not self.findable(target)
            assert source not in self.poisoned or len(self.poisoned) == self.blocks
            self.poisoned.discard(target)
            self.memory[target * BLOCK : (target + 1) * BLOCK] = self.memory[
                source * BLOCK : (source + 1) * BLOCK
            ]
        for chunk in plan.chunks:
            one = chunk.sequence
            if one.id not in self.admitted:
                self.admitted.append(one.id)
            assert not self.poisoned.intersection(one.block_table), "one NaN would spoil it too"
            prefixes = self.prefixes(one)
            for position in range(chunk.start, chunk.start + chunk.count):
                self.memory[self.slot(one, position)] = prefixes[position]
            self.computed += chunk.count
        for chunk in plan.chunks:
            self.check_visible(chunk.sequence, chunk.start + chunk.count)

    def check_visible(self, one: Sequence, end: int) -> None:
        read = [self.memory[self.slot(one, position)] for position in range(end)]
        assert read == self.prefixes(one)[:end], "it reads what is not its own"

    def prefixes(self, one: Sequence) -> list[int]:
        """For each position the hash of the salt and of all tokens up to it."""
        hashes = self._prefixes[one.id]
        for token in one.token_ids[len(hashes) - 1 :]:
            hashes.append(hash((hashes[-1], token)))
        return hashes[1:]

    def slot(self, one: Sequence, position: int) -> int:
        return one.block_table[position // BLOCK] * BLOCK + position % BLOCK

    def findable(self, block: int) -> bool:
        return block in self.pool._kept

    def fail(self, id: str) -> None:
        """Its row was no good: what only it holds is poisoned, and must never be read again."""
        table = self.sequences[id].block_table
        self.scheduler.fail(id)
        held = self.holders()
        for block in table:
            assert not self.findable(block)
            if not held[block]:
                self.poisoned.add(block)
                self.memory[block * BLOCK : (block + 1) * BLOCK] = [None] * BLOCK

    def holders(self) -> Counter[int]:
        return Counter(block for one in self.sequences.values() for block in one.block_table)

    def check_plan(
        self, plan: SchedulerOutput, ran: list[Sequence], decoding: list[Sequence]
    ) -> None:
        """It is a fair step after one in which `ran` were running, some of them decoding."""
        chunks, scheduler = plan.chunks, self.scheduler
        assert len(scheduler.running) <= self.seats
        assert sum(chunk.count for chunk in chunks) <= self.budget
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        prefills = [chunk.sequence not in decoding for chunk in chunks]
        assert prefills == sorted(prefills), "decodes come before prefills"
        assert plan.num_decoding == prefills.count(False)
        assert all(chunk.count == 1 for chunk in chunks[: plan.num_decoding])
        assert plan.num_decoding + plan.num_prefill_tokens == sum(c.count for c in chunks)
        joins = [chunk.sequence not in ran for chunk in chunks]
        assert joins == sorted(joins), "what runs comes before what joins"
        held = self.holders()
        for chunk in chunks:
            one, end = chunk.sequence, chunk.start + chunk.count
            assert scheduler.running[one.id] is one
            assert chunk.start == one.num_computed
            assert 1 <= chunk.count <= one.num_pending
            assert len(one.block_table) * BLOCK >= end
            for block in one.block_table[chunk.start // BLOCK : -(-end // BLOCK)]:
                assert held[block] == 1, "a block that is written has one owner"
                assert not self.findable(block), "what is written is not to be found"
        self.check_blocks()

    def check_blocks(self) -> None:
        """The books agree with the tables, and the states with each other."""
        pool, scheduler = self.pool, self.scheduler
        for one in self.sequences.values():
            assert len(set(one.block_table)) == len(one.block_table)
            assert one.num_computed <= len(one.block_table) * BLOCK
        held = set(self.holders())
        running = scheduler.running.values()
        assert len(held) == pool.num_used
        assert len({b for one in running for b in one.block_table}) == pool.num_active
        free = [*pool._blank, *pool._free_kept, *range(pool._num_touched, pool.total)]
        assert len(free) == len(set(free)) == pool.num_free
        assert not held & set(free)
        states = [*scheduler.waiting, *running, *scheduler.paused.values()]
        assert len({one.id for one in states}) == len(states), "each is in one state"
        assert scheduler._seats == Counter(one.client for one in running)
        assert len(scheduler.waiting) == len(list(scheduler.waiting))
        assert {one.id for one in states} == set(scheduler._sequences)
        holding = {one.id for one in states if one.block_table} - set(scheduler.running)
        idle = [*scheduler._paused_holders.values(), *scheduler._waiting_holders]
        assert sorted(one.id for one in idle) == sorted(holding)

    def check_tokens(self, one: Sequence) -> None:
        """Whatever happened to it, its output is what the model says."""
        for end in range(one.num_prompt, len(one.token_ids)):
            assert one.token_ids[end] == next_token(one.token_ids[:end])

    def finish(self, limit: int = 3000) -> None:
        """Step until nothing waits or runs."""
        for _ in range(limit):
            if not (self.scheduler.waiting or self.scheduler.running):
                return
            assert self.step(), "there is work, and nothing is done: it would be so for ever"
        raise AssertionError("it does not end")
