"""Every tape of this process: create, attach a reader, cancel, let the last reader leave."""

import asyncio
import logging
import secrets
from dataclasses import dataclass, field

from app.engine_link import EngineError, EngineLink
from app.schemas.native import OnDisconnect
from app.tapes.store import TapeStore
from app.tapes.tape import Tape
from model.messages import FinishReason, Generate
from model.sampling import SamplingParams

logger = logging.getLogger("tickertape.tapes")


@dataclass(slots=True, eq=False)
class _Recording:
    """A tape that is being written: the task that writes it, and its readers."""

    tape: Tape
    on_disconnect: OnDisconnect
    grace: float
    task: asyncio.Task[None] | None = None
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
    ) -> Tape:
        """A new tape, and the generation that fills it. The id is 128 random bits."""
        tape = Tape(secrets.token_urlsafe(16), len(prompt_ids))
        self.store.add(tape)
        recording = _Recording(tape, on_disconnect, self.grace if grace is None else grace)
        self._recordings[tape.id] = recording
        recording.task = asyncio.create_task(
            self._record(tape, Generate(tape.id, prompt_ids, params))
        )
        recording.task.add_done_callback(lambda _: self._forget(recording))
        return tape

    async def _record(self, tape: Tape, request: Generate) -> None:
        """Append what the engine yields; whatever happens, the tape gets its terminal entry."""
        try:
            async for event in self.link.generate(request):
                tape.record(event)
        except EngineError as error:
            tape.finish("error", f"{error}; please try the request again")
        except Exception:
            logger.exception("recording tape %s failed", tape.id)
            tape.finish("error", "an error of ours; the server's log says more")

    def _forget(self, recording: _Recording) -> None:
        self._cancel_deadline(recording)
        del self._recordings[recording.tape.id]
        self.store.finished(recording.tape)

    def get(self, tape_id: str) -> Tape | None:
        return self.store.get(tape_id)

    def cancel(self, tape_id: str, reason: FinishReason = "cancelled") -> None:
        """End a running tape: its readers get the terminal entry. One that has ended stays so."""
        recording = self._recordings.get(tape_id)
        if recording and recording.task:
            # Here and not in the task: a cancel may reach that before its first line.
            recording.tape.finish(reason)
            recording.task.cancel()

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

    async def close(self) -> None:
        """End every running tape with finish_reason 'shutdown'."""
        tasks = [r.task for r in self._recordings.values() if r.task]
        for tape_id in list(self._recordings):
            self.cancel(tape_id, "shutdown")
        await asyncio.gather(*tasks, return_exceptions=True)
