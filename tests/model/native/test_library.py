"""Compiling the kernels: once, into the user's cache, and no harm where that is impossible."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from model.native import library
from tests.speed import patience

ROOT = Path(__file__).parents[3]

# Stand-ins for a compiler: quick, and they do what is wanted. Each gets `... -o PART`.
TARGET = 'for last; do :; done; touch "$0.ran"; '
FAILS = f'{TARGET} echo half > "$last"; echo "no room" >&2; exit 4'
COPIES = f'{TARGET} cp "$LIBRARY" "$last"'
CRASHES = f"""{TARGET}
echo '__attribute__((constructor)) void crash(void) {{ __builtin_trap(); }}' |
    gcc -shared -xc - -o "$last"
"""
WITHOUT_FUNCTIONS = f'{TARGET} echo | gcc -shared -xc - -o "$last"'
# Two of them write at the same time, each the first half before either the second.
MEETS = f"""{TARGET}
half=$(( $(stat -c %s "$LIBRARY") / 2 ))
head -c $half "$LIBRARY" > "$last"
touch "$0.$$"
until [ $(ls "$0".[0-9]* | wc -l) = 2 ]; do sleep 0.01; done
tail -c +$(( half + 1 )) "$LIBRARY" >> "$last"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own instead of the user's, and nothing kept below /tmp."""
    home, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("CXX", raising=False)
    return home / "tickertape"


@pytest.fixture
def copying(kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that makes a good library at once."""
    monkeypatch.setenv("LIBRARY", str(kernels))
    use_compiler(monkeypatch, tmp_path, COPIES)


def use_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    path = folder / "c++-stand-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def without_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def test_what_was_compiled_is_kept_in_the_users_cache(copying: None, cache: Path) -> None:
    assert library.cached() is None
    path = library.compile()
    assert library.find() == library.Found(path, None)
    assert path.parent == cache
    assert cache.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0
    assert list(cache.iterdir()) == [path]
    assert library.load(path).tickertape_weight_bytes.restype is ctypes.c_int64


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (FAILS, "the compiler failed with exit code 4: no room"),
        ("true", "cannot be loaded: .*file too short"),
        (CRASHES, "crashes when it is loaded: Illegal instruction"),
        (WITHOUT_FUNCTIONS, "cannot be loaded: .*undefined symbol: tickertape_instructions"),
    ],
)
def test_a_compiler_that_makes_nothing_good_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    use_compiler(monkeypatch, tmp_path, script)
    with pytest.raises(OSError, match=reason):
        library.compile()
    assert library.cached() is None
    assert list(cache.iterdir()) == []


def test_no_compiler_is_an_obstacle_unless_the_cache_has_what_it_would_make(
    kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.why_unavailable() is None
    without_compiler(monkeypatch, tmp_path)
    assert library.why_unavailable() == "there is no C++ compiler (install g++)"
    cache.mkdir(parents=True)
    kept = Path(shutil.copy(kernels, cache))
    assert library.why_unavailable() is None
    os.truncate(kept, 5000)
    assert str(kept) in (library.why_unavailable() or "")


def test_another_processor_or_system_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    assert library.why_unavailable() == "it needs Linux on x86-64"
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(library, "_processor_flags", lambda: frozenset({"avx", "fma", "bmi2"}))
    assert library.why_unavailable() == "the processor has no AVX2"


@pytest.mark.usefixtures("cache")
def test_other_sources_or_another_processor_are_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name() -> str:
        library._prefix.cache_clear()
        return library._prefix()

    try:
        ours = name()
        assert name() == ours
        copy = shutil.copytree(library.KERNELS, tmp_path / "kernels")
        monkeypatch.setattr(library, "KERNELS", copy)
        assert name() == ours
        with (copy / "simd.h").open("a") as header:
            header.write(" ")
        changed = name()
        assert changed != ours
        monkeypatch.setattr(library, "_processor_flags", lambda: frozenset({"avx512f"}))
        assert name() not in (ours, changed)
    finally:
        library._prefix.cache_clear()


def cut_short(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def zeros_at_the_end(data: bytearray, random: Random) -> None:
    """As a file system leaves blocks that never reached the disk."""
    begin = random.randrange(len(data) // 4096) * 4096
    data[begin:] = bytes(len(data) - begin)


def flipped(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def longer(data: bytearray, random: Random) -> None:
    data += random.randbytes(random.randrange(1, 100))


def test_200_damages_are_all_found_and_mended(copying: None, cache: Path, kernels: Path) -> None:
    """None is loaded: many would end this process by SIGBUS."""
    whole, random = kernels.read_bytes(), Random(14)
    kept = library.compile()
    for number in range(200):
        data = bytearray(whole)
        (cut_short, flipped, zeros_at_the_end, longer)[number % 4](data, random)
        if bytes(data) == whole:
            continue
        kept.write_bytes(data)
        found = library.find()
        assert found.path is None
        assert found.fault == (
            f"{kept} is not loaded: it is damaged, its SHA-256 is not that of its name"
        )
        if number % 20 == 0:
            assert library.compile() == kept
            assert library.find() == library.Found(kept, None)
            assert list(cache.iterdir()) == [kept]


def test_what_is_no_file_is_not_loaded(copying: None, cache: Path, tmp_path: Path) -> None:
    kept = library.compile()
    elsewhere = tmp_path / "elsewhere.so"
    for replace in (
        lambda: kept.symlink_to(elsewhere),
        lambda: os.mkfifo(kept),
        kept.mkdir,
    ):
        shutil.move(kept, elsewhere)
        replace()
        found = library.find()
        assert found.path is None
        assert found.fault == f"{kept} is not loaded: it is no regular file"
        kept.rmdir() if kept.is_dir() else kept.unlink()
        shutil.move(elsewhere, kept)
    assert library.cached() == kept


@pytest.mark.parametrize("of", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o722])
def test_what_others_can_write_is_not_loaded(
    copying: None, cache: Path, of: str, mode: int
) -> None:
    path = library.compile()
    theirs = cache if of == "folder" else path
    theirs.chmod(mode)
    found = library.find()
    assert found.path is None
    assert found.fault == f"{theirs} is not used: others can write to it (chmod go-w it)"
    made = library.compile()
    assert library.cached() == made
    assert made.parent.stat().st_mode & 0o077 == 0
    assert made.parent == (cache if of == "file" else Path(tempfile.gettempdir(), me()))


def me() -> str:
    return f"tickertape-{os.geteuid()}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("of", ["folder", "file", "link"])
def test_what_belongs_to_another_user_is_not_loaded(
    copying: None, cache: Path, tmp_path: Path, of: str
) -> None:
    path = library.compile()
    theirs = path if of == "file" else cache
    if of == "link":
        shutil.move(cache, tmp_path / "theirs")
        cache.symlink_to(tmp_path / "theirs")
    os.chown(theirs, 12345, 12345)
    found = library.find()
    assert found.path is None
    assert found.fault == f"{theirs} is not used: it belongs to another user, 12345"
    made = library.compile()
    assert library.cached() == made
    assert made.stat().st_uid == 0


def test_with_a_squatted_folder_below_tmp_there_is_a_fresh_one(copying: None, cache: Path) -> None:
    squatted = Path(tempfile.gettempdir(), me())
    for folder in (cache, squatted):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    first, second = library.compile(), library.compile()
    assert first.parent != second.parent
    for path in (first, second):
        assert path.parent.parent == squatted.parent
        assert path.parent.stat().st_mode & 0o077 == 0
    assert library.find() == library.Found(
        None,
        f"{cache} is not used: others can write to it (chmod go-w it); "
        f"{squatted} is not used: others can write to it (chmod go-w it)",
    )


@pytest.mark.parametrize("home", ["a-file", "below/a-file/x"])
def test_a_home_that_cannot_be_written_is_no_obstacle(
    copying: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a-file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    path = library.compile()
    assert path.parent == Path(tempfile.gettempdir(), me())
    assert library.find() == library.Found(path, None)


def test_without_a_home_there_is_a_folder_below_tmp(
    copying: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert library.cached() is None
    path = library.compile()
    assert path.parent == Path(tempfile.gettempdir(), me())
    assert library.cached() == path


def test_what_a_killed_compiler_left_is_removed(copying: None, cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    old, new = cache / "old.part", cache / "new.part"
    for part in (old, new):
        part.touch()
    os.utime(old, (0, 0))
    path = library.compile()
    assert sorted(cache.iterdir()) == sorted([path, new])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 64 KiB of room."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(path)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_the_reason_and_leaves_nothing(
    kernels: Path,
    cache: Path,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIBRARY", str(kernels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    use_compiler(monkeypatch, tmp_path, COPIES)
    with pytest.raises(OSError, match=r"the compiler failed .*No space left on device"):
        library.compile()
    assert list(small_disk.rglob("*.*")) == []
    assert library.find() == library.Found(None, None)


def test_two_processes_that_compile_at_once_both_succeed(
    kernels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY", str(kernels))
    use_compiler(monkeypatch, tmp_path, MEETS)
    code = (
        "from model.native import library\n"
        "assert library.compile() == library.cached()\n"
        "print(library.cached())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=patience(60))[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    path = library.cached()
    assert path is not None
    assert answers == [str(path)] * 2
    assert list(cache.iterdir()) == [path]
    assert path.read_bytes() == kernels.read_bytes()
