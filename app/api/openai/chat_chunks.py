"""Tape entries -> `chat.completion.chunk`s, and a whole tape -> a `chat.completion`."""

import copy
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from app.api.json_pieces import LATER, entries_of, items, text_of, written
from app.api.openai import common
from app.api.openai.common import Chunks, Object, OpenAIDialect, TokenBytes
from app.sse import block
from app.tapes.coalescing import runs
from app.tapes.event_id import Position
from app.tapes.tape import End, Entry, Tape, pages
from model.text.tool_calls import Arguments, Called, Piece, Said, ToolCallParser


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How a chat is to be shown: `tools` whether calls are to be found in what the model writes."""

    model: str
    token_bytes: TokenBytes
    tools: bool = False
    include_usage: bool = False

    def logprobs(self, entries: Sequence[Entry]) -> list[Object]:
        return common.logprobs_of([entry.logprob for entry in entries], self.token_bytes)

    def head(self, tape: Tape, kind: str) -> Object:
        return {
            "id": f"chatcmpl-{tape.id}",
            "object": kind,
            "created": int(tape.created),
            "model": self.model,
        }


@dataclass(slots=True)
class ChatDialect(OpenAIDialect):
    """The chunks of one tape for one reader."""

    form: ChatForm
    _parsers: list[ToolCallParser] = field(init=False)
    _chunks: Chunks = field(init=False)

    def __post_init__(self) -> None:
        self._parsers = [ToolCallParser() for _ in self.tape.choices]
        head = self.form.head(self.tape, "chat.completion.chunk")
        self._chunks = Chunks(head, include_usage=self.form.include_usage)

    @property
    def kind(self) -> Hashable:
        return "chat", self.form.tools, self.form.include_usage

    @property
    def state(self) -> list[ToolCallParser] | None:
        return copy.deepcopy(self._parsers) if self.form.tools else None

    @state.setter
    def state(self, parsers: list[ToolCallParser] | None) -> None:
        if parsers:
            self._parsers = copy.deepcopy(parsers)

    def skip(self, entries: Sequence[Entry]) -> None:
        if self.form.tools:
            for entry in entries:
                list(self._parsers[entry.index].push(entry.text))

    def opening(self, position: Position) -> bytes:
        if position.entry:
            return common.resumed(position)
        role = {"role": "assistant", "content": ""}
        chunks = [self._chunk(index, role) for index in range(len(self.tape.choices))]
        return common.RETRY + b"".join(block(chunk, event_id=position) for chunk in chunks)

    def frames(self, tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
        return b"".join(
            self._run(run, Position(tape_id, number)) for number, run in runs(last, entries)
        )

    def _run(self, run: list[Entry], at: Position) -> bytes:
        """One chunk for the entries, or none: in two, a reader could have the first alone."""
        index = run[0].index
        logprobs = self.form.logprobs(run)
        delta = self._delta(index, text_of(run))
        if logprobs and not delta:
            delta = {"content": ""}
        return block(self._chunk(index, delta, logprobs), event_id=at) if delta else b""

    def _delta(self, index: int, text: str) -> Object:
        if not self.form.tools:
            return {"content": text} if text else {}
        return _delta(self._parsers[index].push(text), self.tape, index)

    def ending(self, tape_id: str, last: int, end: End) -> Iterator[bytes]:
        yield common.blocks(self._end(end), Position(tape_id, last - 1), Position(tape_id, last))

    def _end(self, end: End) -> list[bytes]:
        """All choices' last chunks, then the usage where it was asked for."""
        if error := common.failure(end):
            return [orjson.dumps(error), common.DONE]
        chunks = [self._last(index, end) for index in range(len(end.reasons))]
        if self.form.include_usage:
            chunks.append(self._chunks.usage(self.tape))
        return [*chunks, common.DONE]

    def _last(self, index: int, end: End) -> bytes:
        """With what was held back, which might have become a call."""
        parser = self._parsers[index]
        left = _delta(parser.finish(), self.tape, index)
        return self._chunk(index, left, reason=_reason(end, index, bool(parser.num_calls)))

    def _chunk(
        self,
        index: int,
        delta: Object,
        logprobs: list[Object] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        return self._chunks.chunk(choice)


def _delta(pieces: Iterable[Piece], tape: Tape, index: int) -> Object:
    """What a chunk adds to the message; clients put calls together by their numbers."""
    said = ""
    calls: dict[int, Object] = {}
    for piece in pieces:
        match piece:
            case Said(text):
                said += text
            case Called(number, name):
                head = {"id": _call_id(tape, index, number), "type": "function"}
                calls[number] = {"index": number, **head, "function": _function(name)}
            case Arguments(number, text):
                call = calls.setdefault(number, {"index": number, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    delta: Object = {"content": said} if said else {}
    return delta | {"tool_calls": [*calls.values()]} if calls else delta


def _function(name: str) -> Object:
    return {"name": name, "arguments": ""}


def _call_id(tape: Tape, index: int, number: int) -> str:
    return f"call_{tape.id}_{index}_{number}"


def completion(tape: Tape, end: End, form: ChatForm) -> Iterator[bytes]:
    """The whole answer, in pieces."""
    choices = yield from entries_of(tape)
    shown = []
    for index, entries in enumerate(choices):
        shown.append((yield from _choice(tape, entries, end, index, form)))
    answer = form.head(tape, "chat.completion") | {
        "choices": shown,
        "usage": common.usage_data(tape),
    }
    logged = [entries for entries in choices if _has_logprobs(entries)]
    yield from written(answer, (items(entries, form.logprobs) for entries in logged))


def _choice(
    tape: Tape, entries: Sequence[Entry], end: End, index: int, form: ChatForm
) -> Generator[bytes, None, Object]:
    message, called = yield from _message(tape, entries, index, form)
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": LATER, "refusal": None} if _has_logprobs(entries) else None,
        "finish_reason": _reason(end, index, called),
    }


def _has_logprobs(entries: Sequence[Entry]) -> bool:
    return any(entry.logprob for entry in entries)


def _reason(end: End, index: int, called: bool) -> str:
    reason = end.reasons[index]
    return "tool_calls" if called and reason == "stop" else reason


def _message(
    tape: Tape, entries: Sequence[Entry], index: int, form: ChatForm
) -> Generator[bytes, None, tuple[Object, bool]]:
    """The assistant's turn, and whether it calls a tool."""
    text = text_of(entries)
    message: Object = {"role": "assistant", "content": text, "refusal": None}
    if not form.tools:
        return message, False
    parser = ToolCallParser()
    pieces: list[Piece] = []
    for number, page in enumerate(pages(entries)):
        if number:
            yield b""
        pieces += parser.push(text_of(page))
    said = _delta([*pieces, *parser.finish()], tape, index)
    if not parser.num_calls:
        return message, False
    calls = [{k: v for k, v in call.items() if k != "index"} for call in said["tool_calls"]]
    return message | {"content": said.get("content"), "tool_calls": calls}, True
