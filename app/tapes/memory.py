"""Tapes in this process's memory: nothing to install, gone with the process."""

from app.tapes.plan import Plan
from app.tapes.shelf import Shelf
from app.tapes.store import TapeStore
from app.tapes.tape import Tape


class MemoryStore(TapeStore):
    """The default: one process, which writes all tapes that there are."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    async def add(self, tape: Tape, plan: Plan) -> Tape:
        if plan.claim and (begun := self.shelf.claimed(plan.claim.key)):
            return begun
        self.shelf.add(tape)
        return tape

    async def get(self, tape_id: str) -> Tape | None:
        return self.shelf.get(tape_id)

    async def claimed(self, key: str) -> Tape | None:
        return self.shelf.claimed(key)
