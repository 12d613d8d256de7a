"""Tape entries -> `text_completion` chunks, and a whole tape -> a `text_completion`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from app.dialects import openai
from app.dialects.openai import Chunks, Object, Stream, block
from app.dialects.runs import runs
from app.tapes.position import Position
from app.tapes.tape import End, Entry, Tape
from model.messages import Logprob


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """How a completion is to be shown; `echo` has what each choice's text begins with."""

    model: str
    echo: Sequence[str] = ()
    include_usage: bool = False

    def head(self, tape: Tape) -> Object:
        return {
            "id": f"cmpl-{tape.id}",
            "object": "text_completion",
            "created": int(tape.created),
            "model": self.model,
        }


@dataclass(slots=True)
class CompletionStream(Stream):
    """The chunks of one tape for one reader."""

    form: CompletionForm
    _lengths: list[int] = field(init=False)  # characters of each choice so far
    _chunks: Chunks = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = [0] * len(self.tape.choices)
        head = self.form.head(self.tape)
        self._chunks = Chunks(head, include_usage=self.form.include_usage)

    def resume(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._lengths[entry.index] += len(entry.text)

    def opening(self, position: Position) -> bytes:
        """The prompts where they are wanted, or nothing: the first chunk has an id to resume at."""
        if position.entry:
            return openai.resumed(position)
        echo = self.form.echo or [""]
        chunks = [self._chunk(index, text) for index, text in enumerate(echo)]
        return openai.RETRY + b"".join(block(position, chunk) for chunk in chunks)

    def frames(self, tape_id: str, last: int, batch: Sequence[Entry | End]) -> bytes:
        out = b""
        for number, run in runs(last, batch):
            at = Position(tape_id, number)
            if isinstance(run, End):
                out += openai.blocks(self._end(run), Position(tape_id, number - 1), at)
            elif chunk := self._run(run):
                out += block(at, chunk)
        return out

    def _run(self, run: list[Entry]) -> bytes | None:
        index = run[0].index
        text = "".join(entry.text for entry in run)
        logprobs = logprobs_data(run, self._lengths[index])
        self._lengths[index] += len(text)
        return self._chunk(index, text, logprobs) if text or logprobs else None

    def _end(self, end: End) -> list[bytes]:
        """All choices' last chunks, then the usage where it was asked for."""
        if error := openai.failure(end):
            return [orjson.dumps(error), openai.DONE]
        chunks = [self._chunk(n, "", reason=reason) for n, reason in enumerate(end.reasons)]
        if self.form.include_usage:
            chunks.append(self._chunks.usage(self.tape))
        return [*chunks, openai.DONE]

    def _chunk(
        self, index: int, text: str, logprobs: Object | None = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._chunks.chunk(choice)


def completion(tape: Tape, end: End, form: CompletionForm) -> Object:
    """The whole answer."""
    return form.head(tape) | {
        "choices": [_choice(tape, end, index, form) for index in range(len(end.reasons))],
        "usage": openai.usage_data(tape),
    }


def _choice(tape: Tape, end: End, index: int, form: CompletionForm) -> Object:
    echo = form.echo[index] if form.echo else ""
    entries = [entry for entry in tape.entries if entry.index == index]
    return {
        "index": index,
        "text": echo + tape.text_of(index),
        "logprobs": logprobs_data(entries, 0),
        "finish_reason": end.reasons[index],
    }


def logprobs_data(entries: Sequence[Entry], offset: int) -> Object | None:
    """Four lists of one length; `offset` is where the first entry begins in the choice's text."""
    logged: list[tuple[int, Logprob]] = []
    for entry in entries:
        if entry.logprob:
            logged.append((offset, entry.logprob))
        offset += len(entry.text)
    if not logged:
        return None
    return {
        "tokens": [logprob.token for _, logprob in logged],
        "token_logprobs": [logprob.logprob for _, logprob in logged],
        "top_logprobs": [_by_text(logprob) for _, logprob in logged],
        "text_offset": [offset for offset, _ in logged],
    }


def _by_text(logprob: Logprob) -> dict[str, float]:
    """The candidates and the token itself, likeliest first; of those with one text, the likeliest.

    Different tokens may have one text: parts of characters do.
    """
    pairs = [(one.token, one.logprob) for one in logprob.top]
    pairs.append((logprob.token, logprob.logprob))
    best: dict[str, float] = {}
    for text, value in sorted(pairs, key=lambda pair: -pair[1]):
        best.setdefault(text, value)
    return best
