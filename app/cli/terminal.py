"""What commands share: notes and faults on stderr, answers and tables on stdout."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.console import Console
from rich.status import Status as Spinner
from rich.text import Text

from tickertape import Done, Event, Status, Token

notes = Console(stderr=True, highlight=False)


def say(fault: str) -> None:
    """One line in red that says what is wrong and what to do."""
    notes.print(f"tickertape: {fault}", style="red", markup=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """One line beside the answer, in grey."""
    notes.print(text, style="dim", markup=False, emoji=False, soft_wrap=True)


def run(work: Coroutine[Any, Any, object]) -> None:
    """Until it is done, interrupted, or nobody reads what it types; then as a shell expects it."""
    with ends_as_a_shell_expects():
        asyncio.run(work)


@contextlib.contextmanager
def ends_as_a_shell_expects() -> Iterator[None]:
    """Leave the process when the block is interrupted or cannot write."""
    try:
        yield
    except KeyboardInterrupt:
        _leave(130)  # 128 + SIGINT
    except BrokenPipeError:
        _leave(141)  # 128 + SIGPIPE
    except OSError as error:
        say(f"the output cannot be written: {error}")
        _leave(1)


def _leave(code: int) -> NoReturn:
    """At once: what is left to write has no reader."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A line with a spinner for as long as the block runs; only on a terminal."""
    if not notes.is_terminal:
        yield
        return
    with notes.status(Text(text)):
        yield


@dataclass
class Typed:
    """An answer as far as it was typed: it stays known when typing is interrupted."""

    text: str = ""
    done: Done | None = None

    async def type_all(self, stream: AsyncGenerator[Event, None]) -> None:
        """Type the tokens as they come, then one line of figures."""
        with _Progress() as progress:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, Status):
                        progress.show(event)
                    elif isinstance(event, Token):
                        progress.clear()
                        self.text += event.text
                        type_text(event.text)
                    elif isinstance(event, Done):
                        progress.clear()
                        self.done = event
                        type_text("\n")
                        note(figures(event))


class _Progress:
    """What happens before the first token, in one line that disappears; only on a terminal."""

    def __init__(self) -> None:
        self._spinner: Spinner | None = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, status: Status) -> None:
        if not notes.is_terminal:
            return
        if self._spinner is None:
            self._spinner = notes.status("")
            self._spinner.start()
        self._spinner.update(Text(_told(status)))

    def clear(self) -> None:
        if self._spinner:
            self._spinner.stop()
            self._spinner = None


def _told(status: Status) -> str:
    match status.state:
        case "queued":
            return f"waiting in the queue, position {status.details.get('position')}"
        case "prefill":
            done, total = status.details.get("done"), status.details.get("total")
            return f"reading the prompt, {done} of {total} tokens"
    return status.state


def type_text(text: str) -> None:
    """As it is: rich would replace :emoji: names, and click writes UTF-8 where ASCII is wanted.

    On a terminal a model's control characters are shown, not obeyed.
    """
    if sys.stdout:  # None where it was closed
        sys.stdout.write(_harmless(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _harmless(text: str) -> str:
    return "".join(
        c if c.isprintable() or c in "\n\t\u200d\ufe0f" else ascii(c)[1:-1] for c in text
    )


def figures(done: Done) -> str:
    parts = [f"{done.usage['completion_tokens']} tokens"]
    if (ttft := done.timings["ttft_ms"]) is not None:
        parts.append(f"first after {ttft:.0f} ms")
    if (rate := done.timings["tokens_per_second"]) is not None:
        parts.append(f"{rate:.0f} tokens/s")
    return " · ".join([*parts, done.finish_reason])


def size(nbytes: float) -> str:
    """'145 MB': in powers of ten, as shops and download pages count."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their cells: the last one may run over, nothing is cut or wrapped."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        type_text("  ".join(cells).rstrip() + "\n")
