"""Bytes of a text/event-stream -> events, as the HTML standard reads them (section 9.2.6).

No connection here: tickertape/client.py feeds it and decides when to connect again.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_END_OF_LINE = re.compile(r"\r\n|\n|\r")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """`id` is the last one that the stream has set, by this event or one before."""

    event: str
    data: str
    id: str


class EventStreamParser:
    """Feed it what arrives, cut anywhere. An event that the stream breaks off is never given.

    `last_event_id` is what to send as Last-Event-ID when connecting again, `retry` the milliseconds
    to wait before, where the stream has named any.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_cr = False  # a line feed that comes now belongs to the line end before it
        self._line: list[str] = []  # what there is of the line that is not complete
        self._event = ""
        self._data: list[str] = []
        self._id = ""  # counts with the empty line that ends its block

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that this chunk completes."""
        for line in self._lines(self._decoder.decode(chunk)):
            if line:
                self._field(line)
            elif event := self._dispatch():
                yield event

    def _lines(self, text: str) -> Iterator[str]:
        if not text:
            return
        if self._at_start:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        first, *others = _END_OF_LINE.split(text)
        self._line.append(first)
        for begun in others:
            yield "".join(self._line)
            self._line = [begun]

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if _DIGITS.fullmatch(value):
                self.retry = int(value.lstrip("0")[:9] or "0")

    def _dispatch(self) -> ServerSentEvent | None:
        """The event that an empty line ends; None for a block without data."""
        data, self._data = self._data, []
        event, self._event = self._event, ""
        self.last_event_id = self._id
        if not data:
            return None
        return ServerSentEvent(event or "message", "\n".join(data), self.last_event_id)
