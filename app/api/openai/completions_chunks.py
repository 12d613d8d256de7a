"""Tape entries -> `text_completion` chunks, and a whole tape -> a `text_completion`."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from app.api.json_pieces import LATER, entries_of, items, text_of, written
from app.api.openai import common
from app.api.openai.common import Chunks, Object, OpenAIDialect
from app.sse import block
from app.tapes.coalescing import runs
from app.tapes.event_id import Position
from app.tapes.tape import End, Entry, Tape
from model.protocol.messages import Logprob


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
class CompletionsDialect(OpenAIDialect):
    """The chunks of one tape for one reader."""

    form: CompletionForm
    _lengths: list[int] = field(init=False)  # characters of each choice so far
    _chunks: Chunks = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = [0] * len(self.tape.choices)
        head = self.form.head(self.tape)
        self._chunks = Chunks(head, include_usage=self.form.include_usage)

    @property
    def kind(self) -> Hashable:
        return "completion", self.form.include_usage

    @property
    def state(self) -> list[int]:
        return [*self._lengths]

    @state.setter
    def state(self, lengths: list[int]) -> None:
        self._lengths = [*lengths]

    def skip(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._lengths[entry.index] += len(entry.text)

    def opening(self, position: Position) -> bytes:
        """The prompts where they are wanted, or nothing: the first chunk has an id to resume at."""
        if position.entry:
            return common.resumed(position)
        echo = self.form.echo or [""]
        chunks = [self._chunk(index, text) for index, text in enumerate(echo)]
        return common.RETRY + b"".join(block(chunk, event_id=position) for chunk in chunks)

    def frames(self, tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
        out = b""
        for number, run in runs(last, entries):
            if chunk := self._run(run):
                out += block(chunk, event_id=Position(tape_id, number))
        return out

    def ending(self, tape_id: str, last: int, end: End) -> Iterator[bytes]:
        yield common.blocks(self._end(end), Position(tape_id, last - 1), Position(tape_id, last))

    def _run(self, run: list[Entry]) -> bytes | None:
        index = run[0].index
        text = "".join(entry.text for entry in run)
        logprobs = logprobs_data(run, self._lengths[index])
        self._lengths[index] += len(text)
        return self._chunk(index, text, logprobs) if text or logprobs else None

    def _end(self, end: End) -> list[bytes]:
        """All choices' last chunks, then the usage where it was asked for."""
        if error := common.failure(end):
            return [orjson.dumps(error), common.DONE]
        chunks = [self._chunk(n, "", reason=reason) for n, reason in enumerate(end.reasons)]
        if self.form.include_usage:
            chunks.append(self._chunks.usage(self.tape))
        return [*chunks, common.DONE]

    def _chunk(
        self, index: int, text: str, logprobs: Object | None = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._chunks.chunk(choice)


def completion(tape: Tape, end: End, form: CompletionForm) -> Iterator[bytes]:
    """The whole answer, in pieces."""
    choices = yield from entries_of(tape)
    answer = form.head(tape) | {
        "choices": [_choice(entries, end, n, form) for n, entries in enumerate(choices)],
        "usage": common.usage_data(tape),
    }
    yield from written(answer, _columns(choices))


def _choice(entries: Sequence[Entry], end: End, index: int, form: CompletionForm) -> Object:
    echo = form.echo[index] if form.echo else ""
    later = dict.fromkeys(("tokens", "token_logprobs", "top_logprobs", "text_offset"), LATER)
    return {
        "index": index,
        "text": echo + text_of(entries),
        "logprobs": later if _has_logprobs(entries) else None,
        "finish_reason": end.reasons[index],
    }


def _columns(choices: Sequence[Sequence[Entry]]) -> Iterator[Iterator[bytes]]:
    """The four lists of each choice that has logprobs."""
    for entries in choices:
        if _has_logprobs(entries):
            for show in (_tokens, _token_logprobs, _top_logprobs):
                yield items(entries, show)
            yield items(entries, _Offsets())


def _has_logprobs(entries: Sequence[Entry]) -> bool:
    return any(entry.logprob for entry in entries)


def logprobs_data(entries: Sequence[Entry], offset: int) -> Object | None:
    """Four lists of one length; `offset` is where the first entry begins in the choice's text."""
    if not _has_logprobs(entries):
        return None
    return {
        "tokens": _tokens(entries),
        "token_logprobs": _token_logprobs(entries),
        "top_logprobs": _top_logprobs(entries),
        "text_offset": _Offsets(offset)(entries),
    }


def _tokens(entries: Sequence[Entry]) -> list[str]:
    return [entry.logprob.token for entry in entries if entry.logprob]


def _token_logprobs(entries: Sequence[Entry]) -> list[float]:
    return [entry.logprob.logprob for entry in entries if entry.logprob]


def _top_logprobs(entries: Sequence[Entry]) -> list[dict[str, float]]:
    return [_by_text(entry.logprob) for entry in entries if entry.logprob]


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


@dataclass(slots=True)
class _Offsets:
    """Where each entry with logprobs begins in the text of its choice, page after page."""

    offset: int = 0

    def __call__(self, entries: Sequence[Entry]) -> list[int]:
        offsets = []
        for entry in entries:
            if entry.logprob:
                offsets.append(self.offset)
            self.offset += len(entry.text)
        return offsets
