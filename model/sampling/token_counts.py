"""Which tokens a sequence holds, and how often its output does: kept up, never counted anew."""

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """The distinct tokens of one growing sequence, in the order of their first appearance.

    `ids` (n) are the tokens, `counts` (n) how often the output, without the prompt, holds each.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._place: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._place)]

    def follow(self, token_ids: list[int], num_prompt: int) -> None:
        """Take in what was appended to prompt and output since the last call."""
        for position in range(self._seen, len(token_ids)):
            place = self._enter(token_ids[position])
            if position >= num_prompt:
                self._counts[place] += 1
        self._seen = len(token_ids)

    def _enter(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place
