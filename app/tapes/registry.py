"""Every tape of this process: create, attach a reader, cancel, let the last reader leave."""

import asyncio
import logging
import secrets
from dataclasses import dataclass, field

from app.engine_link import EngineError, EngineLink, Event
from app.schemas.native import OnDisconnect
from app.tapes.store import TapeStore
from app.tapes.tape import Tape
from model.messages import FinishReason, Generate
from model.sampling import SamplingParams

logger = logging.getLogger("tickertape.tapes")


@dataclass(slots=True, eq=False)
class _Recording:
    """A tape that is being written, and how many read it."""

    tape: Tape
    on_disconnect: OnDisconnect
    grace: float
    readers: int = 0
    deadline: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Registry:
    """Creates tapes and has the engine write them; readers come and go without touching that."""

    link: EngineLink
    store: TapeStore
    grace: float
    _recordings: dict[str, _Recording] = field(default_factory=dict)

    @property
    def num_active(self) -> int:
        """Generations that run or wait; paused ones cost no compute."""
        return sum(not recording.tape.paused for recording in self._recordings.values())

    def create(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        on_disconnect: OnDisconnect = "pause",
        grace: float | None = None,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> Tape:
        """A new tape, and the generation that fills it. The id is 128 random bits."""
        tape = Tape(secrets.token_urlsafe(16), len(prompt_ids))
        self.store.add(tape)
        recording = _Recording(tape, on_disconnect, self.grace if grace is None else grace)
        self._recordings[tape.id] = recording
        self.link.submit(
            Generate(tape.id, prompt_ids, params, priority, salt),
            lambda event: self._record(recording, event),
        )
        return tape

    def _record(self, recording: _Recording, event: Event | EngineError) -> None:
        """Append what the engine reports; whatever happens, the tape gets its terminal entry."""
        tape = recording.tape
        try:
            if isinstance(event, EngineError):
                tape.finish("error", f"{event}; please try the request again")
            else:
                tape.record(event)
        except Exception:
            logger.exception("recording tape %s failed", tape.id)
            tape.finish("error", "an error of ours; the server's log says more")
            self.link.cancel(tape.id)
        if tape.end:
            self._forget(recording)

    def _forget(self, recording: _Recording) -> None:
        self._cancel_deadline(recording)
        del self._recordings[recording.tape.id]
        self.store.finished(recording.tape)

    def get(self, tape_id: str) -> Tape | None:
        return self.store.get(tape_id)

    def cancel(self, tape_id: str, reason: FinishReason = "cancelled") -> None:
        """End a running tape: its readers get the terminal entry. One that has ended stays so."""
        if recording := self._recordings.get(tape_id):
            recording.tape.finish(reason)
            self.link.cancel(tape_id)
            self._forget(recording)

    def attach(self, tape: Tape) -> None:
        """One more reader; a paused generation goes on."""
        if recording := self._recordings.get(tape.id):
            recording.readers += 1
            self._cancel_deadline(recording)
            if tape.paused:
                tape.paused = False
                self.link.resume(tape.id)

    def detach(self, tape: Tape) -> None:
        """One reader less; when it was the last, the tape's `on_disconnect` decides."""
        recording = self._recordings.get(tape.id)
        if recording is None:
            return
        recording.readers -= 1
        if recording.readers > 0 or recording.on_disconnect == "continue" or tape.end:
            return
        if recording.on_disconnect == "abort":
            self.cancel(tape.id)
        else:
            self._pause(recording)

    def _pause(self, recording: _Recording) -> None:
        tape = recording.tape
        tape.paused = True
        self.link.pause(tape.id)
        recording.deadline = asyncio.get_running_loop().call_later(
            recording.grace, self.cancel, tape.id
        )

    def _cancel_deadline(self, recording: _Recording) -> None:
        if recording.deadline:
            recording.deadline.cancel()
            recording.deadline = None

    def close(self) -> None:
        """End every running tape with finish_reason 'shutdown'."""
        for tape_id in list(self._recordings):
            self.cancel(tape_id, "shutdown")
