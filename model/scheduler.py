"""Which sequences compute which positions in the next step. Policy only: no tensors.

States: waiting -> running (prefill in chunks, then decode), paused, gone. Decodes come first, so
that running streams keep their pace; what the pace allows beside them goes to prefill.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.block_pool import BlockPool
from model.pace import Pace
from model.prefix_cache import PrefixCache, block_key, root_key
from model.request import Request
from model.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute positions [start, start + count) of `request` in this step."""

    request: Request
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last token, so that its logits give the next one."""
        return self.start + self.count == len(self.request.token_ids)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: first copy the KV block of each pair (from, to), in order, then run the chunks.

    The first `num_decoding` chunks are one token each.
    """

    chunks: Sequence[Chunk]
    copies: Sequence[tuple[int, int]]
    num_decoding: int

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks[self.num_decoding :])


class Scheduler:
    """Continuous batching over a fixed pool of KV blocks.

    When blocks run out, sequences that do not run give theirs up first, then the youngest running
    one of the worst priority goes back to waiting and is recomputed later; its tokens do not
    change. Full blocks can be found by later sequences that begin with the same tokens, unless
    `prefix_cache` is off.
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
        self._requests: dict[str, Request] = {}
        self.num_preemptions = 0  # for want of blocks
        self.waiting = WaitingQueue()
        self.running: dict[str, Request] = {}
        self.paused: dict[str, Request] = {}
        # Those of the paused and of the waiting that hold blocks.
        self._paused_holders: dict[str, Request] = {}
        self._waiting_holders = WaitingQueue()
        # Of the step that is being planned.
        self._copies: dict[int, int] = {}  # the block to copy, by the one that it is copied to
        self._coming: set[bytes] = set()  # the keys of blocks that are computed
        self._preempted: set[str] = set()  # who had to go back to waiting
        self._spoilt: set[int] = set()  # blocks that may hold NaN

    @property
    def has_prefix_cache(self) -> bool:
        return self._cache is not None

    def add(self, request: Request) -> None:
        request.number = self._arrivals
        self._arrivals += 1
        self._requests[request.id] = request
        self.waiting.add(request)

    def remove(self, request_id: str) -> None:
        """Forget a sequence, whatever its state; its blocks are free at once."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._take_out(request)
        self._release(request)

    def fail(self, request_id: str) -> None:
        """Forget a sequence that gave no usable numbers, and every block that it read or wrote."""
        request = self._requests.get(request_id)
        if request is None:
            return
        self._spoilt.update(request.block_table)
        if self._cache:
            for block in request.block_table:
                self._cache.forget(block)
        self.remove(request_id)

    def pause(self, request_id: str) -> None:
        """No more compute for this sequence until `resume`; its blocks stay while there is room."""
        request = self._requests.get(request_id)
        if request is None or request_id in self.paused:
            return
        self._take_out(request)
        self._pool.rest(request.block_table)
        request.pause_after_one = False
        self.paused[request_id] = request
        if request.block_table:
            self._paused_holders[request_id] = request

    def resume(self, request_id: str) -> None:
        """Back to its place in the queue, with the blocks that it still has."""
        request = self.paused.pop(request_id, None)
        if request is None:
            return
        self.waiting.add(request)
        if self._paused_holders.pop(request_id, None):
            self._waiting_holders.add(request)

    def schedule(self, pace: Pace | None = None) -> Plan:
        """The next step's work, decodes before prefills; no chunks when nothing can run.

        `pace` limits the prefill beside decodes. Without one only `max_step_tokens` does.
        """
        self._copies.clear()
        self._coming.clear()
        self._preempted.clear()
        decoding = [request for request in self.running.values() if request.num_pending == 1]
        prefilling = [request for request in self.running.values() if request.num_pending > 1]
        decodes = self._continue(decoding, self._max_step_tokens)
        budget = self._max_step_tokens - len(decodes)
        if pace:
            joining = min(len(self.waiting), self._max_num_seqs - len(self.running))
            budget = pace.prefill_tokens(len(decodes), len(prefilling) + joining, budget)
        prefills = self._continue(sorted(prefilling, key=_age), budget)
        prefills += self._admit(budget - sum(chunk.count for chunk in prefills))
        decodes = [chunk for chunk in decodes if chunk.request.id in self.running]
        prefills = [chunk for chunk in prefills if chunk.request.id in self.running]
        copies = [(source, target) for target, source in self._copies.items()]
        return Plan([*decodes, *prefills], copies, len(decodes))

    def computed(self, chunks: Iterable[Chunk]) -> None:
        """The chunks have run: what they filled can be found from now on."""
        if self._cache:
            for chunk in chunks:
                self._publish(chunk.request, self._cache)

    def _continue(self, requests: Iterable[Request], budget: int) -> list[Chunk]:
        """Chunks of running sequences, as far as the budget goes."""
        chunks = []
        for request in requests:
            if budget and (chunk := self._chunk(request, budget)):
                chunks.append(chunk)
                budget -= chunk.count
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        """Let the first of the queue run, while seats, blocks and budget last.

        Who was preempted in this step may have a chunk already, made before it lost its blocks.
        """
        chunks = []
        while budget and self.waiting and len(self.running) < self._max_num_seqs:
            request = self.waiting.first
            if request.id in self._preempted or not self._fits(request):
                break
            self._seat(request)
            if chunk := self._chunk(request, budget):
                chunks.append(chunk)
                budget -= chunk.count
        return chunks

    def _seat(self, request: Request) -> None:
        self._take_out(request)
        request.admitted = True
        self.running[request.id] = request

    def _chunk(self, request: Request, budget: int) -> Chunk | None:
        """What a running sequence computes in this step; None where it has to wait."""
        if request.id not in self.running or not self._may_begin(request):
            return None
        if not self._reserve(request):
            return None
        if request.num_pending > 1 and (key := self._next_key(request)):
            self._coming.add(key)
        return Chunk(request, request.num_computed, min(request.num_pending, budget))

    def _may_begin(self, request: Request) -> bool:
        """Let it begin with what others have computed.

        False while another one computes its next block in this very step: it will be found.
        """
        if not self._cache or not request.is_fresh:
            return True
        self._adopt(request, self._cache)
        return self._next_key(request) not in self._coming

    def _fits(self, request: Request) -> bool:
        """Whether it can have blocks for all its tokens and the next, if idle ones give up theirs.

        The next one's, because a sequence that finds all its tokens needs one block to write to.
        """
        table = request.block_table or self._find(request)
        active = sum(self._pool.is_active(block) for block in table)
        wanted = self._pool.blocks_for(len(request.token_ids) + 1)
        return wanted - active <= self._pool.num_reclaimable

    def _find(self, request: Request) -> list[int]:
        return self._cache.find(self._keys(request)) if self._cache else []

    def _adopt(self, request: Request, cache: PrefixCache) -> None:
        """Begin with the blocks that others have computed; at least one token is left to do."""
        found = cache.find(self._keys(request))
        self._pool.share(found)
        self._pool.release(reversed(request.block_table))
        request.block_table = found
        request.num_published = len(found)
        request.num_cached = min(len(found) * self._pool.block_size, len(request.token_ids) - 1)
        request.num_computed = request.num_cached

    def _next_key(self, request: Request) -> bytes | None:
        """The key of the block that is computed next; None for one that is not full, or found."""
        index = request.num_computed // self._pool.block_size
        if index >= len(request.block_keys) or self._writes_shared(request):
            return None
        return request.block_keys[index]

    def _reserve(self, request: Request) -> bool:
        """Blocks for every token of a running sequence, at the cost of idle and worse ones.

        False when the sequence itself was the worst and had to go back to waiting.
        """
        missing = self._missing(request)
        while missing > self._pool.num_free:
            if missing <= self._pool.num_reclaimable:
                self._evict_idle()
                continue
            worst = max(self.running.values(), key=_age)
            self._preempt(worst)
            self.num_preemptions += 1
            if worst is request:
                return False
        if missing:
            self._grow(request)
        return True

    def _missing(self, request: Request) -> int:
        blocks = self._pool.blocks_for(len(request.token_ids)) - len(request.block_table)
        return blocks + self._writes_shared(request)

    def _writes_shared(self, request: Request) -> bool:
        """Whether the next token's slot is in a block that was found, and is not its alone."""
        if not request.is_fresh:
            return False
        index = request.num_computed // self._pool.block_size
        return index < len(request.block_table) and self._pool.is_shared(request.block_table[index])

    def _grow(self, request: Request) -> None:
        """Take the missing blocks; a shared one that is to be written is copied first."""
        if self._writes_shared(request):
            index = request.num_computed // self._pool.block_size
            shared, (own,) = request.block_table[index], self._allocate(1)
            self._copies[own] = shared
            request.block_table[index] = own
            self._pool.release([shared])
        request.block_table += self._allocate(self._missing(request))

    def _allocate(self, count: int) -> list[int]:
        """Blocks without NaN: those that may hold some get the content of any other block.

        What a block holds beyond its sequence is masked, but 0 * NaN would still be NaN.
        """
        blocks = self._pool.allocate(count)
        for block in self._spoilt.intersection(blocks):
            clean = (other for other in range(self._pool.total) if other not in self._spoilt)
            self._copies[block] = next(clean, block)
        self._spoilt.difference_update(blocks)
        return blocks

    def restart(self) -> None:
        """Forget every key and value: all sequences begin again with their tokens."""
        for request in list(self.running.values()):
            self._preempt(request)
        while self._paused_holders or self._waiting_holders:
            self._evict_idle()
        if self._cache:
            self._cache.clear()

    def _preempt(self, request: Request) -> None:
        self._preempted.add(request.id)
        del self.running[request.id]
        self._release(request)
        self.waiting.add(request)

    def _evict_idle(self) -> None:
        """Take the blocks of the sequence paused first, or else of the last in the queue."""
        if self._paused_holders:
            request = self._paused_holders.pop(next(iter(self._paused_holders)))
        else:
            request = self._waiting_holders.last
            self._waiting_holders.remove(request)
        self._pool.wake(request.block_table)
        self._release(request)

    def _release(self, request: Request) -> None:
        """Last block first: of those that are kept, a block goes before the one it follows on."""
        self._pool.release(reversed(request.block_table))
        request.block_table = []
        request.num_computed = request.num_cached = request.num_published = 0

    def _take_out(self, request: Request) -> None:
        """Out of its state, its blocks held actively."""
        if self.running.pop(request.id, None):
            return
        if self.paused.pop(request.id, None):
            self._paused_holders.pop(request.id, None)
        else:
            self.waiting.remove(request)
            if request.block_table:
                self._waiting_holders.remove(request)
        self._pool.wake(request.block_table)

    def _publish(self, request: Request, cache: PrefixCache) -> None:
        full = request.num_computed // self._pool.block_size
        if full > request.num_published:
            keys = self._keys(request)
            for index in range(request.num_published, full):
                cache.add(keys, index, request.block_table[index])
            request.num_published = full

    def _keys(self, request: Request) -> list[bytes]:
        """The keys of all blocks that the tokens fill."""
        keys, size = request.block_keys, self._pool.block_size
        for start in range(len(keys) * size, len(request.token_ids) - size + 1, size):
            parent = keys[-1] if keys else root_key(request.salt)
            keys.append(block_key(parent, request.token_ids[start : start + size]))
        return keys


def _age(request: Request) -> tuple[int, int]:
    """By priority, then by arrival: the last is the youngest of the worst priority."""
    return request.priority, request.number
