"""Frames that several readers of one tape get: made once, for all who stand at the same place."""

from collections.abc import Hashable
from typing import Any, Final, NamedTuple

_FRAME: Final = 500  # bytes that a frame takes beside its own


class Place(NamedTuple):
    """Between which entries of a tape a frame stands, and in which wire format."""

    tape_id: str
    kind: Hashable
    after: int
    last: int


class Frame(NamedTuple):
    """`state` is what the wire format's later frames depend on beside their entries."""

    data: bytes
    state: Any


class FrameCache:
    """The newest frames of this process, up to `cap` bytes; `size` is about how many they are."""

    def __init__(self, cap: int = 8 << 20) -> None:
        self._cap = cap
        self._frames: dict[Place, Frame] = {}
        self.size = 0

    def get(self, place: Place) -> Frame | None:
        return self._frames.get(place)

    def add(self, place: Place, frame: Frame) -> None:
        """Keep it, and drop the oldest that have no room beside it."""
        self._frames[place] = frame
        self.size += len(frame.data) + _FRAME
        while self.size > self._cap:
            oldest = next(iter(self._frames))
            self.size -= len(self._frames.pop(oldest).data) + _FRAME
