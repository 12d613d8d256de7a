"""What is logged: one line for a message, whatever a client sends, and nothing of what it asks."""

import copy
import logging
from typing import Any

from uvicorn.config import LOGGING_CONFIG


def log_config(level: str) -> dict[str, Any]:
    """uvicorn's own, with every record made safe."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"safe": {"()": Safe, "with_queries": level == "debug"}}
    for handler in config["handlers"].values():
        handler["filters"] = ["safe"]
    return config


class Safe(logging.Filter):
    """Lets every record pass, with what cannot be printed escaped.

    Query strings are cut from the lines of requests unless `with_queries`: a prompt is content.
    """

    def __init__(self, *, with_queries: bool) -> None:
        super().__init__()
        self._with_queries = with_queries

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_printable, record.args))
            if record.name == "uvicorn.access" and not self._with_queries:
                record.args = _without_query(*record.args)
        if record.exc_info and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_text = "\n".join(map(escape, trace.split("\n")))
        return True


def escape(text: str) -> str:
    r"""Line ends, ESC and the like as \n, \x1b: nothing can start a line or colour it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _printable(value: object) -> object:
    return value if isinstance(value, int | float) else escape(str(value))


def _without_query(
    client: object, method: object, path: object, *rest: object
) -> tuple[object, ...]:
    return client, method, str(path).partition("?")[0], *rest
