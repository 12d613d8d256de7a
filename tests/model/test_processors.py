"""How many threads compute: as many as there are processors for, or as were asked for."""

import os
from pathlib import Path

import pytest

from app.processes.engine_client import EngineClient, configuration
from app.settings import EngineSettings
from model import processors
from model.processors import _quotas


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"": "150000 100000"}, [1.5]),  # a container sees its own cgroup as the root
        ("0::/\n", {"": "max 100000"}, []),
        ("0::/\n", {}, []),
        ("1:cpu:/a\n0::/a/b\n", {"a/b": "max 100000", "a": "200000 100000"}, [2.0]),
        ("0::/a/b\n", {"a/b": "50000 100000", "a": "200000 100000"}, [0.5, 2.0]),
        ("0::/a\n", {"a": "what else"}, []),
        ("1:cpu:/a\n", {"a": "200000 100000"}, []),  # cgroup v1 alone
    ],
)
def test_the_quota_of_a_cgroup_and_of_those_around_it(
    tmp_path: Path, own: str, limits: dict[str, str], expected: list[float]
) -> None:
    (tmp_path / "own").write_text(own)
    for group, limit in limits.items():
        folder = tmp_path / "groups" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit)
    assert list(_quotas(tmp_path / "groups", tmp_path / "own")) == expected


def test_where_there_are_no_cgroups_nothing_is_limited(tmp_path: Path) -> None:
    assert list(_quotas(tmp_path, tmp_path / "missing")) == []


def test_a_quota_for_fewer_counts_and_one_for_more_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = len(os.sched_getaffinity(0))
    for quota, expected in ((0.2, 1), (allowed + 0.5, allowed), (allowed - 0.5, allowed)):
        monkeypatch.setattr(processors, "_quotas", lambda *_, quota=quota: [quota])
        assert processors.usable() == expected


def tasks(pid: int | None) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_the_engine_has_as_many_threads_as_it_is_told(model_path: Path) -> None:
    threads = []
    for count in (1, 3):
        settings = EngineSettings(threads=count, kv_cache_memory="16MiB")  # type: ignore[arg-type]
        link = EngineClient(configuration(settings, model_path))
        await link.start()
        await link.loaded()
        threads.append(tasks(link.pid))
        await link.stop()
    assert threads[1] >= threads[0] + 2  # torch has some of its own
