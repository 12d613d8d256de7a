"""Which KV blocks are held, by how many sequences, and which are free. Numbers only: no tensors."""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """`total` blocks of `block_size` token slots each, counted by the sequences that hold them.

    A sequence that runs holds its blocks actively, one that does not holds them idly: those may be
    taken from it. A block that nobody holds is free, also one whose content is kept for whoever may
    ask for it again. Free blocks are handed out in this order: without content, never used (so that
    memory is touched late), kept; of those the least recently used.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self.num_used = 0
        self.num_active = 0
        self.on_evict: Callable[[int], None] = self.discard
        self._active = [0] * total
        self._idle = [0] * total
        self._num_touched = 0
        self._blank: list[int] = []
        self._kept: set[int] = set()
        self._free_kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        return self.total - self.num_used

    @property
    def num_reclaimable(self) -> int:
        """Blocks that are free, or would be if every idle holder gave up its own."""
        return self.total - self.num_active

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def is_active(self, block: int) -> bool:
        return self._active[block] > 0

    def has_one_active(self, block: int) -> bool:
        """Whether exactly one sequence that runs holds it."""
        return self._active[block] == 1

    def is_shared(self, block: int) -> bool:
        """Whether its one holder may not write to it: others hold it too, or may look for it."""
        return block in self._kept or self._active[block] + self._idle[block] > 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises MemoryError when fewer are free."""
        if count > self.num_free:
            raise MemoryError(f"{count} KV blocks wanted, {self.num_free} are free")
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._active[block] = 1
        self.num_used += count
        self.num_active += count
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more active holder for each; a free one must be among those that are kept."""
        for block in blocks:
            if not self._active[block] and not self._idle[block]:
                del self._free_kept[block]
                self.num_used += 1
            self._activate(block)

    def release(self, blocks: Iterable[int]) -> None:
        """One active holder less for each. Kept ones are evicted later in the order given here."""
        for block in blocks:
            self._deactivate(block)
            if not self._active[block] and not self._idle[block]:
                self.num_used -= 1
                self._put(block)

    def mark_idle(self, blocks: Iterable[int]) -> None:
        """An active holder becomes an idle one."""
        for block in blocks:
            self._deactivate(block)
            self._idle[block] += 1

    def mark_active(self, blocks: Iterable[int]) -> None:
        """An idle holder becomes an active one."""
        for block in blocks:
            assert self._idle[block], f"block {block} has no idle holder"
            self._idle[block] -= 1
            self._activate(block)

    def keep(self, block: int) -> None:
        """From now on its content outlives its holders, until `on_evict` is called for it."""
        self._kept.add(block)

    def discard(self, block: int) -> None:
        """Its content is of no more use."""
        self._kept.discard(block)
        if block in self._free_kept:
            del self._free_kept[block]
            self._blank.append(block)

    def _take(self) -> int:
        if not self._blank and self._num_touched < self.total:
            self._num_touched += 1
            return self._num_touched - 1
        if not self._blank:
            self.on_evict(next(iter(self._free_kept)))
        return self._blank.pop()

    def _put(self, block: int) -> None:
        if block in self._kept:
            self._free_kept[block] = None
        else:
            self._blank.append(block)

    def _activate(self, block: int) -> None:
        self.num_active += not self._active[block]
        self._active[block] += 1

    def _deactivate(self, block: int) -> None:
        assert self._active[block], f"block {block} has no active holder"
        self._active[block] -= 1
        self.num_active -= not self._active[block]
