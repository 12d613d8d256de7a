"""Every setting with hostile values: refused at the start by its name, or the server works."""

import re
from pathlib import Path
from typing import Any

import annotated_types
import httpx
import pytest
from pydantic.fields import FieldInfo

from app.main import create_app
from app.settings import ClusterSettings, Settings, SettingsError, load
from model.protocol.errors import ModelLoadError
from tests.answers import read_all
from tests.server import running
from tests.speed import patience

HOSTILE = [
    *("0", "-1", "-0.0", "nan", "-NaN", "inf", "-inf", "1e999", "1e-400", "5e-324", "1e308"),
    *("9" * 400, "9" * 5000, "1" + "0" * 30, "0x10", "1_000", "٣", "true", "None", "-", "1.5"),
    *("", " ", "\t", "\n", "\0", "1\0", "x" * 5000, "ä", "ä" * 300, "a b", ",", "a,,b", "*"),
    *("0/minute", "1/0 minute", "0/minute,5/second", "60/minute, 0/day", "-5/minute", "5/"),
    *("9" * 30 + "/minute", "5/" + "9" * 30 + " days", "5/lightyear"),
    *("0KiB", "0.1KiB", "1e30GiB", "9" * 400 + "GiB", "999999999999GiB", "-1MiB", "KiB"),
    *("http://", "http://[::1", "https://a.example/", "https://a.example/path", "a.example:80"),
    *("redis://", "redis://h:port", "redis://h:99999999", "redis://h/x/y", "unix://"),
    *("~nobody-of-that-name/x", "../..", "/dev/null", "/proc/self/mem", ".", "[::1", "::1]"),
]

FIELDS = sorted(ClusterSettings.model_fields)


def refusal(kind: type[Settings], flags: dict[str, Any], number: bool) -> str | None:
    """Why the server would not start. A number that is accepted is tried below, by a server."""
    try:
        settings = load(kind, flags)
        if not number:
            create_app(settings)
    except (SettingsError, ModelLoadError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("variable", [False, True], ids=["flag", "variable"])
def test_a_hostile_value_is_refused_by_name_or_accepted(
    field: str, variable: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Settings if field in Settings.model_fields else ClusterSettings
    number = any(isinstance(part, annotated_types.Ge) for part in bounds_of(kind, field))
    for value in HOSTILE:
        if field == "model" and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            continue  # the name of a model on the hub: nothing is to be downloaded here
        flags: dict[str, Any] = {} if field == "model" else {"model": str(tiny_model)}
        if not variable:
            flags[field] = value
        elif "\0" in value:
            continue  # no variable can hold it
        else:
            monkeypatch.setenv(f"TICKERTAPE_{field.upper()}", value)
        why = refusal(kind, flags, number)
        named = (
            [value[:50], "is no model"] if field == "model" else [f"--{field.replace('_', '-')}"]
        )
        assert why is None or any(name in why for name in named), (value, why)


def bounds_of(kind: type[Settings], field: str) -> list[object]:
    info: FieldInfo = kind.model_fields[field]
    return [
        inner
        for part in info.metadata
        for inner in (part.metadata if isinstance(part, FieldInfo) else [part])
    ]


def extremes(
    bound: type[annotated_types.Ge] | type[annotated_types.Le], *without: str
) -> list[str]:
    """The flags that set every number to its bound, but for some."""
    flags = []
    for field in Settings.model_fields:
        values = [
            part.ge if isinstance(part, annotated_types.Ge) else part.le
            for part in bounds_of(Settings, field)
            if isinstance(part, bound)
        ]
        if values and field not in without:
            extreme = max(values) if bound is annotated_types.Ge else min(values)
            flags += [f"--{field.replace('_', '-')}", str(extreme)]
    return flags


# What the engine says of these two, by name, depends on the machine and the model; with the least
# --queue-timeout a busy machine gives requests up, as it should.
LOWEST = extremes(
    annotated_types.Ge, "port", "kv_cache_memory", "max_model_len", "queue_timeout", "threads"
)
HIGHEST = extremes(annotated_types.Le, "port", "kv_cache_memory", "max_model_len")


@pytest.mark.parametrize("flags", [LOWEST, HIGHEST], ids=["lowest", "highest"])
async def test_with_every_number_at_its_bound_the_server_works(
    flags: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    assert len(flags) > 30
    with running(tmp_path / "log", "--model", str(tiny_model), *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http:
            reading = await read_all(http, {"prompt": "a", "max_length": 3, "ignore_eos": True})
            assert reading.done
            assert len(reading.token_ids) == 3
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rate_limit", "0/minute", "must not have a 0"),
        ("rate_limit", "1/0 minute", "must not have a 0"),
        ("host", "", "such as 127.0.0.1"),
        ("tape_ttl", "inf", "less than or equal to 2592000"),
        ("shutdown_grace", "inf", "less than or equal to 86400"),
        ("cors_origins", "https://a.example/", "without a path"),
        ("allowed_hosts", "a.example:8000", "without scheme and port"),
        ("max_body_size", "0", "greater than or equal to 1024"),
        ("engine_timeout", "nan", "greater than or equal to 1"),
    ],
)
def test_the_refusal_says_what_to_write(field: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(Settings, {field: value})
    assert f"--{field.replace('_', '-')}" in str(error.value)
    assert words in str(error.value)


def test_an_engine_that_shall_never_be_killed_is_allowed() -> None:
    assert load(Settings, {"engine_timeout": "inf"}).engine_timeout == float("inf")
