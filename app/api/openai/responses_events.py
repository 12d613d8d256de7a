"""Tape entries -> the events of a response, and a tape -> a response as it is now.

Every event has a `sequence_number`, which depends on the tape alone: a reader that names the last
one it has goes on with the next, whatever was lost.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.api.json_pieces import LATER, entries_of, items, text_of, written
from app.api.openai import common
from app.api.openai.common import Object, OpenAIDialect, TokenBytes
from app.sse import END, block, head
from app.tapes.event_id import Position
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

    def logprobs(self, entries: Sequence[Entry]) -> list[Object]:
        return common.logprobs_of([entry.logprob for entry in entries], self.token_bytes)


@dataclass(slots=True)
class ResponsesDialect(OpenAIDialect):
    """The events of one tape for one reader, from after `starting_after` on."""

    form: ResponseForm
    starting_after: int = -1
    _number: int = 0  # of the next event

    @property
    def kind(self) -> Hashable:
        has_left_out = self._number <= self.starting_after  # until there, others get more
        return "response", self.starting_after if has_left_out else -1

    @property
    def state(self) -> int:
        return self._number

    @state.setter
    def state(self, number: int) -> None:
        self._number = number

    def skip(self, entries: Sequence[Entry]) -> None:
        if entries and not self._number:
            self._begin()
        self._number += sum(_is_told(entry) for entry in entries)

    def opening(self, position: Position) -> bytes:
        """Four events that say nothing yet, each with the position at the tape's beginning."""
        if position.entry:
            return common.resumed(position)
        return common.RETRY + b"".join(
            block(data, event=event, event_id=position) for event, data in self._begin()
        )

    def _begin(self) -> list[tuple[str, bytes]]:
        item = _item(self.tape, "", "in_progress") | {"content": []}
        begun = _response(self.tape, self.form, "in_progress", None, [])
        return [
            *self._event("response.created", response=begun),
            *self._event("response.in_progress", response=begun),
            *self._event("response.output_item.added", output_index=0, item=item),
            *self._event("response.content_part.added", **self._place(), part=_part("", [])),
        ]

    def frames(self, tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
        """One event for each entry, also where several come at once: numbers must not depend on
        how fast somebody reads."""
        return b"".join(
            block(data, event=event, event_id=Position(tape_id, at))
            for at, entry in enumerate(entries, start=last - len(entries) + 1)
            for event, data in self._delta(entry)
        )

    def _delta(self, entry: Entry) -> list[tuple[str, bytes]]:
        if not _is_told(entry):
            return []
        if self._number <= self.starting_after:
            self._number += 1
            return []
        return self._event(
            "response.output_text.delta",
            **self._place(),
            delta=entry.text,
            logprobs=self.form.logprobs([entry]),
        )

    def ending(self, tape_id: str, last: int, end: End) -> Iterator[bytes]:
        """Four events that each tell the whole text, and its log-probabilities, once more."""
        (entries, *_) = yield from entries_of(self.tape)
        before = Position(tape_id, last - 1)
        text, logged = text_of(entries), _logged(entries)
        now = _response(self.tape, self.form, _status(self.tape), end, entries)
        final = _FINAL.get(now["status"], "incomplete")
        for kind, fields in (
            ("response.output_text.done", self._place() | {"text": text, "logprobs": logged}),
            ("response.content_part.done", self._place() | {"part": _part(text, logged)}),
            ("response.output_item.done", {"output_index": 0, "item": now["output"][0]}),
            (f"response.{final}", {"response": now}),
        ):
            if data := self._numbered(kind, fields):
                yield head(event=kind, event_id=before)
                yield from written(data, [items(entries, self.form.logprobs)] if logged else [])
                yield END
        yield block(common.DONE, event_id=Position(tape_id, last))

    def _place(self) -> Object:
        return {"item_id": f"{ITEM_PREFIX}{self.tape.id}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> list[tuple[str, bytes]]:
        """The next event; nothing when this reader has it already."""
        data = self._numbered(kind, fields)
        return [(kind, orjson.dumps(data))] if data else []

    def _numbered(self, kind: str, fields: Object) -> Object | None:
        number, self._number = self._number, self._number + 1
        if number <= self.starting_after:
            return None
        return {"type": kind, "sequence_number": number} | fields


def _is_told(entry: Entry) -> bool:
    """Whether there is an event for it."""
    return bool(entry.text or entry.logprob)


def response(tape: Tape, form: ResponseForm) -> Iterator[bytes]:
    """The response as it is now, in pieces."""
    status, end = _status(tape), tape.end
    (entries, *_) = yield from entries_of(tape)
    now = _response(tape, form, status, end, entries)
    yield from written(now, [items(entries, form.logprobs)] if _logged(entries) else [])


def _response(
    tape: Tape, form: ResponseForm, status: str, end: End | None, entries: Sequence[Entry]
) -> Object:
    """With these entries as its output so far."""
    output = [_output(tape, entries, status)] if entries or end else []
    return {
        "id": f"resp_{tape.id}",
        "object": "response",
        "created_at": int(tape.created),
        "status": status,
        "error": _error(end),
        "incomplete_details": _incomplete(end),
        "model": form.model,
        "output": output,
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
        failure = common.failure(end) or {}
        return {"code": "server_error", "message": failure["error"]["message"]}
    return None


def _incomplete(end: End | None) -> Object | None:
    return {"reason": "max_output_tokens"} if end and end.finish_reason == "length" else None


def _output(tape: Tape, entries: Sequence[Entry], status: str) -> Object:
    own = status if status in ("in_progress", "completed") else "incomplete"
    return _item(tape, text_of(entries), own, _logged(entries))


def _item(tape: Tape, text: str, status: str, logprobs: Any = ()) -> Object:
    return {
        "id": f"{ITEM_PREFIX}{tape.id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(text, logprobs)],
    }


def _part(text: str, logprobs: Any) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logged(entries: Sequence[Entry]) -> Any:
    """Stands for their log-probabilities, which may be many."""
    return LATER if any(entry.logprob for entry in entries) else []


def _usage(tape: Tape) -> Object:
    usage = tape.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
