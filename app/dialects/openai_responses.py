"""Tape entries -> the events of a response, and a tape -> a response as it is now.

Every event has a `sequence_number`, which depends on the tape alone: a reader that names the last
one it has goes on with the next, whatever was lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.dialects import openai
from app.dialects.openai import Object, Stream, TokenBytes, block
from app.dialects.runs import runs
from app.tapes.position import Position
from app.tapes.tape import End, Entry, Tape

ITEM_PREFIX: Final = "msg_"  # before a tape's id: the one message that a response puts out

_FINAL = {"completed": "completed", "failed": "failed"}  # all others end with response.incomplete


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """What a response tells of its request; kept with the tape, which may be retrieved later."""

    model: str
    token_bytes: TokenBytes
    conversation: Sequence[Mapping[str, Any]]  # messages up to the answer, without instructions
    request: Object  # the fields that are told as they were asked for
    stored: bool = True


@dataclass(slots=True)
class ResponseStream(Stream):
    """The events of one tape for one reader, from after `starting_after` on."""

    form: ResponseForm
    starting_after: int = -1
    _number: int = 0  # of the next event

    def resume(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._begin()
            for entry in entries:
                self._delta(entry)

    def opening(self, position: Position) -> bytes:
        """Four events that say nothing yet, each with the position at the tape's beginning."""
        if position.entry:
            return openai.resumed(position)
        return openai.RETRY + b"".join(
            block(position, data, event) for event, data in self._begin()
        )

    def _begin(self) -> list[tuple[str, bytes]]:
        item = _item(self.tape, "", [], "in_progress") | {"content": []}
        begun = response(self.tape, self.form, as_begun=True)
        return [
            *self._event("response.created", response=begun),
            *self._event("response.in_progress", response=begun),
            *self._event("response.output_item.added", output_index=0, item=item),
            *self._event("response.content_part.added", **self._place(), part=_part("", [])),
        ]

    def frames(self, tape_id: str, last: int, batch: Sequence[Entry | End]) -> bytes:
        out = b""
        for number, run in runs(last, batch):
            if isinstance(run, End):
                out += self._end(Position(tape_id, number - 1), Position(tape_id, number))
                continue
            for at, entry in enumerate(run, start=number - len(run) + 1):
                for event, data in self._delta(entry):
                    out += block(Position(tape_id, at), data, event)
        return out

    def _delta(self, entry: Entry) -> list[tuple[str, bytes]]:
        """One event for each entry, also where several come at once: numbers must not depend on
        how fast somebody reads."""
        if not entry.text and not entry.logprob:
            return []
        return self._event(
            "response.output_text.delta",
            **self._place(),
            delta=entry.text,
            logprobs=openai.logprobs_of([entry.logprob], self.form.token_bytes),
        )

    def _end(self, before: Position, after: Position) -> bytes:
        text, logprobs = self.tape.text, _logprobs(self.tape, self.form)
        now = response(self.tape, self.form)
        final = _FINAL.get(now["status"], "incomplete")
        events = [
            *self._event(
                "response.output_text.done", **self._place(), text=text, logprobs=logprobs
            ),
            *self._event("response.content_part.done", **self._place(), part=_part(text, logprobs)),
            *self._event("response.output_item.done", output_index=0, item=now["output"][0]),
            *self._event(f"response.{final}", response=now),
        ]
        blocks = b"".join(block(before, data, event) for event, data in events)
        return blocks + block(after, openai.DONE)

    def _place(self) -> Object:
        return {"item_id": f"{ITEM_PREFIX}{self.tape.id}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> list[tuple[str, bytes]]:
        """The next event; nothing when this reader has it already."""
        number, self._number = self._number, self._number + 1
        if number <= self.starting_after:
            return []
        data = {"type": kind, "sequence_number": number} | fields
        return [(kind, orjson.dumps(data))]


def response(tape: Tape, form: ResponseForm, *, as_begun: bool = False) -> Object:
    """The response as it is now, or as it was when it began."""
    end = None if as_begun else tape.end
    status = "in_progress" if as_begun else _status(tape)
    has_output = not as_begun and (tape.num_tokens or end)
    return {
        "id": f"resp_{tape.id}",
        "object": "response",
        "created_at": int(tape.created),
        "status": status,
        "error": _error(end),
        "incomplete_details": _incomplete(end),
        "model": form.model,
        "output": [_output(tape, form, status)] if has_output else [],
        "usage": _usage(tape) if end else None,
        **form.request,
    }


def _status(tape: Tape) -> str:
    if tape.end is None:
        return "queued" if tape.queue_ms is None else "in_progress"
    match tape.end.finish_reason:
        case "stop":
            return "completed"
        case "cancelled":
            return "cancelled"
        case "error" | "shutdown":
            return "failed"
        case _:
            return "incomplete"


def _error(end: End | None) -> Object | None:
    if end and end.finish_reason in ("error", "shutdown"):
        failure = openai.failure(end) or {}
        return {"code": "server_error", "message": failure["error"]["message"]}
    return None


def _incomplete(end: End | None) -> Object | None:
    return {"reason": "max_output_tokens"} if end and end.finish_reason == "length" else None


def _output(tape: Tape, form: ResponseForm, status: str) -> Object:
    own = status if status in ("in_progress", "completed") else "incomplete"
    return _item(tape, tape.text, _logprobs(tape, form), own)


def _item(tape: Tape, text: str, logprobs: list[Object], status: str) -> Object:
    return {
        "id": f"{ITEM_PREFIX}{tape.id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(text, logprobs)],
    }


def _part(text: str, logprobs: list[Object]) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprobs(tape: Tape, form: ResponseForm) -> list[Object]:
    return openai.logprobs_of([entry.logprob for entry in tape.entries], form.token_bytes)


def _usage(tape: Tape) -> Object:
    usage = tape.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
