"""The memory of a server: of a process and all that it started. Linux only."""

from pathlib import Path

import msgspec

PROC = Path("/proc")


class Memory(msgspec.Struct, frozen=True):
    """Bytes over all processes. RSS counts a shared page once for each of them, PSS once."""

    rss: int
    pss: int


def memory(root: int) -> Memory | None:
    """Of the process `root` and its descendants; None where there is no /proc to say."""
    if not (PROC / str(root) / "smaps_rollup").exists():
        return None
    rollups = [_rollup(pid) for pid in tree(root)]
    return Memory(
        rss=sum(r.get("Rss", 0) for r in rollups), pss=sum(r.get("Pss", 0) for r in rollups)
    )


def alone(pid: int) -> int:
    """PSS of one process without its children, in bytes; 0 where there is no /proc to say."""
    return _rollup(pid).get("Pss", 0)


def tree(root: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        children.setdefault(_parent(path), []).append(int(path.parent.name))
    found = [root]
    for pid in found:  # grows as it is walked
        found += children.get(pid, [])
    return found


def _parent(stat: Path) -> int:
    """Field 4 of proc_pid_stat(5); the name before it may hold spaces and brackets."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it ended just now
        return 0


def _rollup(pid: int) -> dict[str, int]:
    """The kB lines of smaps_rollup in bytes; nothing of a process that ended just now."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in fields}
