"""Descriptors 0, 1 and 2: open, whatever the server was started with."""

import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Open the null device where stdin, stdout or stderr was closed (`serve <&- >&- 2>&-`).

    Otherwise the next socket would get that number: what is printed would go to a client, and libuv
    aborts. Call it before anything else is opened.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: str) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")  # type: ignore[return-value] # noqa: PTH123
