"""What is logged: one line for each thing, as JSON or for people, whatever a client sends.

Modules log with the standard library, fields in `extra`; here lines are made of it. Nothing that
is asked for is in them, and no key, only the beginning of its SHA-256.
"""

import json
import logging
import logging.config
import sys
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.tapes.observer import Observer
from app.tapes.tape import Tape

logger = logging.getLogger("tickertape.tapes")

Form = Literal["auto", "json", "text"]

# uvicorn says the same in colours; and warns of what app/sockets/http_protocol.py tells more of.
_UNWANTED = ("color_message", "_record", "_from_structlog", "_ray_timestamp_ns")
_TOLD_BETTER = "Invalid HTTP request received."
# The banner says more to a person.
_OF_UVICORN = (
    "Started server process",
    "Waiting for application startup",
    "Application startup complete",
    "Uvicorn running on",
    "Waiting for application shutdown",
    "Application shutdown complete",
)


def configure(level: str, form: Form = "auto") -> None:
    """Write every line of ours, of uvicorn and of other libraries to stderr.

    For people on a terminal, as JSON elsewhere, unless `form` says which.
    """
    person = for_a_person(form)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(as_text=person or form == "text", on_terminal=person))
    unwanted = (_TOLD_BETTER, *_OF_UVICORN) if person else (_TOLD_BETTER,)
    handler.addFilter(lambda record: not str(record.msg).startswith(unwanted))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    for name in ("tickertape", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def for_a_person(form: Form) -> bool:
    """Whether a person at a terminal reads the log."""
    return form != "json" and sys.stderr.isatty()


def formatter(*, as_text: bool, on_terminal: bool = False) -> logging.Formatter:
    """One line for each record; only a traceback has more, and only for people.

    Lines on a terminal are short and coloured.
    """
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _clock() if on_terminal else structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ],
        processors=[_without_unwanted, *(_for_people(on_terminal) if as_text else _as_json())],
    )


def _clock() -> Processor:
    """The hour is enough for who sits before it."""
    return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)


def _for_people(on_terminal: bool) -> Iterable[Processor]:
    console = structlog.dev.ConsoleRenderer(
        colors=on_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )
    return (_escaped, _short, console) if on_terminal else (_escaped, console)


def _short(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Of a request what fits into one line of a terminal; other lines lose their logger's name."""
    told = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    if event.get("logger") != "tickertape.requests":
        return {name: value for name, value in event.items() if name != "logger"}
    return told | {"event": request_line(event)}


def request_line(event: EventDict) -> str:
    """Such as `POST /generate 200 in 1.24 s, 34 tokens, stop`."""
    where = event.get("path") or event.get("route")
    line = f"{event.get('method')} {where} {event.get('status')} in {_duration(event)}"
    if event.get("tape"):
        line += f", {event.get('completion_tokens')} tokens, {event.get('finish_reason') or 'left'}"
        line += f", {event.get('tape')}"
    return line


def _duration(event: EventDict) -> str:
    milliseconds = float(event.get("duration_ms") or 0)
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def _as_json() -> Iterable[Processor]:
    return (_first_things_first, _as_line)


def _without_unwanted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: value for name, value in event.items() if name not in _UNWANTED}


def _first_things_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    first = ("timestamp", "level", "logger", "event")
    return {name: event[name] for name in first if name in event} | dict(event)


def _as_line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """ASCII only. JSON lets DEL stand, a terminal does not."""
    return json.dumps(event, default=str).replace("\x7f", "\\u007f")


def _escaped(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _printable(name, value) for name, value in event.items()}


def _printable(name: str, value: object) -> object:
    if isinstance(value, int | float | None):
        return value
    if name == "exception":  # its own lines stay
        return "\n".join(map(escape, str(value).split("\n")))
    return escape(str(value))


def escape(text: str) -> str:
    r"""Line ends, ESC and the like as \n, \x1b: nothing can start a line or colour it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def of_tape(tape: Tape) -> dict[str, Any]:
    """What there is to say of a tape, as far as it has come."""
    usage, timings = tape.usage, tape.timings
    return {
        "tape": tape.id,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "queue_ms": _rounded(timings.queue_ms),
        "ttft_ms": _rounded(timings.ttft_ms),
        "itl_p99_ms": _rounded(tape.itl_p99_ms),
        "finish_reason": tape.end.finish_reason if tape.end else None,
        "resumes": tape.resumes,
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


class TapeLog(Observer):
    """A line for each tape that ends when nobody reads it: no request's line tells of that end."""

    def ended(self, tape: Tape, *, attended: bool) -> None:
        if not attended:
            told = of_tape(tape) | ({"key": tape.owner} if tape.owner else {})
            logger.info("generation", extra=told)
