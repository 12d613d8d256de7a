"""Whole answers as JSON: small ones at once, large ones as their reader takes them."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

from starlette.responses import Response, StreamingResponse

from app.readers.turns import Turns, paced
from app.tapes.tape import Tape

_LARGE: Final = 64 * 1024  # bytes; what is sent in one piece is kept until its reader has taken it

_TYPE: Final = "application/json"


async def json_answer(turns: Turns, tape: Tape, pieces: Iterator[bytes]) -> Response:
    """The pieces of app/api/json_pieces.py as a response; with Content-Length where it is small."""
    chunks = _merged(paced(pieces, partial(turns.take, tape.client)))
    first, headers = await anext(chunks), {"X-Tape": tape.id}
    if len(first) < _LARGE:
        return Response(first, media_type=_TYPE, headers=headers)
    return StreamingResponse(_with(first, chunks), media_type=_TYPE, headers=headers)


async def _merged(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """In chunks that are large, but for the last."""
    chunk = bytearray()
    async for piece in pieces:
        chunk += piece
        if len(chunk) >= _LARGE:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


async def _with(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in others:
        yield chunk
