"""Who wants to know what becomes of tapes: metrics, logs, traces. Tapes know none of them."""

from app.tapes.tape import Choice, Tape


class Observer:
    """Called by the registry, on the way of every token: it must be quick, and must not raise."""

    def began(self, tape: Tape) -> None:
        """The tape is there, and nothing is on it."""

    def token(self, tape: Tape, choice: Choice) -> None:
        """One more entry, of this choice."""

    def ended(self, tape: Tape, *, attended: bool) -> None:
        """The terminal entry is written; `attended` when somebody reads the tape at this moment."""
