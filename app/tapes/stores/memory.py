"""Tapes in this process's memory: nothing to install, gone with the process."""

from app.tapes.plan import Plan
from app.tapes.stores.base import TapeStore
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Tape


class MemoryStore(TapeStore):
    """The default: one process, which writes all tapes that there are."""

    def __init__(self, retention: TapeRetention) -> None:
        self.retention = retention

    async def add(self, tape: Tape, plan: Plan) -> Tape:
        if plan.claim and (begun := self.retention.claimed(plan.claim.key)):
            return begun
        self.retention.add(tape)
        return tape

    async def get(self, tape_id: str) -> Tape | None:
        return self.retention.get(tape_id)

    async def claimed(self, key: str) -> Tape | None:
        return self.retention.claimed(key)
