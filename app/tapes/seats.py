"""Which client has how many sequences here, and who may begin more.

A client may take what nobody else wants. Where all places are taken, one who has more than a share
of them is refused, and one who has less is let in, up to a reserve. What a reader has resumed is
never refused, so it does not count towards the places of others, only towards its client's own.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_RESERVE: Final = 1.25  # of all places, for clients that have less than their share


class Held(NamedTuple):
    """Sequences of one tape: `fresh` and `resumed` ones run or wait, `paused` ones do not."""

    fresh: int = 0
    resumed: int = 0
    paused: int = 0


NOTHING: Final = Held()


@dataclass(slots=True)
class Seats:
    """All clients' sequences. `fresh` are those that run or wait and that nobody has resumed."""

    fresh: int = 0
    _active: Counter[str] = field(default_factory=Counter)
    _paused: Counter[str] = field(default_factory=Counter)

    @property
    def active(self) -> int:
        return self._active.total()

    @property
    def paused(self) -> int:
        return self._paused.total()

    @property
    def most_paused(self) -> str:
        """The client that has most paused ones."""
        return max(self._paused, key=self._paused.__getitem__)

    def change(self, client: str, before: Held, after: Held) -> None:
        """A tape of this client holds other sequences than before."""
        self.fresh += after.fresh - before.fresh
        active = after.fresh + after.resumed - before.fresh - before.resumed
        _add(self._active, client, active)
        _add(self._paused, client, after.paused - before.paused)

    def has_place(self, client: str, count: int, capacity: int) -> bool:
        """Whether so many more sequences of a client may begin. Alone, any number may."""
        if not self._active:
            return True
        own, all_fresh = self._active[client] + count, self.fresh + count
        if max(own, all_fresh) <= capacity:
            return True
        share = capacity / len(self._active.keys() | {client})
        return own <= share and all_fresh <= _RESERVE * capacity


def _add(counter: Counter[str], client: str, count: int) -> None:
    """Clients who have none are forgotten: addresses come without end."""
    counter[client] += count
    if not counter[client]:
        del counter[client]
