"""What OpenAI's three wire formats share: blocks, logprobs, usage, reasons, comments.

Two things differ from the native frames, because openai-python (3.57) parses every empty line after
the first id as an event: there is no block without data, and a comment is a line, not a block.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.api.native import frames
from app.errors import error_type
from app.sse import block, one_line
from app.tapes.event_id import Position
from app.tapes.tape import End, Gap, Progress, Tape
from model.protocol.messages import FinishReason, Logprob, TopLogprob

Object = dict[str, Any]
TokenBytes = Callable[[int], bytes]

DONE: Final = b"[DONE]"

# How a failed generation is told where there was no answer yet: the status of an error body.
STATUS: Final[Mapping[FinishReason, int]] = {
    "error": 500,
    "timeout": 408,  # its own; who waited too long for a seat gets 503 in app/api/respond.py
    "shutdown": 503,
    "cancelled": 409,
}
WORDS: Final[Mapping[FinishReason, str]] = {
    "error": "the generation failed; try again",
    "timeout": "the generation took longer than its timeout",
    "shutdown": "the server is going down; try again shortly",
    "cancelled": "the generation was cancelled",
}


def blocks(chunks: Sequence[bytes], before: Position, after: Position) -> bytes:
    """Who has only the first of them has not read the entries yet: their id comes with the last."""
    last = len(chunks) - 1
    places = [before] * last + [after]
    return b"".join(block(c, event_id=at) for c, at in zip(chunks, places, strict=True))


RETRY: Final = b"retry: %d\n" % frames.RETRY_MS


def resumed(position: Position) -> bytes:
    """Lines that stand before the next block: this reader has something already."""
    return RETRY + b"id: %b\n" % str(position).encode()


@dataclass(slots=True)
class OpenAIDialect:
    """One tape for one reader: what all three formats say beside their frames."""

    tape: Tape

    def gap(self, gap: Gap) -> bytes:
        """These formats have no word for a gap, and to go on without one would hide it."""
        message = f"entries {gap.first} to {gap.last} are kept no longer; ask again"
        error = orjson.dumps(error_data(410, message, "gap"))
        return block(error, event_id=Position(self.tape.id, gap.last))

    def status(self, progress: Progress) -> bytes:
        data = one_line(orjson.dumps(frames.status_data(progress)))
        return _comment(f"status {data.decode()}")

    def heartbeat(self, tape: Tape) -> bytes:
        return _comment(frames.state_of(tape))


class Chunks:
    """Writes chunks of one choice each; all but the choice is the same in every one."""

    def __init__(self, head: Object, *, include_usage: bool) -> None:
        self._head = head
        self._before = orjson.dumps(head)[:-1] + b',"choices":['
        self._after = b'],"usage":null}' if include_usage else b"]}"

    def chunk(self, choice: Object) -> bytes:
        return self._before + orjson.dumps(choice) + self._after

    def usage(self, tape: Tape) -> bytes:
        """The last one, where it was asked for: no choice, and what all together took."""
        return orjson.dumps(self._head | {"choices": [], "usage": usage_data(tape)})


def _comment(text: str) -> bytes:
    return f": {text}\n".encode()


def failure(end: End) -> Object | None:
    """What went wrong, as an error object; None where nothing did."""
    reason = end.finish_reason
    if reason not in STATUS:
        return None
    return error_data(STATUS[reason], end.error or WORDS[reason], reason)


def error_data(status: int, message: str, code: str) -> Object:
    error = {"type": error_type(status), "message": message, "param": None, "code": code}
    return {"error": error}


def usage_data(tape: Tape) -> Object:
    usage = tape.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprob_data(logprob: Logprob, token_bytes: TokenBytes) -> Object:
    """As chats and responses have it; only bytes tell the parts of a code point apart."""
    return _one(logprob, token_bytes) | {
        "top_logprobs": [_one(top, token_bytes) for top in logprob.top]
    }


def _one(token: Logprob | TopLogprob, token_bytes: TokenBytes) -> Object:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token_bytes(token.token_id)),
    }


def logprobs_of(logprobs: Sequence[Logprob | None], token_bytes: TokenBytes) -> list[Object]:
    return [logprob_data(logprob, token_bytes) for logprob in logprobs if logprob]
