"""Files that are no model, told by how they begin."""

from pathlib import Path
from typing import Final

HEAD_BYTES: Final = 64

_BEGINNINGS: Final = {
    b"version https://git-lfs": "a pointer of git-lfs; run `git lfs pull` where it was cloned",
    b"PK\x03\x04": "a zip archive, or weights of PyTorch in one; unpack it, or take safetensors",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"lmgg": "a model in a format before GGUF; convert it again",
    b"fmgg": "a model in a format before GGUF; convert it again",
    b"tjgg": "a model in a format before GGUF; convert it again",
    b"<": "a page of the web, or XML; fetch the file itself",
}


def what_it_is(head: bytes) -> str:
    """The end of a sentence that says what begins with `head`, and what to do about it."""
    if not head:
        return ", it is empty; fetch it again"
    for beginning, words in _BEGINNINGS.items():
        if head.startswith(beginning):
            return f", it is {words}"
    return "; fetch it again, or give another file"


def head_of(path: Path) -> bytes:
    """How a file begins. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def is_stranger(head: bytes) -> bool:
    return not head or head.startswith(tuple(_BEGINNINGS))
