"""Where tapes are kept. One file per kind of store; memory.py is the default."""

from typing import Protocol

from app.errors import APIError, try_later
from app.tapes.plan import Plan
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Tape
from model.protocol.messages import FinishReason


class Writer(Protocol):
    """Who writes tapes in this process: the registry. A store that others share tells it of them.

    A tape that this process does not write is ignored.
    """

    def adopt(self, tape: Tape, plan: Plan, readers: int) -> None:
        """Its writer has gone: go on with it. It has so many readers, wherever they are."""

    def disown(self, tape: Tape) -> None:
        """Another process goes on with it: stop."""

    def join(self, tape: Tape) -> None:
        """A reader of another process follows it."""

    def leave(self, tape: Tape) -> None:
        """A reader of another process has left it."""

    def cancel(
        self, tape_id: str, reason: FinishReason = "cancelled", error: str | None = None
    ) -> None:
        """End it."""


class TapeStore:
    """Holds tapes by id. What does nothing here is for stores that several processes share.

    With `requires_ack`, what is written to a tape is shown to readers when the store says so.
    """

    retention: TapeRetention
    requires_ack: bool = False
    why_unavailable: str | None = None  # why no tape can begin now; None where one can
    hands_over: bool = False  # whether others would go on with what this process leaves unfinished

    async def start(self, writer: Writer) -> None:
        """Before anything else."""

    async def flush(self) -> None:
        """Wait until everything that is written may be shown."""

    async def stop(self) -> None:
        """Leave what is unfinished to others, if there are any."""

    async def add(self, tape: Tape, plan: Plan) -> Tape:
        """Keep it; returns another if that has its claim already. Raises APIError 503."""
        raise NotImplementedError

    async def get(self, tape_id: str) -> Tape | None:
        """The tape, or None if there is none of that id, or no longer. Raises APIError 503."""
        raise NotImplementedError

    async def claimed(self, key: str) -> Tape | None:
        """The tape that was asked for with this Idempotency-Key, while it is kept."""
        raise NotImplementedError

    def wrote(self, tape: Tape) -> None:
        """There is something new on it."""

    def finished(self, tape: Tape) -> None:
        """It has its terminal entry: from now on it may be dropped."""
        self.retention.finished(tape)

    def subscribe(self, tape: Tape) -> None:
        """One more reader here of a tape that is written elsewhere."""

    def unsubscribe(self, tape: Tape) -> None:
        """One less."""

    def cancel(self, tape_id: str) -> None:
        """Have whoever writes it end it."""


def unreachable(why: str) -> APIError:
    return try_later(
        503,
        f"the store cannot keep tapes now ({why:.200}); try again shortly",
        code="store_unreachable",
    )
