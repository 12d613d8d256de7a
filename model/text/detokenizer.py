"""Token ids of one sequence -> text that is always whole code points, cut at stop strings.

Knows nothing of tensors, scheduling or wire formats.
"""

import codecs
from collections.abc import Sequence

from model.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental detokenization of one sequence, constant work per token.

    A token of a byte-level vocabulary may end inside a code point, so bytes go through an
    incremental UTF-8 decoder (Unicode 16, section 3.9: maximal subparts become U+FFFD).
    Text that may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int, *, check_stop: bool = True) -> str:
        """Take one token; return the text that may be shown now.

        After a stop string was met, `stopped` is true and the text ends before it.
        """
        text = self._held + self._decoder.decode(self._tokenizer.token_bytes(token_id))
        if not self._stop or not check_stop:
            self._held = ""
            return text
        cut = earliest_match(text, self._stop)
        if cut is not None:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = longest_partial_match(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The sequence is over: whatever was held back, an unfinished code point as U+FFFD."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return text[: earliest_match(text, self._stop)]


def earliest_match(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins in `text`, or None.

    Complete first, not begun first: so the cut does not depend on how tokens divide the text.
    """
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return min(found)[1] if found else None


def longest_partial_match(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a stop string."""
    longest = max(len(s) for s in stop) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(s.startswith(tail) for s in stop):
            return length
    return 0
