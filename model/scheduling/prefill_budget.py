"""How much prefill a step may carry beside decodes, so that running streams keep their rhythm.

It learns from what steps have taken; it reads no clock itself and knows no tensors.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

# A step with prefill may take this part longer than one without: with some noise, 1.5 x is kept.
STRETCH: Final = 1 / 3
# Or, with k prompts and d streams, k^2 / (4 d) longer: each prompt waits for the others, so what a
# backlog costs grows with its square, and else the seats of a full engine fill with prompts.
BACKLOG: Final = 4
# Below this a prompt would hardly move.
MIN_TOKENS: Final = 12
# How far one step moves the estimate of what a token costs: an outlier moves it no further.
GAIN: Final = 1.05
# For so many of their steps decodes may wait while the first prompt of another client is computed.
FIRST_PROMPT_STEPS: Final = 3
# A step with fewer prompt tokens alone may take most of its time for something else.
_WHOLE: Final = 64
_PATIENCE = 64  # steps with prefill, until one without is wanted to measure again


@dataclass(slots=True)
class _Load:
    """What steps with about one number of decoding sequences take, in seconds."""

    token_seconds: float
    decode_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=9))
    allowed: int = 0
    since_measured: int = 0

    @property
    def is_due(self) -> bool:
        """Whether too few steps without prefill were seen, or none for long."""
        return self.since_measured >= _PATIENCE * min(len(self.decode_seconds), 4) / 4

    @property
    def step_seconds(self) -> float:
        """A decode-only step; the median, because single steps may take many times as long."""
        return median(self.decode_seconds)


class PrefillBudget:
    """Limits the prefill of a step to what stretches it by a bearable part.

    A token of prefill costs little while a step waits for memory anyway, and its full price beyond
    that. So its price is not modelled but followed: `token_seconds` is what prefill has added to a
    decode-only step, per token, at about the sizes that were allowed.
    """

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}
        self._token_seconds = math.inf
        self._alone_seconds = math.inf  # a token's price in steps with nothing but prompts

    def prefill_tokens(self, num_decoding: int, num_prefilling: int, limit: int) -> int:
        """How many prompt tokens the next step may compute, at most `limit`.

        0 now and then: what a step without prefill takes must be measured before it is stretched.
        """
        if not num_decoding or not num_prefilling:
            return limit
        load = self._load(num_decoding)
        if load.is_due:
            return 0
        stretch = max(STRETCH, num_prefilling**2 / (BACKLOG * num_decoding))
        seconds = load.step_seconds * stretch
        load.allowed = max(MIN_TOKENS, int(min(seconds / load.token_seconds, limit)))
        return min(load.allowed, limit)

    def first_prompt_tokens(self, num_waiting: int, limit: int) -> int:
        """How many prompt tokens the next step may compute while so many decodes wait for it.

        At most `limit`; 0 until the price of both was seen.
        """
        step_seconds = self._step_seconds_of_as_many_or_fewer(num_waiting)
        if not step_seconds or math.isinf(self._alone_seconds):
            return 0
        tokens = int(FIRST_PROMPT_STEPS * step_seconds / self._alone_seconds)
        return min(max(MIN_TOKENS, tokens), limit)

    def observe(self, num_decoding: int, num_tokens: int, seconds: float) -> None:
        """A step with so many decoding sequences and prompt tokens took so long."""
        if not num_decoding:
            self._token_seconds = seconds / num_tokens
            if num_tokens >= _WHOLE or self._token_seconds < self._alone_seconds:
                self._alone_seconds = self._token_seconds
            return
        load = self._load(num_decoding)
        if not num_tokens:
            load.decode_seconds.append(seconds)
            load.since_measured = 0
        elif load.decode_seconds:
            load.since_measured += 1
            self._learn(load, num_tokens, seconds)

    def _learn(self, load: _Load, num_tokens: int, seconds: float) -> None:
        """Move the price towards the seen one; a small chunk does not show larger ones cheap."""
        if math.isinf(load.token_seconds):
            load.token_seconds = seconds / num_tokens
        added = (seconds - load.step_seconds) / num_tokens
        if added < load.token_seconds and num_tokens < 0.8 * load.allowed:
            return
        change = min(max(added / load.token_seconds, 1 / GAIN), GAIN)
        load.token_seconds *= change
        self._token_seconds = load.token_seconds

    def _step_seconds_of_as_many_or_fewer(self, num_decoding: int) -> float:
        """What a decode-only step takes, or one of the next smaller load seen; 0 if none was."""
        seen = [key for key, load in self._loads.items() if load.decode_seconds]
        key = max((one for one in seen if one <= _load_key(num_decoding)), default=None)
        return 0 if key is None else self._loads[key].step_seconds

    def _load(self, num_decoding: int) -> _Load:
        key = _load_key(num_decoding)
        if key not in self._loads:
            self._loads[key] = _Load(self._token_seconds)
        return self._loads[key]


def _load_key(num_decoding: int) -> int:
    """Numbers that differ by less than a twelfth are one load."""
    return round(8 * math.log2(num_decoding))
