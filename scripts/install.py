"""`python scripts/install.py WHAT PIP-ARGUMENTS...`: pip, saying what it fetches and how large.

On a terminal one line says what is happening now; elsewhere each large download has a line. What
pip says otherwise is shown only when it fails. It needs nothing but the standard library: it runs
before anything is installed.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
QUIET = ("--progress-bar", "off")

_FETCHES = re.compile(r"\s*(?:Downloading|Using cached) (?:\S*/)?(\S+?)(?:\.metadata)? \((.+?)\)")
_ON_DISK = re.compile(r"\s*Processing (\S+\.whl)")
_INSTALLED = re.compile(r"Successfully installed (.*)")
_LARGE = re.compile(r"(?:\d{2,}(?:\.\d+)? MB|.* GB)")
_WIDTH = 78


class Line:
    """What is happening now, with the seconds that it takes; the next replaces it."""

    def __init__(self, what: str) -> None:
        self._text, self._since = what, time.monotonic()
        self._ended = threading.Event()
        self._live = sys.stdout.isatty()

    def show(self, text: str, *, large: bool) -> None:
        self._text, self._since = text, time.monotonic()
        if not self._live and large:
            print(f"  {text}", flush=True)

    def tick(self) -> None:
        while self._live and not self._ended.wait(0.2):
            seconds = f"{time.monotonic() - self._since:4.0f} s"
            print(f"\r  {self._text[: _WIDTH - 10]:<{_WIDTH - 10}}{seconds}", end="", flush=True)

    def end(self) -> None:
        self._ended.set()
        if self._live:
            print(f"\r{' ' * _WIDTH}\r", end="", flush=True)


def fetched(line: str) -> tuple[str, str] | None:
    """The package and the size in one of pip's lines about a download, or a file that is here."""
    if here := _ON_DISK.match(line):
        path = Path(here[1])
        line = f"Downloading {path.name} ({path.stat().st_size / 1e6:.1f} MB)"
    match = _FETCHES.match(line)
    if match is None or line.rstrip().split(" (")[0].endswith(".metadata"):
        return None
    name, version = [*match[1].split("-"), ""][:2]
    return f"{name} {version}".strip(), match[2]


def follow(lines: Iterator[str], line: Line) -> tuple[list[str], int]:
    """All that pip says, and how many packages it installed."""
    said, count = [], 0
    for text in lines:
        said.append(text)
        if found := fetched(text):
            line.show(f"fetching {found[0]}, {found[1]}", large=bool(_LARGE.fullmatch(found[1])))
        elif text.startswith("Installing collected packages"):
            line.show("installing what was fetched", large=False)
        elif match := _INSTALLED.match(text):
            count = len(match[1].split())
    return said, count


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(what: str, *arguments: str) -> int:
    print(what, flush=True)
    line = Line("looking up what is needed")
    ticking = threading.Thread(target=line.tick, daemon=True)
    ticking.start()
    with subprocess.Popen(
        [*PIP, *arguments, *QUIET], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout
        said, count = follow(pip.stdout, line)
    line.end()
    ticking.join()
    if pip.returncode:
        sys.stdout.writelines(said)
        return pip.returncode
    folder = Path(sys.prefix)
    total = f"{folder.name} has {size_of(folder) / 1e6:,.0f} MB"
    print(f"  {count} packages installed; {total}" if count else f"  nothing new; {total}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
