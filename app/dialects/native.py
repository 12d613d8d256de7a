"""Tape entries -> native SSE frames. Pure functions: no sockets, no clocks."""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from app.dialects.runs import runs
from app.tapes.position import Position
from app.tapes.tape import End, Entry, Gap, Progress, Tape
from model.messages import Logprob, Prefilling, Queued

RETRY_MS = 1000


def resume(entries: Sequence[Entry]) -> None:
    """Frames say all themselves: what came before makes no difference."""


def opening(position: Position) -> bytes:
    """The block without data that every stream begins with: from here on a client can resume."""
    return f"retry: {RETRY_MS}\nid: {position}\n\n".encode()


def status(progress: Progress) -> bytes:
    """What goes on before the next entry. It has no id, so it never moves the cursor."""
    return b"event: status\ndata: %b\n\n" % orjson.dumps(status_data(progress))


def status_data(progress: Progress) -> dict[str, Any]:
    match progress:
        case Queued(position=position):
            return {"state": "queued", "position": position}
        case Prefilling(done=done, total=total):
            return {"state": "prefill", "done": done, "total": total}
        case _:
            return {"state": "recovering"}


def gap(gap: Gap) -> bytes:
    """What is missing. It carries no entry, so it has no id."""
    return b"event: gap\ndata: %b\n\n" % orjson.dumps({"from": gap.first, "to": gap.last})


def heartbeat(tape: Tape) -> bytes:
    """A comment: tells a stalled generation from a silent connection."""
    return f": {state_of(tape)}\n\n".encode()


def state_of(tape: Tape) -> str:
    age = tape.last_token_age
    said = "" if age is None else f" last_token_age_s={age:.3f}"
    return f"ping state={tape.status}{said}"


def frames(tape_id: str, last: int, batch: Sequence[Entry | End]) -> bytes:
    """The frames for a batch whose last entry has the number `last`.

    All tokens of a choice share one frame: a reader that keeps up gets one token a frame, one that
    fell behind gets what it missed at once. The id is that of the last entry that a frame carries.
    """
    first = batch[0]
    if len(batch) == 1 and isinstance(first, Entry) and not first.logprob:
        return _token_frame(tape_id, last, first)
    return b"".join(
        _frame("done", f"{tape_id}:{number}", done_data(run))
        if isinstance(run, End)
        else _frame("token", f"{tape_id}:{number}", token_data(run))
        for number, run in runs(last, batch)
    )


def _token_frame(tape_id: str, number: int, entry: Entry) -> bytes:
    """The same bytes as `_frame` of `token_data`, in a sixth of the time: most frames are this."""
    return b'id: %b:%d\nevent: token\ndata: {"text":%b,"token_ids":[%d],"index":%d}\n\n' % (
        tape_id.encode(),
        number,
        orjson.dumps(entry.text),
        entry.token_id,
        entry.index,
    )


def token_data(entries: Sequence[Entry]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "text": "".join(entry.text for entry in entries),
        "token_ids": [entry.token_id for entry in entries],
        "index": entries[0].index,
    }
    logprobs = logprobs_data(entries)
    return data | ({"logprobs": logprobs} if logprobs else {})


def logprobs_data(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One object per entry that has them."""
    return [_logprob(entry.logprob) for entry in entries if entry.logprob]


def _logprob(logprob: Logprob) -> dict[str, Any]:
    chosen = {
        "token_id": logprob.token_id,
        "token": logprob.token,
        "logprob": logprob.logprob,
    }
    return chosen | {"top": [msgspec.structs.asdict(top) for top in logprob.top]}


def done_data(end: End) -> dict[str, Any]:
    data: dict[str, Any] = {
        "finish_reason": end.finish_reason,
        "usage": end.usage,
        "timings": end.timings,
    }
    if end.error:
        kind = "timeout_error" if end.finish_reason == "timeout" else "server_error"
        data["error"] = {"type": kind, "message": end.error, "param": None, "code": None}
    return data


def _frame(event: str, frame_id: str, data: dict[str, Any]) -> bytes:
    # orjson escapes every control character, so the data is always one line.
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        frame_id.encode(),
        event.encode(),
        orjson.dumps(data),
    )
