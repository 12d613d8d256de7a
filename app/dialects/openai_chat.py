"""Tape entries -> `chat.completion.chunk`s, and a whole tape -> a `chat.completion`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import orjson

from app.dialects import openai
from app.dialects.openai import Chunks, Object, Stream, TokenBytes, block
from app.dialects.runs import runs
from app.dialects.tool_calls import Arguments, Called, Piece, Said, ToolCallParser
from app.tapes.position import Position
from app.tapes.tape import End, Entry, Tape


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How a chat is to be shown: `tools` whether calls are to be found in what the model writes."""

    model: str
    token_bytes: TokenBytes
    tools: bool = False
    include_usage: bool = False

    def head(self, tape: Tape, kind: str) -> Object:
        return {
            "id": f"chatcmpl-{tape.id}",
            "object": kind,
            "created": int(tape.created),
            "model": self.model,
        }


@dataclass(slots=True)
class ChatStream(Stream):
    """The chunks of one tape for one reader."""

    form: ChatForm
    _parsers: list[ToolCallParser] = field(init=False)
    _chunks: Chunks = field(init=False)

    def __post_init__(self) -> None:
        self._parsers = [ToolCallParser() for _ in self.tape.choices]
        head = self.form.head(self.tape, "chat.completion.chunk")
        self._chunks = Chunks(head, include_usage=self.form.include_usage)

    def resume(self, entries: Sequence[Entry]) -> None:
        if self.form.tools:
            for entry in entries:
                list(self._parsers[entry.index].push(entry.text))

    def opening(self, position: Position) -> bytes:
        if position.entry:
            return openai.resumed(position)
        role = {"role": "assistant", "content": ""}
        chunks = [self._chunk(index, role) for index in range(len(self.tape.choices))]
        return openai.RETRY + b"".join(block(position, chunk) for chunk in chunks)

    def frames(self, tape_id: str, last: int, batch: Sequence[Entry | End]) -> bytes:
        out = b""
        for number, run in runs(last, batch):
            at = partial(Position, tape_id)
            if isinstance(run, End):
                out += self._end(run, at(number - 1), at(number))
            else:
                out += self._run(run, at(number))
        return out

    def _run(self, run: list[Entry], at: Position) -> bytes:
        """One chunk for the entries, or none: in two, a reader could have the first alone."""
        index = run[0].index
        logprobs = openai.logprobs_of([entry.logprob for entry in run], self.form.token_bytes)
        delta = self._delta(index, "".join(entry.text for entry in run))
        if logprobs and not delta:
            delta = {"content": ""}
        return block(at, self._chunk(index, delta, logprobs)) if delta else b""

    def _delta(self, index: int, text: str) -> Object:
        if not self.form.tools:
            return {"content": text} if text else {}
        return _delta(self._parsers[index].push(text), self.tape, index)

    def _end(self, end: End, before: Position, after: Position) -> bytes:
        """All choices' last chunks, then the usage where it was asked for."""
        if error := openai.failure(end):
            return openai.blocks([orjson.dumps(error), openai.DONE], before, after)
        chunks = [self._last(index, end) for index in range(len(end.reasons))]
        if self.form.include_usage:
            chunks.append(self._chunks.usage(self.tape))
        return openai.blocks([*chunks, openai.DONE], before, after)

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


def completion(tape: Tape, end: End, form: ChatForm) -> Object:
    """The whole answer."""
    return form.head(tape, "chat.completion") | {
        "choices": [_choice(tape, end, index, form) for index in range(len(end.reasons))],
        "usage": openai.usage_data(tape),
    }


def _choice(tape: Tape, end: End, index: int, form: ChatForm) -> Object:
    message, called = _message(tape, index, form)
    entries = [entry for entry in tape.entries if entry.index == index]
    logprobs = openai.logprobs_of([entry.logprob for entry in entries], form.token_bytes)
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": _reason(end, index, called),
    }


def _reason(end: End, index: int, called: bool) -> str:
    reason = end.reasons[index]
    return "tool_calls" if called and reason == "stop" else reason


def _message(tape: Tape, index: int, form: ChatForm) -> tuple[Object, bool]:
    """The assistant's turn, and whether it calls a tool."""
    text = tape.text_of(index)
    message: Object = {"role": "assistant", "content": text, "refusal": None}
    if not form.tools:
        return message, False
    parser = ToolCallParser()
    said = _delta([*parser.push(text), *parser.finish()], tape, index)
    if not parser.num_calls:
        return message, False
    calls = [{k: v for k, v in call.items() if k != "index"} for call in said["tool_calls"]]
    return message | {"content": said.get("content"), "tool_calls": calls}, True
