"""What a step of the model gives the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Logits:
    """Scores of the next token, one row for each sequence that samples.

    `rows` (R, vocabulary) is float32 and only valid until the next step; where the request wants
    nothing but the argmax (`argmax_only`), a row may hold anything. `best` (R) is each row's
    argmax. `finite` (R) is false for a row that holds NaN or infinity: that sequence has failed.
    """

    rows: Tensor
    best: Sequence[int]
    finite: Sequence[bool]

    @classmethod
    def of(cls, rows: Tensor) -> "Logits":
        """Find each row's best token, and whether the row may be trusted."""
        # A NaN wins every argmax, so only the greatest score needs a look.
        best = argmax(rows)
        values = rows.gather(1, best.unsqueeze(-1))[:, 0]
        return cls(rows, best.tolist(), values.isfinite().tolist())


def argmax(rows: Tensor) -> Tensor:
    """The first of each row's largest (R,). On a CPU by numpy, six times as fast as torch."""
    if rows.device.type != "cpu":
        return rows.argmax(dim=-1)
    return torch.from_numpy(rows.numpy().argmax(axis=-1))
