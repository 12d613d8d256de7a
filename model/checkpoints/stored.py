"""A tensor as a model file stores it: known without reading it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`kind` is the file's word for its type, such as Q8_0 or BF16; `nbytes` lie on the disk."""

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int
