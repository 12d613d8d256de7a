"""Memory of a process tree, against a tree that is known."""

import os
import subprocess
import sys

from bench.memory import alone, memory, tree

BIG = 64 << 20
GRANDCHILD = f"import sys; a = bytearray(b'x' * {BIG}); print(flush=True); sys.stdin.read()"
CHILD = (
    "import subprocess, sys\n"
    f"subprocess.run([sys.executable, '-c', {GRANDCHILD!r}], stdin=sys.stdin, check=True)\n"
)


def test_a_grandchild_counts() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout
        child.stdout.readline()  # the grandchild has its memory
        found = memory(child.pid)
        assert len(tree(child.pid)) == 2
        assert child.pid in tree(os.getpid())
        assert found
        assert BIG < found.pss <= found.rss < 4 * BIG
        assert 0 < alone(child.pid) < BIG
    finally:
        child.communicate()  # its input ends, so both do
    assert memory(child.pid) is None
