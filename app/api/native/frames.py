"""Tape entries -> native SSE frames. Pure functions: no sockets, no clocks."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from app.api.json_pieces import LATER, entries_of, items, text_of, written
from app.sse import block, one_line
from app.tapes.coalescing import runs
from app.tapes.event_id import Position
from app.tapes.heads import Mark
from app.tapes.tape import End, Entry, Gap, Progress, Tape
from model.protocol.messages import Logprob, Prefilling, Queued

RETRY_MS = 1000

# Frames say all themselves: what came before makes no difference, and all readers get the same.
kind = "native"
state: Any = None


def skip(entries: Sequence[Entry]) -> None:
    """Nothing to be done."""


def opening(position: Position) -> bytes:
    """The block without data that every stream begins with: from here on a client can resume."""
    return f"retry: {RETRY_MS}\nid: {position}\n\n".encode()


def status(progress: Progress) -> bytes:
    """What goes on before the next entry. It has no id, so it never moves the cursor."""
    return block(orjson.dumps(status_data(progress)), event="status")


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
    return block(orjson.dumps({"from": gap.first, "to": gap.last}), event="gap")


def heartbeat(tape: Tape) -> bytes:
    """A comment: tells a stalled generation from a silent connection."""
    return f": {state_of(tape)}\n\n".encode()


def state_of(tape: Tape) -> str:
    age = tape.last_token_age
    said = "" if age is None else f" last_token_age_s={age:.3f}"
    return f"ping state={tape.status}{said}"


def frames(tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
    """The frames for entries of which the last has the number `last`.

    All tokens of a choice share one frame: a reader that keeps up gets one token a frame, one that
    fell behind gets what it missed at once. The id is that of the last entry that a frame carries.
    """
    if len(entries) == 1 and not entries[0].logprob:
        return _token_frame(tape_id, last, entries[0])
    return b"".join(
        _frame("token", f"{tape_id}:{number}", token_data(run))
        for number, run in runs(last, entries)
    )


def ending(tape_id: str, last: int, end: End) -> Iterator[bytes]:
    """The terminal frame, of the entry with the number `last`."""
    yield _frame("done", f"{tape_id}:{last}", done_data(end))


def _token_frame(tape_id: str, number: int, entry: Entry) -> bytes:
    """The same bytes as `_frame` of `token_data`, in a sixth of the time: most frames are this."""
    return b'id: %b:%d\nevent: token\ndata: {"text":%b,"token_ids":[%d],"index":%d}\n\n' % (
        tape_id.encode(),
        number,
        one_line(orjson.dumps(entry.text)),
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
    if end.note:
        data["note"] = end.note
    if end.error:
        kind = "timeout_error" if end.finish_reason == "timeout" else "server_error"
        data["error"] = {"type": kind, "message": end.error, "param": None, "code": None}
    return data


def answer(tape: Tape, end: End) -> Iterator[bytes]:
    """The whole answer, in pieces."""
    (entries,) = yield from entries_of(tape)
    has_logprobs = any(entry.logprob for entry in entries)
    data: dict[str, Any] = {
        "generated_text": text_of(entries),
        "finish_reason": end.finish_reason,
        "usage": end.usage,
        "timings": end.timings,
        "tape": tape.id,
    }
    if end.note:
        data["note"] = end.note
    later = {"logprobs": LATER} if has_logprobs else {}
    yield from written(data | later, [items(entries, logprobs_data)] if later else [])


def snapshot(tape: Tape) -> Iterator[bytes]:
    """The tape as it is now, in pieces."""
    data: dict[str, Any] = {
        "tape": tape.id,
        "status": tape.status,
        "generated_text": "",
        "last_entry": tape.last,
        "finish_reason": tape.end.finish_reason if tape.end else None,
        "usage": tape.usage,
        "timings": tape.timings,
    }
    if tape.parent:
        data |= {"parent": tape.parent, "forked_at": tape.forked_at}
    if tape.num_dropped:
        data["gap"] = {"from": 1, "to": tape.num_dropped}
    first, *_ = yield from entries_of(tape)
    data["generated_text"] = text_of(first)
    yield from written(data)


def heads(tape: Tape) -> dict[str, Any]:
    """At most a few thousand readers, and the newest marks."""
    now = time.monotonic()
    return {
        "status": tape.status,
        "last_entry": tape.last,
        "readers": [{"reader": head.reader, "entry": head.entry} for head in tape.heads.reading],
        "marks": [_mark(mark, now) for mark in tape.heads.marks],
    }


def _mark(mark: Mark, now: float) -> dict[str, Any]:
    about = {"reader": mark.reader, "replayed": mark.replayed}
    return {
        "kind": mark.kind,
        "entry": mark.entry,
        **{name: value for name, value in about.items() if value is not None},
        "seconds_ago": round(now - mark.at, 3),
    }


def _frame(event: str, frame_id: str, data: dict[str, Any]) -> bytes:
    return block(orjson.dumps(data), event=event, event_id=frame_id)
