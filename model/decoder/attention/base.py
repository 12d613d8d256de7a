"""What a decoder needs of attention: a plan for each step, and attention by it in each layer."""

from typing import Protocol

from torch import Tensor

from model.scheduling.forward_batch import ForwardBatch


class AttentionPlan(Protocol):
    """Where the rows of one step stand, and whom they may see."""

    @property
    def positions(self) -> Tensor:
        """(rows,) of each row within its sequence."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        scale: float,
    ) -> Tensor:
        """Put the new keys and values in the cache, then attend over all that each row may see.

        query (rows, H, d), key and value (rows, KV, d); returns (rows, H, d).
        """


class Attention(Protocol):
    """One way to attend over a KV cache."""

    def plan(self, batch: ForwardBatch) -> AttentionPlan:
        """Copy the blocks that the batch wants copied; then what all layers of the step share."""
