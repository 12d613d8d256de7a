"""When an engine counts as hanging: at work without reports, or loading without progress."""

from pathlib import Path

_LOOKS = 10  # within the shortest of the spans below

# A load hangs when it uses no processor time for so many seconds; or when it takes so many times as
# long as the longest load so far, but at least so many seconds. The first may take what it takes.
_STALLED = 15.0
_TIMES_AS_LONG = 10
_SHORTEST_LIMIT = 60.0


class EngineWatchdog:
    """Looks at the engine every `interval` seconds.

    It counts looks and reads no clock: while this process is stopped (Ctrl-Z, a paused container)
    time passes, but no engine is to blame.
    """

    def __init__(self, patience: float) -> None:
        """An engine that owes a report hangs after `patience` seconds without any."""
        self._patience = patience
        self._stalled = min(patience, _STALLED)
        self.interval = self._stalled / _LOOKS
        self._sign: object = None  # of life, at the last look
        self._silence = 0.0  # seconds without another one
        self._load = 0.0  # seconds that the current load has taken
        self._longest_load: float | None = None
        self._slack = 1  # doubled for each load that was given up: the machine may be slow

    def look_at_work(self, pid: int, reports: int, *, owes: bool) -> str | None:
        """Why it hangs, or None; it has sent so many reports, and owes another one or not."""
        self._longest_load = max(self._longest_load or 0.0, self._load)
        self._load, self._slack = 0.0, 1
        if self._silence_of((pid, reports) if owes else object()) > self._patience:
            return f"has not answered for {self._patience:g} s"
        return None

    def look_at_load(self, pid: int) -> str | None:
        """Why it hangs while it loads, or None."""
        self._load += self.interval
        stalled, limit = self._stalled * self._slack, self._limit()
        if self._silence_of(("load", pid, _processor_time(pid))) > stalled:
            return self._give_up(f"has used no processor time for {stalled:g} s while it loads")
        if limit is not None and self._load > limit:
            return self._give_up(f"has not loaded within {limit:g} s")
        return None

    def launched(self) -> None:
        """Another engine begins to load."""
        self._load = 0.0

    def _limit(self) -> float | None:
        if self._longest_load is None:
            return None
        return max(_SHORTEST_LIMIT, _TIMES_AS_LONG * self._longest_load) * self._slack

    def _give_up(self, why: str) -> str:
        self._slack *= 2
        return why

    def _silence_of(self, sign: object) -> float:
        self._silence = self._silence + self.interval if sign == self._sign else 0.0
        self._sign = sign
        return self._silence


def _processor_time(pid: int) -> object:
    """What the process has used; where the system does not tell, never the same twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return object()
    return stat.rpartition(")")[2].split()[11:13]  # utime and stime, in ticks: proc_pid_stat(5)
