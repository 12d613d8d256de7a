"""The shared library of kernels/: compiled once for this processor, kept, loaded with ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

KERNELS: Final = Path(__file__).parent / "kernels"

_FLAGS: Final = ("-O3", "-march=native", "-std=c++20", "-ffp-contract=off", "-fPIC", "-shared")
_INSTRUCTIONS: Final = {"avx2", "fma", "bmi2"}


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


class Step(ctypes.Structure):
    """`Step` of kernels/decoder.cpp."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("chunks", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("tokens", "chunk_start", "chunk_rows", "tables", "table_at", "output_rows"),
                *("only_best", "best", "best_score"),
            )
        ),
    ]


def obstacle() -> str | None:
    """What this machine lacks to run the kernels, for a person; None when it lacks nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "it needs Linux on x86-64"
    if _INSTRUCTIONS - _processor_flags():
        return "the processor has no AVX2"
    if not cached() and compiler() is None:
        return "there is no C++ compiler (install g++)"
    return None


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of the usual names."""
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    return next((path for name in names if (path := shutil.which(name))), None)


def cached() -> Path | None:
    """The compiled library, if an earlier start left one for these sources and this processor.

    One that cannot be loaded (a disk that was full, a directory mounted noexec) does not count.
    """
    path = _path()
    return path if path.exists() and _loads(path) else None


def compile() -> subprocess.Popen[bytes]:
    """Start compiling into the cache; `cached` finds the result once the process has ended well.

    The compiler writes beside its target and the shell moves it there whole, so that two engines
    that start together do not disturb each other. Its complaints go to stderr.
    """
    target = _path()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, part = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    sources = [str(path) for path in sorted(KERNELS.glob("*.cpp"))]
    command = [compiler() or "g++", *_FLAGS, "-pthread", *sources, "-o", part]
    script = '"$@" && mv "$PART" "$TARGET" || { rm -f "$PART"; exit 1; }'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", *command],
        env=os.environ | {"PART": part, "TARGET": str(target)},
        stdin=subprocess.DEVNULL,
    )


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
        "set_window": (None, [pointer, i32, i32]),
        "step": (None, [pointer, ctypes.POINTER(Step)]),
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


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


@functools.cache
def _path() -> Path:
    """Where the library for these sources, this compiler's flags and this processor lies."""
    key = hashlib.sha256()
    for source in sorted(KERNELS.iterdir()):
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    key.update(" ".join((*_FLAGS, *sorted(_processor_flags()))).encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "tickertape" / f"kernels-{key.hexdigest()[:16]}.so"


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
