"""What lies in the kernel cache cannot stop a server from serving."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from model.native import library
from tests.server import TICKERTAPE, RunningServer, running
from tests.speed import patience

BODY = {"prompt": "Once", "max_length": 5, "ignore_eos": True}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a good library; a compiler that makes the same at once; nothing below /tmp."""
    if reason := library.why_unavailable():
        pytest.skip(f"no compiled kernels here: {reason}")
    kept = library.cached()
    assert kept is not None
    folder = tmp_path / "home" / ".cache" / "tickertape"
    folder.mkdir(parents=True, mode=0o700)
    shutil.copy(kept, folder)
    compiler = tmp_path / "c++-stand-in"
    compiler.write_text(f'#!/bin/sh\nfor last; do :; done; exec cp {kept} "$last"\n')
    compiler.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o1777)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return folder


def serves(server: RunningServer) -> str:
    """What the log says after an answer and an end in order."""
    answer = httpx.post(f"{server.url}/generate", json=BODY, timeout=patience(60))
    assert answer.status_code == 200
    assert server.stop() == 0
    return server.log.read_text()


async def says(server: RunningServer, words: str) -> None:
    async with asyncio.timeout(patience(60)):
        while words not in server.log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def cut(folder: Path) -> None:
    (path,) = folder.iterdir()
    os.truncate(path, path.stat().st_size // 2)


def flip(folder: Path) -> None:
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.parametrize(
    "harm",
    [cut, *(pytest.param(harm, marks=pytest.mark.long) for harm in (flip, open_to_all))],
)
async def test_a_bad_cache_is_named_and_the_kernels_are_compiled_again(
    cache: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(cache)
    with running(tmp_path / "log") as server:
        await says(server, "the compiled kernels are ready")
        log = serves(server)
    assert f"{cache}" in log
    with running(tmp_path / "log") as server:
        again = serves(server)
    assert "compiling" not in again, "the next start finds what this one has compiled"


@pytest.fixture
def full_disk(cache: Path) -> Iterator[Path]:
    shutil.rmtree(cache)
    cache.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(cache)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield cache
    subprocess.run(["umount", str(cache)], check=True)


async def test_with_a_full_disk_torch_serves_and_the_log_says_why(
    full_disk: Path, tmp_path: Path
) -> None:
    with running(tmp_path / "log") as server:
        await says(server, "No space left on device")
        log = serves(server)
    assert "the compiled kernels are not used: the compiler failed" in log
    assert not any(files for _, _, files in os.walk(full_disk))


@pytest.fixture
def for_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The compiler and the temporary files where any user reaches them, unlike pytest's folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        shutil.copy(os.environ["CXX"], folder)
        monkeypatch.setenv("CXX", str(folder / Path(os.environ["CXX"]).name))
        monkeypatch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture
def unknown_user(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The beginning of a command line: its process has a uid that no password file knows, but it
    may read what is root's."""
    monkeypatch.delenv("HOME")
    read_all = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    command = ("setpriv", "--reuid", "54321", "--clear-groups", *read_all)
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only root can become another user")
    return command


async def test_a_user_without_a_home_directory_is_served(
    for_all: Path, unknown_user: tuple[str, ...], tmp_path: Path
) -> None:
    """As containers get one."""
    with running(tmp_path / "log", command=(*unknown_user, TICKERTAPE)) as server:
        await says(server, f"the compiled kernels are ready, in {for_all}/tickertape-54321/")
        log = serves(server)
    assert "Traceback" not in log
