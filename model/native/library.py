"""The shared library of kernels/: compiled once for this processor, kept, loaded with ctypes.

A kept library is named by the SHA-256 of its content: one that was cut short or changed is not
loaded, and neither is one that another user could have put there. A child process loads it first.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KERNELS: Final = Path(__file__).parent / "kernels"

_FLAGS: Final = ("-O3", "-march=native", "-std=c++20", "-ffp-contract=off", "-fPIC", "-shared")
_INSTRUCTIONS: Final = {"avx2", "fma", "bmi2"}

_TRIAL: Final = """
import ctypes, sys
try:
    instructions = ctypes.CDLL(sys.argv[1]).tickertape_instructions
    instructions.restype = ctypes.c_char_p
    instructions()
except (OSError, AttributeError) as error:
    sys.exit(str(error))
"""
_TRIAL_SECONDS: Final = 60
_STALE_SECONDS: Final = 3600  # no compiler takes so long


class Shape(ctypes.Structure):
    """`Shape` of kernels/decoder.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("layers", "hidden", "inner", "heads", "kv_heads", "head_dim", "vocab", "tied"),
                *("blocks", "max_rows", "max_outputs", "max_positions", "threads"),
            )
        ),
        ("eps", ctypes.c_float),
    ]


class ForwardArgs(ctypes.Structure):
    """`ForwardArgs` of kernels/decoder.cpp."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("sequences", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("tokens", "starts", "counts", "tables", "output_rows"),
                *("only_best", "best", "best_score"),
            )
        ),
    ]


def why_unavailable() -> str | None:
    """What this machine lacks to run the kernels, for a person; None when it lacks nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "it needs Linux on x86-64"
    if _INSTRUCTIONS - _processor_flags():
        return "the processor has no AVX2"
    if compiler() is None:
        found = find()
        if not found.path:
            return "; ".join(filter(None, (found.fault, "there is no C++ compiler (install g++)")))
    return None


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of the usual names."""
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    return next((path for name in names if (path := shutil.which(name))), None)


@dataclass(frozen=True, slots=True)
class Found:
    """A kept library that can be loaded, and why others, or their folders, are not used."""

    path: Path | None
    fault: str | None


def find() -> Found:
    """Look for the library of these sources and this processor that an earlier start has kept."""
    faults: list[str] = []
    for folder in _folders():
        try:
            if path := _kept_in(folder):
                return Found(path, "; ".join(faults) or None)
        except OSError as error:
            faults.append(str(error))
    return Found(None, "; ".join(faults) or None)


def cached() -> Path | None:
    """The path that `find` finds."""
    return find().path


def compile() -> Path:
    """Compile the library, try it in a child process, and keep it.

    Raises OSError: no compiler or one that fails, no room, a library that cannot be loaded.
    """
    folder = _own_folder()
    _remove_stale(folder)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        _run_compiler(part)
        _try(part)
        return _keep(part)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions declared. Raises OSError."""
    library = ctypes.CDLL(str(path))
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "new": (pointer, [ctypes.POINTER(Shape)]),
        "free": (None, [pointer]),
        "set_matrix": (None, [pointer, i32, i32, pointer, pointer, i32, i32]),
        "set_norm": (None, [pointer, i32, i32, pointer, i32]),
        "set_rotary": (None, [pointer, pointer, pointer, i32]),
        "set_layer": (None, [pointer, i32, i32, i32]),
        "step": (None, [pointer, ctypes.POINTER(ForwardArgs)]),
        "copy_block": (None, [pointer, i32, i32]),
        "block": (pointer, [pointer, i32, i32]),
        "logits": (pointer, [pointer]),
        "weight_bytes": (i64, [pointer]),
        "instructions": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"tickertape_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _folders() -> Iterator[Path]:
    """Where a library may be kept: the user's cache; where there is none, below /tmp."""
    with contextlib.suppress(RuntimeError):  # a uid without a home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        yield home / "tickertape"
    with contextlib.suppress(OSError):  # no directory for temporary files
        yield Path(tempfile.gettempdir()) / f"tickertape-{os.geteuid()}"


def _own_folder() -> Path:
    """The first folder that only we can write to; a fresh one for want of any. Raises OSError."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(folder, folder.stat())
            if os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix="tickertape-"))


def _kept_in(folder: Path) -> Path | None:
    """A library in this folder that can be loaded. Raises OSError for one that must not be."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    _check_owner(folder, status)
    fault: OSError | None = None
    for path in sorted(folder.glob(f"{_prefix()}-*.so")):
        try:
            _check(path)
        except OSError as error:
            fault = error
        else:
            return path
    if fault:
        raise fault
    return None


def _check(path: Path) -> None:
    """Raises OSError saying why a kept library must not be loaded."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not loaded: it is no regular file")
    _check_owner(path, status)
    if not path.stem.endswith(f"-{_digest(path)}"):
        raise OSError(f"{path} is not loaded: it is damaged, its SHA-256 is not that of its name")
    _try(path)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raises PermissionError when another user could have put or changed what is there."""
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} is not used: it belongs to another user, {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} is not used: others can write to it (chmod go-w it)")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_compiler(target: Path) -> None:
    """Raises OSError with the last lines of what the compiler says."""
    sources = [str(path) for path in sorted(KERNELS.glob("*.cpp"))]
    command = [compiler() or "g++", *_FLAGS, "-pthread", *sources, "-o", str(target)]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace", check=False
    )
    if run.returncode:
        raise OSError(f"the compiler failed with exit code {run.returncode}{_last_words(run)}")


def _try(path: Path) -> None:
    """Load it in a child process, since a bad one can crash. Raises OSError, such as where the disk
    is mounted noexec."""
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL, str(path)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{path} hangs for {_TRIAL_SECONDS} s when it is loaded") from None
    if run.returncode < 0:
        name = signal.strsignal(-run.returncode)
        raise OSError(f"{path} crashes when it is loaded: {name}")
    if run.returncode:
        raise OSError(f"{path} cannot be loaded{_last_words(run)}")


def _last_words(run: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    return "".join(f": {line}" for line in lines[-2:])


def _keep(part: Path) -> Path:
    """Give it the name of its content, whole on the disk even if the power fails."""
    part.chmod(0o700)  # a linker goes by the umask
    with part.open("rb") as file:
        os.fsync(file)
    path = part.with_name(f"{_prefix()}-{_digest(part)}.so")
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def _remove_stale(folder: Path) -> None:
    """What is damaged, and what compilers have left that were killed."""
    for path in folder.glob(f"{_prefix()}-*.so"):
        try:
            _check(path)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()


@functools.cache
def _prefix() -> str:
    """How a library of these sources, this compiler's flags and this processor is called."""
    key = hashlib.sha256()
    for source in sorted(KERNELS.iterdir()):
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    key.update(" ".join((*_FLAGS, *sorted(_processor_flags()))).encode())
    return f"kernels-{key.hexdigest()[:16]}"


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
