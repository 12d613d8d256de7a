"""Models that `tickertape pull` copied to this disk: where they lie, and which there are."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.protocol.errors import ModelLoadError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_CHUNK = 1 << 20
_UNFINISHED = ".part"
_WANTED = ("*.json", "*.safetensors", "*.jinja")

Progress = Callable[[int, int], None]  # bytes copied, and of how many


def folder() -> Path:
    """$TICKERTAPE_MODELS, or tickertape/models where this user's data lies (XDG)."""
    if own := os.environ.get("TICKERTAPE_MODELS"):
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "tickertape" / "models"


def find(name: str) -> Path | None:
    """The pulled model of that name, with or without .gguf."""
    if not _NAME.fullmatch(name):
        return None
    try:
        for path in (folder() / name, folder() / f"{name}.gguf"):
            if path.is_dir() or path.is_file():
                return path
    except (OSError, RuntimeError):  # not readable, no home
        pass
    return None


def all_pulled() -> list[Path]:
    """Every pulled model, by name."""
    try:
        paths = sorted(folder().iterdir())
    except (OSError, RuntimeError):
        return []
    found = (path for path in paths if path.name != _UNFINISHED)
    return [path for path in found if path.is_dir() or path.suffix.lower() == ".gguf"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A model on this machine, about to be copied to the folder."""

    source: Path

    @property
    def target(self) -> Path:
        return folder() / self.source.name

    def files(self) -> list[Path]:
        if self.source.is_file():
            return [self.source]
        return sorted(path for pattern in _WANTED for path in self.source.glob(pattern))

    def run(self, check: Callable[[Path], object], tell: Progress) -> Path:
        """Copy, check the copy, put it in place: an unfinished one is never taken for a model.

        Raises ModelLoadError, from `check` too.
        """
        # A .gguf keeps its suffix, by which its format is told.
        unfinished = self.target.parent / _UNFINISHED / self.source.name
        try:
            _remove(unfinished)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            self._copy_to(unfinished, tell)
            check(unfinished)
            _remove(self.target)
            return unfinished.rename(self.target)
        except OSError as error:
            raise ModelLoadError(
                f"{self.source} cannot be copied to {self.target.parent}: {error.strerror or error}"
            ) from error
        finally:
            _remove(unfinished)

    def _copy_to(self, target: Path, tell: Progress) -> None:
        files = self.files()
        total, done = sum(file.stat().st_size for file in files), 0
        if self.source.is_dir():
            target.mkdir()
        for file in files:
            with file.open("rb") as reads, _place(target, file).open("wb") as writes:
                for chunk in _chunks(reads.read):
                    writes.write(chunk)
                    done += len(chunk)
                    tell(done, total)


def _place(target: Path, file: Path) -> Path:
    return target / file.name if target.is_dir() else target


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(_CHUNK):
        yield chunk


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
