"""Typed look-ups in metadata that somebody else wrote: nothing in it is trusted."""

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any, Final, NoReturn, TypeVar

from model.protocol.errors import ModelLoadError

T = TypeVar("T")

# Far above every real model: they only keep a hostile file from asking for absurd memory.
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 4096
MAX_SIZE: Final = 1 << 22
MAX_CONTEXT: Final = 1 << 27

# None, or -1 of signed or unsigned 32 bits: there is no such token.
_NO_TOKENS = (None, -1, 0xFFFFFFFF)


class Fields:
    """Typed look-ups in metadata that nobody has checked.

    A value of None counts as absent. Without a default, an absent value is an error.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        def valid(value: Any) -> bool:
            return type(value) is int and low <= value <= high

        return self._typed(key, default, valid, f"a whole number from {low} to {high}")

    def number(self, key: str, default: float | None = None) -> float:
        def valid(value: Any) -> bool:
            return type(value) in (int, float) and isfinite(value) and value > 0

        return float(self._typed(key, default, valid, "a positive number"))

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        return self._typed(key, default, lambda value: type(value) is bool, "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, default, lambda value: type(value) is str, "a string")

    def token(self, key: str, vocab_size: int = MAX_SIZE + 1) -> int | None:
        if self.get(key) in _NO_TOKENS:
            return None
        return self.integer(key, low=0, high=vocab_size - 1)

    def tokens(self, key: str) -> tuple[int, ...]:
        """The token ids under a key that may hold none, one, or a list of them."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        ends = (Fields({key: item}).token(key) for item in ids)
        return tuple(end for end in ends if end is not None)

    def mapping(self, key: str) -> dict[str, Any]:
        return self._typed(key, {}, lambda value: isinstance(value, dict), "an object")

    def _typed(self, key: str, default: T | None, valid: Callable[[Any], bool], wanted: str) -> T:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelLoadError(f"the model does not say its {self._prefix}{key}")
        if not valid(value):
            raise ModelLoadError(f"{self._prefix}{key} must be {wanted}, not {value!r:.80}")
        return value  # type: ignore[no-any-return]


def refuse(what: str, value: object, accepted: Collection[str]) -> NoReturn:
    raise ModelLoadError(f"{what} {value!r:.80} is not implemented; choose {', '.join(accepted)}")
