"""Which full KV blocks hold which tokens, so that an equal beginning is computed once. No tensors.

The key of a block is a SHA-256 over the key of the block before it and the ids of its tokens, so
one key stands for all tokens from the first on, as in a Merkle chain. The first has the salt before
it: sequences with different salts share nothing. Tokens are not compared: who could find two
beginnings with one key would have broken SHA-256.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from model.scheduling.block_pool import BlockPool

# One byte in front tells what is hashed: no salt can pass for the tokens of another chain.
_SALT, _TOKENS = b"\0", b"\1"


def root_hash(salt: str) -> bytes:
    """What stands before the first block of every sequence with this salt."""
    return sha256(_SALT + salt.encode()).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of the block of these tokens after the block with the key `parent`.

    Ids are encoded as unsigned 32-bit integers, little-endian.
    """
    return sha256(_TOKENS + parent + struct.pack(f"<{len(token_ids)}I", *token_ids)).digest()


@dataclass(slots=True, eq=False)
class _Node:
    key: bytes
    block: int
    parent: bytes
    children: set[bytes] = field(default_factory=set)


class PrefixCache:
    """An index over full blocks of a pool: key -> block, as a forest of which every root is a salt.

    Holding a block or not is the matter of its caller. What is found stays in the pool when nobody
    holds it any more, until the pool needs the room.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._nodes: dict[bytes, _Node] = {}
        self._key_of: dict[int, bytes] = {}
        pool.on_evict = self.forget

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of `keys` that is here."""
        blocks = []
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                break
            blocks.append(node.block)
        return blocks

    def add(self, keys: Sequence[bytes], index: int, block: int) -> None:
        """Make the block of `keys[index]` findable; its tokens' keys and values are in it.

        Nothing happens when there is one with this key already, or when the one before it is not
        here (any more): it could not be found.
        """
        key, parent = keys[index], keys[index - 1] if index else b""
        if key in self._nodes or (parent and parent not in self._nodes):
            return
        self._nodes[key] = _Node(key, block, parent)
        self._key_of[block] = key
        if parent:
            self._nodes[parent].children.add(key)
        self._pool.keep(block)

    def forget(self, block: int) -> None:
        """No longer find this block, nor any that comes after it."""
        key = self._key_of.get(block)
        if key is None:
            return
        parent = self._nodes.get(self._nodes[key].parent)
        if parent:
            parent.children.discard(key)
        doomed = [key]
        while doomed:
            node = self._nodes.pop(doomed.pop())
            doomed += node.children
            del self._key_of[node.block]
            self._pool.discard(node.block)

    def clear(self) -> None:
        """No longer find any block."""
        for block in list(self._key_of):
            self.forget(block)
