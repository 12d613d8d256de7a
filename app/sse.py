"""JSON -> blocks of an event stream, whose lines end where we end them, for readers of every kind.

HTML (section 9.2.6) ends a line at CR and LF, which JSON escapes within strings. Many clients split
text with Python's `str.splitlines`, which ends a line at U+0085, U+2028 and U+2029, too. JSON may
have these as they are (RFC 8259, section 7), and clients would lose what stands behind them.
"""

from typing import Final

_BREAKS: Final = [(c.encode(), b"\\u%04x" % ord(c)) for c in ("\x85", "\u2028", "\u2029")]

END: Final = b"\n\n"  # of a block


def block(json: bytes, *, event: str | None = None, event_id: object = None) -> bytes:
    """A block of one data line."""
    return head(event=event, event_id=event_id) + one_line(json) + END


def head(*, event: str | None = None, event_id: object = None) -> bytes:
    """What stands before the JSON of a block."""
    id_line = "" if event_id is None else f"id: {event_id}\n"
    event_line = f"event: {event}\n" if event else ""
    return f"{id_line}{event_line}data: ".encode()


def one_line(json: bytes) -> bytes:
    """The same JSON, or a part of it between two characters, that nobody sees a line end in."""
    if json.isascii():
        return json
    for character, escaped in _BREAKS:
        json = json.replace(character, escaped)
    return json
