"""What a user imports: the client of a Tickertape server. It needs httpx and nothing else."""

from tickertape.client import (
    Answer,
    Client,
    ConnectionLostError,
    Done,
    Event,
    Gap,
    GenerationError,
    Options,
    OverloadedError,
    RefusedError,
    Status,
    TickertapeError,
    Token,
)

__all__ = [
    "Answer",
    "Client",
    "ConnectionLostError",
    "Done",
    "Event",
    "Gap",
    "GenerationError",
    "Options",
    "OverloadedError",
    "RefusedError",
    "Status",
    "TickertapeError",
    "Token",
]
