"""Which KV blocks are free. Numbers only: no tensors."""

from collections.abc import Iterable


class BlockPool:
    """`total` blocks of `block_size` token slots each, handed out and taken back whole."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(range(total - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.total - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises MemoryError when fewer are free."""
        if count > len(self._free):
            raise MemoryError(f"{count} KV blocks wanted, {len(self._free)} are free")
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)
