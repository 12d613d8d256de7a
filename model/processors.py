"""How many processors this process may keep busy."""

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable() -> int:
    """Those it may run on, or fewer where its cgroup's quota is for fewer: a container's limit, or
    systemd's CPUQuota.

    More threads would use up the quota early, and all stand still for the rest of its period.
    """
    return min([len(os.sched_getaffinity(0)), *map(ceil, _quotas(_CGROUPS, _OWN_CGROUP))])


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Processors allowed by this process's cgroup and by each around it (cgroup v2, cpu.max)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    inside = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for group in (path := PurePosixPath(inside), *path.parents):
        with suppress(OSError, ValueError):  # the root has none, and others say "max"
            quota, period = (cgroups / group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
