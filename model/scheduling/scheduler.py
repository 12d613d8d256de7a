"""Which sequences compute which positions in the next step. Policy only: no tensors.

States: waiting -> running (prefill in chunks, then decode), paused, gone. Decodes come first, so
that the latency of running streams stays low; what the prefill budget allows beside them goes to
prefill.

Clients share seats, blocks and prefill, where more than one wants some. What is taken from one is
given to another only if the one has at least two sequences more that run: this brings their shares
nearer, so nothing goes to and fro.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model.scheduling.block_pool import BlockPool
from model.scheduling.prefill_budget import PrefillBudget
from model.scheduling.prefix_cache import PrefixCache, block_hash, root_hash
from model.scheduling.sequence import Sequence
from model.scheduling.waiting_queue import WaitingQueue

# Where several clients have prompts, a step gives each as many tokens as the shortest needs: its
# first token shall not wait for the long ones of others. Fewer than this would save no time.
_LEAST_SHARE: Final = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute positions [start, start + count) of `sequence` in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def num_logits(self) -> int:
        """How many of its last rows give logits: one where the chunk reaches the last token."""
        return int(self.start + self.count == len(self.sequence.token_ids))


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: first copy the KV block of each pair (from, to), in order, then run the chunks.

    The first `num_decoding` chunks are one token each.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int]]
    num_decoding: int

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks[self.num_decoding :])


@dataclass(slots=True)
class _StepBudget:
    """Prompt tokens of one step: so many are `left`, at most `each` for a client."""

    left: int
    each: int
    spent: dict[str, int] = field(default_factory=dict)

    def of(self, client: str) -> int:
        return min(self.left, self.each - self.spent.get(client, 0))

    def spend(self, chunk: Chunk) -> None:
        client = chunk.sequence.client
        self.left -= chunk.count
        self.spent[client] = self.spent.get(client, 0) + chunk.count


class Scheduler:
    """Continuous batching over a fixed pool of KV blocks.

    Clients take turns; priority counts among the sequences of one. When seats or blocks are taken,
    a client that has more than its share gives up its worst sequence (the youngest of the highest
    number of priority), which keeps its blocks while there is room. When blocks run out, sequences
    that do not run give theirs up first, then the worst running one of the client that holds most
    goes back to waiting and is recomputed later; its tokens do not change. Full blocks can be found
    by later sequences that begin with the same tokens, unless `prefix_cache` is off.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_step_tokens: int,
        prefix_cache: bool = True,
    ) -> None:
        self._pool = pool
        self._cache = PrefixCache(pool) if prefix_cache else None
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens
        self._arrivals = 0
        self._sequences: dict[str, Sequence] = {}
        self.num_preemptions = 0  # for want of blocks
        self._seats: Counter[str] = Counter()  # how many sequences of each client run
        self.waiting = WaitingQueue(self._seats)
        self.running: dict[str, Sequence] = {}
        self.paused: dict[str, Sequence] = {}
        # Those of the paused and of the waiting that hold blocks.
        self._paused_holders: dict[str, Sequence] = {}
        self._waiting_holders = WaitingQueue(self._seats)
        self._set_aside = False  # whether decodes were left out of the last step
        # Of the step that is being planned.
        self._copies: dict[int, int] = {}  # the block to copy, by the one that it is copied to
        self._coming: set[bytes] = set()  # the keys of blocks that are computed
        self._preempted: set[str] = set()  # who had to go back to waiting
        self._poisoned: set[int] = set()  # blocks that may hold NaN

    @property
    def has_prefix_cache(self) -> bool:
        return self._cache is not None

    def add(self, sequence: Sequence) -> None:
        sequence.number = self._arrivals
        self._arrivals += 1
        self._sequences[sequence.id] = sequence
        self.waiting.add(sequence)

    def remove(self, sequence_id: str) -> None:
        """Forget a sequence, whatever its state; its blocks are free at once."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        self._take_out(sequence)
        self._release(sequence)

    def fail(self, sequence_id: str) -> None:
        """Forget a sequence that gave no usable numbers, and every block that it read or wrote."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return
        self._poisoned.update(sequence.block_table)
        if self._cache:
            for block in sequence.block_table:
                self._cache.forget(block)
        self.remove(sequence_id)

    def pause(self, sequence_id: str) -> None:
        """No compute for this sequence until `unpause`; its blocks stay while there is room."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None or sequence_id in self.paused:
            return
        self._take_out(sequence)
        self._pool.mark_idle(sequence.block_table)
        sequence.pause_after_one = False
        self.paused[sequence_id] = sequence
        if sequence.block_table:
            self._paused_holders[sequence_id] = sequence

    def unpause(self, sequence_id: str) -> None:
        """Back to its place in the queue, with the blocks that it still has."""
        sequence = self.paused.pop(sequence_id, None)
        if sequence is None:
            return
        self.waiting.add(sequence)
        if self._paused_holders.pop(sequence_id, None):
            self._waiting_holders.add(sequence)

    def schedule(self, prefill_budget: PrefillBudget | None = None) -> SchedulerOutput:
        """The next step's work, decodes before prefills; no chunks when nothing can run.

        `prefill_budget` limits the prefill beside decodes. Without one only `max_step_tokens` does.
        """
        self._copies.clear()
        self._coming.clear()
        self._preempted.clear()
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running.values():
            (decoding if sequence.num_pending == 1 else prefilling).append(sequence)
        prefills, aside = self._first_prompts(decoding, prefilling, prefill_budget)
        self._set_aside = bool(prefills)
        if prefills:
            decodes = self._decode([one for one in decoding if one.client not in aside])
        else:
            decodes = self._decode(decoding)
            tokens = self._beside(decodes, prefilling, prefill_budget)
            prefills = self._prefill(prefilling, tokens, frozenset())
        decodes = [chunk for chunk in decodes if chunk.sequence.id in self.running]
        prefills = [chunk for chunk in prefills if chunk.sequence.id in self.running]
        copies = [(source, target) for target, source in self._copies.items()]
        return SchedulerOutput([*decodes, *prefills], copies, len(decodes))

    def computed(self, chunks: Iterable[Chunk]) -> None:
        """The chunks have run: what they filled can be found from now on."""
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.count
            if self._cache:
                self._publish(chunk.sequence, self._cache)

    def _first_prompts(
        self,
        decoding: list[Sequence],
        prefilling: list[Sequence],
        prefill_budget: PrefillBudget | None,
    ) -> tuple[list[Chunk], Collection[str]]:
        """Prompts of clients that have no stream yet, and the clients whose decodes wait meanwhile.

        Else a newcomer would pay for all streams of a client that has many. Never twice in a row:
        no decode waits for more than one step, and `prefill_budget` says for how long.
        """
        if prefill_budget is None or self._set_aside:
            return [], frozenset()
        aside = self._crowding(decoding, prefilling)
        if not aside:
            return [], aside
        num_aside = sum(one.client in aside for one in decoding)
        limit = self._max_step_tokens - (len(decoding) - num_aside)
        tokens = prefill_budget.first_prompt_tokens(num_aside, limit)
        first = [one for one in prefilling if one.client not in aside]
        return self._prefill(first, tokens, aside), aside

    def _crowding(
        self, decoding: Iterable[Sequence], prefilling: Iterable[Sequence]
    ) -> frozenset[str]:
        """Clients with streams that have more than the share of one which has a prompt only."""
        most = max(self._seats.values(), default=0)
        if most < 2:
            return frozenset()
        clients = {one.client for one in prefilling}
        if self.waiting:
            clients.add(self.waiting.first.client)
        poor = {client for client in clients if self._seats[client] + 2 <= most}
        if not poor:
            return frozenset()
        streaming = {one.client for one in decoding}
        fewest = min((self._seats[client] for client in poor - streaming), default=most)
        return frozenset(client for client in streaming if self._seats[client] >= fewest + 2)

    def _beside(
        self,
        decodes: list[Chunk],
        prefilling: list[Sequence],
        prefill_budget: PrefillBudget | None,
    ) -> int:
        """How many prompt tokens the step may compute beside these decodes."""
        limit = self._max_step_tokens - len(decodes)
        if prefill_budget is None:
            return limit
        return prefill_budget.prefill_tokens(
            len(decodes), self._num_prompts(decodes, prefilling), limit
        )

    def _num_prompts(self, decodes: Iterable[Chunk], prefilling: Collection[Sequence]) -> int:
        """How many prompts the decodes have to make room for.

        As that client of the decodes sees it which has the fewest: all prompts of its own, and one
        of each other client. A client's crowd of prompts slows down no stream of another client.
        """
        free = self._max_num_seqs - len(self.running)
        total = len(prefilling) + min(len(self.waiting), free)
        own = Counter(one.client for one in prefilling)
        joining = self.waiting.clients if free else frozenset[str]()
        num_clients = len(own) + sum(client not in own for client in joining)

        def seen_by(client: str) -> int:
            its = own[client] + min(self.waiting.number_of(client), free)
            return num_clients - bool(its) + its

        return min([total, *map(seen_by, {one.sequence.client for one in decodes})])

    def _decode(self, sequences: Iterable[Sequence]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in sequences:
            if len(chunks) < self._max_step_tokens and (chunk := self._chunk(sequence, 1)):
                chunks.append(chunk)
        return chunks

    def _prefill(
        self, running: Collection[Sequence], tokens: int, aside: Collection[str]
    ) -> list[Chunk]:
        """Prompts of running sequences and then of those that join, except from clients `aside`."""
        budget = _StepBudget(tokens, self._tokens_each(running, tokens, aside))
        chunks = []
        for sequence in sorted(running, key=_age):
            allowed = budget.of(sequence.client)
            if allowed and (chunk := self._chunk(sequence, allowed)):
                chunks.append(chunk)
                budget.spend(chunk)
        return chunks + self._admit(budget, aside)

    def _tokens_each(
        self, prefilling: Iterable[Sequence], tokens: int, aside: Collection[str]
    ) -> int:
        """What one client may have of so many tokens, of which others that can join want some, too.

        A prompt that waits counts whole: how much of it will be found is not known yet.
        """
        wanted: dict[str, int] = {}
        for sequence in prefilling:
            wanted[sequence.client] = wanted.get(sequence.client, 0) + sequence.num_pending
        sharers = tokens // _LEAST_SHARE + 2  # more of them would get nothing
        for sequence in self.waiting.first_of_each(sharers) if self._may_join else ():
            if sequence.client not in aside and self._leaving(sequence) is not None:
                wanted.setdefault(sequence.client, sequence.num_pending)
        if len(wanted) < 2:
            return tokens
        return min(max(_LEAST_SHARE, min(wanted.values())), _equal_share(wanted.values(), tokens))

    def _admit(self, budget: _StepBudget, aside: Collection[str]) -> list[Chunk]:
        """Let the first of the queue run, while seats, blocks and budget last.

        Of those whose clients have some left: a client whose running prompts take all of its share
        holds up nobody. Who was preempted in this step may have a chunk already, made before it
        lost its blocks.
        """
        chunks = []
        while sequence := self._first_with(budget, aside):
            if sequence.id in self._preempted or not self._make_way(sequence):
                break
            self._seat(sequence)
            if chunk := self._chunk(sequence, budget.of(sequence.client)):
                chunks.append(chunk)
                budget.spend(chunk)
        return chunks

    def _first_with(self, budget: _StepBudget, aside: Collection[str]) -> Sequence | None:
        """The first that may join now, of a client that has budget left and does not wait aside."""
        if not budget.left or not self._may_join:
            return None
        return self.waiting.first_where(lambda one: one not in aside and budget.of(one) > 0)

    @property
    def _may_join(self) -> bool:
        """Whether something waits, and a seat is free or some client has more than one."""
        if len(self.running) < self._max_num_seqs:
            return bool(self.waiting)
        return bool(self.waiting) and len(self._seats) < len(self.running)

    def _make_way(self, sequence: Sequence) -> bool:
        """Whether it can run now, if need be in the place of what others have too much."""
        leaving = self._leaving(sequence)
        for one in leaving or ():
            self._give_way(one)
        return leaving is not None

    def _leaving(self, sequence: Sequence) -> list[Sequence] | None:
        """Who must give up a seat, or blocks, so that it can run; None when it has to wait."""
        leaving: list[Sequence] = []
        surplus = self._surplus(sequence)
        if len(self.running) >= self._max_num_seqs:
            if not (one := next(surplus, None)):
                return None
            leaving.append(one)
        table = sequence.block_table or self._find(sequence)
        missing = self._missing_for(sequence, table) - self._set_free(leaving, table)
        while missing > 0:
            if not (one := next(surplus, None)):
                return None
            leaving.append(one)
            missing -= self._set_free([one], table)
        return leaving

    def _surplus(self, sequence: Sequence) -> Iterator[Sequence]:
        """What other clients have beyond its client's share: of the one with most, the worst."""
        fair = self._seats[sequence.client] + 2
        seats = {client: n for client, n in self._seats.items() if n >= fair}
        if not seats:
            return
        lines: dict[str, list[Sequence]] = {client: [] for client in seats}
        for one in sorted(self.running.values(), key=_age):
            if one.client in lines:
                lines[one.client].append(one)
        while lines:
            client = max(lines, key=seats.__getitem__)
            if not lines[client] or seats[client] < fair:
                del lines[client]
                continue
            yield lines[client].pop()
            seats[client] -= 1

    def _set_free(self, leaving: Iterable[Sequence], wanted: Collection[int]) -> int:
        """How many blocks nobody holds actively, and nobody wants, when these have given way."""
        blocks = (block for one in leaving for block in one.block_table)
        return sum(self._pool.has_one_active(block) and block not in wanted for block in blocks)

    def _give_way(self, sequence: Sequence) -> None:
        """Back to waiting, with its blocks: it goes on where it was, unless they are needed."""
        self._preempted.add(sequence.id)
        self._unseat(sequence)
        self._pool.mark_idle(sequence.block_table)
        self.waiting.add(sequence)
        if sequence.block_table:
            self._waiting_holders.add(sequence)

    def _seat(self, sequence: Sequence) -> None:
        self.waiting.take(sequence)
        self._wake(sequence)
        sequence.admitted = True
        self.running[sequence.id] = sequence
        self._seats[sequence.client] += 1

    def _unseat(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        self._seats[sequence.client] -= 1
        if not self._seats[sequence.client]:
            del self._seats[sequence.client]

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk | None:
        """What a running sequence computes in this step; None where it has to wait."""
        if sequence.id not in self.running or not self._may_begin(sequence):
            return None
        if not self._reserve(sequence):
            return None
        if sequence.num_pending > 1 and (key := self._next_hash(sequence)):
            self._coming.add(key)
        return Chunk(sequence, sequence.num_computed, min(sequence.num_pending, budget))

    def _may_begin(self, sequence: Sequence) -> bool:
        """Let it begin with what others have computed.

        False while another one computes its next block in this very step: it will be found.
        """
        if not self._cache or not sequence.is_fresh:
            return True
        self._adopt(sequence, self._cache)
        return self._next_hash(sequence) not in self._coming

    def _missing_for(self, sequence: Sequence, table: Iterable[int]) -> int:
        """Blocks that it lacks for all its tokens and the next, if idle ones give up theirs.

        `table` is what it has or finds. The next one's, because a sequence that finds all its
        tokens needs one block to write to.
        """
        active = sum(self._pool.is_active(block) for block in table)
        wanted = self._pool.blocks_for(len(sequence.token_ids) + 1)
        return wanted - active - self._pool.num_reclaimable

    def _find(self, sequence: Sequence) -> list[int]:
        return self._cache.find(self._hashes(sequence)) if self._cache else []

    def _adopt(self, sequence: Sequence, cache: PrefixCache) -> None:
        """Begin with the blocks that others have computed; at least one token is left to do."""
        found = cache.find(self._hashes(sequence))
        self._pool.share(found)
        self._pool.release(reversed(sequence.block_table))
        sequence.block_table = array("i", found)
        sequence.num_published = len(found)
        sequence.num_cached = min(len(found) * self._pool.block_size, len(sequence.token_ids) - 1)
        sequence.num_computed = sequence.num_cached

    def _next_hash(self, sequence: Sequence) -> bytes | None:
        """The key of the block that is computed next; None for one that is not full, or found."""
        index = sequence.num_computed // self._pool.block_size
        if index >= len(sequence.block_hashes) or self._writes_shared(sequence):
            return None
        return sequence.block_hashes[index]

    def _reserve(self, sequence: Sequence) -> bool:
        """Blocks for every token of a running sequence, at the cost of idle and worse ones.

        False when the sequence itself was the worst and had to go back to waiting.
        """
        missing = self._missing(sequence)
        while missing > self._pool.num_free:
            if missing <= self._pool.num_reclaimable:
                self._evict_idle()
                continue
            worst = self._worst()
            self._preempt(worst)
            self.num_preemptions += 1
            if worst is sequence:
                return False
        if missing:
            self._grow(sequence)
        return True

    def _worst(self) -> Sequence:
        """Of the client whose running sequences hold most: the youngest of the worst priority."""
        blocks: Counter[str] = Counter()
        for one in self.running.values():
            blocks[one.client] += len(one.block_table)
        return max(
            self.running.values(), key=lambda one: (blocks[one.client], one.client, _age(one))
        )

    def _missing(self, sequence: Sequence) -> int:
        blocks = self._pool.blocks_for(len(sequence.token_ids)) - len(sequence.block_table)
        return blocks + self._writes_shared(sequence)

    def _writes_shared(self, sequence: Sequence) -> bool:
        """Whether the next token's slot is in a block that was found, and is not its alone."""
        if not sequence.is_fresh:
            return False
        index = sequence.num_computed // self._pool.block_size
        return index < len(sequence.block_table) and self._pool.is_shared(
            sequence.block_table[index]
        )

    def _grow(self, sequence: Sequence) -> None:
        """Take the missing blocks; a shared one that is to be written is copied first."""
        if self._writes_shared(sequence):
            index = sequence.num_computed // self._pool.block_size
            shared, (own,) = sequence.block_table[index], self._allocate(1)
            self._copies[own] = shared
            sequence.block_table[index] = own
            self._pool.release([shared])
        sequence.block_table.extend(self._allocate(self._missing(sequence)))

    def _allocate(self, count: int) -> list[int]:
        """Blocks without NaN: those that may hold some get the content of any other block.

        What a block holds beyond its sequence is masked, but 0 * NaN would still be NaN.
        """
        blocks = self._pool.allocate(count)
        for block in self._poisoned.intersection(blocks):
            clean = (other for other in range(self._pool.total) if other not in self._poisoned)
            self._copies[block] = next(clean, block)
        self._poisoned.difference_update(blocks)
        return blocks

    def restart(self) -> None:
        """Forget every key and value: all sequences begin again with their tokens."""
        for sequence in list(self.running.values()):
            self._preempt(sequence)
        while self._paused_holders or self._waiting_holders:
            self._evict_idle()
        if self._cache:
            self._cache.clear()

    def _preempt(self, sequence: Sequence) -> None:
        self._preempted.add(sequence.id)
        self._unseat(sequence)
        self._release(sequence)
        self.waiting.add(sequence)

    def _evict_idle(self) -> None:
        """Take the blocks of the sequence paused first, or else of the last in the queue."""
        if self._paused_holders:
            sequence = self._paused_holders.pop(next(iter(self._paused_holders)))
        else:
            sequence = self._waiting_holders.last
            self._waiting_holders.remove(sequence)
        self._pool.mark_active(sequence.block_table)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Last block first: of those that are kept, a block goes before the one it follows on."""
        self._pool.release(reversed(sequence.block_table))
        sequence.block_table = array("i")
        sequence.num_computed = sequence.num_cached = sequence.num_published = 0

    def _take_out(self, sequence: Sequence) -> None:
        """Out of its state, its blocks held actively."""
        if sequence.id in self.running:
            self._unseat(sequence)
        elif self.paused.pop(sequence.id, None):
            self._paused_holders.pop(sequence.id, None)
            self._pool.mark_active(sequence.block_table)
        else:
            self.waiting.remove(sequence)
            self._wake(sequence)

    def _wake(self, sequence: Sequence) -> None:
        """The blocks of one that waited are held actively from now on."""
        if sequence.block_table:
            self._waiting_holders.remove(sequence)
        self._pool.mark_active(sequence.block_table)

    def _publish(self, sequence: Sequence, cache: PrefixCache) -> None:
        full = sequence.num_computed // self._pool.block_size
        if full > sequence.num_published:
            keys = self._hashes(sequence)
            for index in range(sequence.num_published, full):
                cache.add(keys, index, sequence.block_table[index])
            sequence.num_published = full

    def _hashes(self, sequence: Sequence) -> list[bytes]:
        """The keys of all blocks that the tokens fill."""
        keys, size = sequence.block_hashes, self._pool.block_size
        for start in range(len(keys) * size, len(sequence.token_ids) - size + 1, size):
            parent = keys[-1] if keys else root_hash(sequence.salt)
            keys.append(block_hash(parent, sequence.token_ids[start : start + size]))
        return keys


def _age(sequence: Sequence) -> tuple[int, int]:
    """By priority, then by arrival: the last is the youngest of the worst priority."""
    return sequence.priority, sequence.number


def _equal_share(wanted: Collection[int], total: int) -> int:
    """What each may have at most, so that all of it goes: who wants less leaves it to others."""
    for sharers, want in zip(range(len(wanted), 0, -1), sorted(wanted), strict=True):
        share = -(-total // sharers)
        if want >= share:
            return share
        total -= want
    return max(wanted) + total
