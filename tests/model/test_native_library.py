"""Compiling the kernels: once, into the user's cache, and no harm where that is impossible."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.native import library

ROOT = Path(__file__).parents[2]

# Stand-ins for a compiler: quick, and they do what is wanted. Each gets `... -o PART`.
TARGET = 'for last; do :; done; touch "$0.ran"; '
FAILS = f'{TARGET} echo half > "$last"; echo "no room" >&2; exit 4'
COPIES = f'{TARGET} cp "$LIBRARY" "$last"'
# Two of them write at the same time, each the first half before either the second.
MEETS = f"""{TARGET}
half=$(( $(stat -c %s "$LIBRARY") / 2 ))
head -c $half "$LIBRARY" > "$last"
touch "$0.$$"
until [ $(ls "$0".[0-9]* | wc -l) = 2 ]; do sleep 0.01; done
tail -c +$(( half + 1 )) "$LIBRARY" >> "$last"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of our own instead of the user's."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.delenv("CXX", raising=False)
    library._path.cache_clear()
    yield home / "tickertape"
    library._path.cache_clear()


def use_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    path = folder / "c++-stand-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def without_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def test_what_was_compiled_is_kept_in_the_users_cache(
    kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY", str(kernels))
    use_compiler(monkeypatch, tmp_path, COPIES)
    assert library.cached() is None
    assert library.compile().wait() == 0
    path = library.cached()
    assert path is not None
    assert path.parent == cache
    assert cache.stat().st_mode & 0o077 == 0
    assert list(cache.iterdir()) == [path]
    assert library.load(path).tickertape_weight_bytes.restype is ctypes.c_int64


def test_a_compiler_that_fails_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_compiler(monkeypatch, tmp_path, FAILS)
    assert library.compile().wait() == 1
    assert library.cached() is None
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("kernels")
def test_no_compiler_is_an_obstacle_unless_the_cache_has_what_it_would_make(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.obstacle() is None
    without_compiler(monkeypatch, tmp_path)
    assert library.obstacle() == "there is no C++ compiler (install g++)"
    monkeypatch.undo()
    library._path.cache_clear()
    kept = library.cached()
    assert kept is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    without_compiler(monkeypatch, tmp_path)
    library._path.cache_clear()
    cache.mkdir(parents=True)
    shutil.copy(kept, cache)
    assert library.obstacle() is None


def test_another_processor_or_system_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    assert library.obstacle() == "it needs Linux on x86-64"
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(library, "_processor_flags", lambda: frozenset({"avx", "fma", "bmi2"}))
    assert library.obstacle() == "the processor has no AVX2"


@pytest.mark.usefixtures("cache")
def test_other_sources_or_another_processor_are_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path() -> Path:
        library._path.cache_clear()
        return library._path()

    ours = path()
    assert path() == ours
    copy = shutil.copytree(library.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(library, "KERNELS", copy)
    assert path() == ours
    with (copy / "simd.h").open("a") as header:
        header.write(" ")
    changed = path()
    assert changed != ours
    monkeypatch.setattr(library, "_processor_flags", lambda: frozenset({"avx512f"}))
    assert path() not in (ours, changed)


def test_a_damaged_library_is_compiled_again(
    kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    library._path().touch()  # as a crash of the machine leaves a file
    assert library.cached() is None
    monkeypatch.setenv("LIBRARY", str(kernels))
    use_compiler(monkeypatch, tmp_path, COPIES)
    assert library.compile().wait() == 0
    assert library.cached() == library._path()


def test_two_processes_that_compile_at_once_both_succeed(
    kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY", str(kernels))
    use_compiler(monkeypatch, tmp_path, MEETS)
    code = (
        "from model.native import library\n"
        "assert library.compile().wait() == 0\n"
        "print(library.cached())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers == [str(library._path())] * 2
    assert list(cache.iterdir()) == [library._path()]
    assert library._path().read_bytes() == kernels.read_bytes()
