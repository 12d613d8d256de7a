"""Every option, once. A flag beats its TICKERTAPE_* variable, which beats the file tickertape.toml.

The command line is made from these fields (app/cli/options.py): a new option is one field here.
"""

import re
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_MOST_BYTES = 2**50
_MOST_STARTS = 1_000_000  # their times are remembered for each client
_DAY = 86400


def parse_bytes(value: object) -> object:
    """'1GiB', '512 MiB', '2GB' or plain bytes -> bytes. Raises ValueError naming the units."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"'{value}' is no size; write for example 512MiB, 1GiB or 2GB")
    return int(min(float(match[1]) * _UNITS[match[2].upper()], 2.0 * _MOST_BYTES))


def parse_names(value: object) -> object:
    """'a, b' -> 'a,b'. Raises ValueError when there is none, or one that is empty."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise ValueError(f"'{value}' is no list; write names with commas between")
    return ",".join(names)


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(le=_MOST_BYTES, json_schema_extra={"format": "bytes"}),
]

Names = Annotated[str, BeforeValidator(parse_names)]


class EngineSettings(BaseSettings):
    """What the engine process needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="TICKERTAPE_", toml_file="tickertape.toml", extra="ignore", validate_default=True
    )

    model: str = Field(
        "smollm2-135m",
        description="smollm2-135m, a .gguf file, a directory with config.json, safetensors and "
        "tokenizer.json, or a hub id such as org/name.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Precision; auto is the fastest here that costs at most 2 % of perplexity.",
    )
    max_num_seqs: int = Field(64, ge=1, le=1024, description="Sequences decoded together.")
    max_step_tokens: int = Field(
        256, ge=1, le=65536, description="Tokens computed in one step; longer prompts go in chunks."
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        le=2**31 - 1,
        description="Context length in tokens; by default the model's own.",
    )
    kv_cache_memory: Bytes = Field(  # type: ignore[assignment]
        "512MiB", ge=1, description="Memory for keys and values of past tokens."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads that compute; by default one for each processor it may use.",
    )
    generation_config: str = Field(
        "auto",
        description="Sampling defaults: auto takes the model's own, none only those of the API; "
        "or the path of a generation_config.json.",
    )
    prefix_cache: bool = Field(
        True, description="Compute equal beginnings of prompts once, for all requests."
    )

    @field_validator("max_step_tokens")
    @classmethod
    def _a_token_for_each(cls, value: int, info: ValidationInfo) -> int:
        """With fewer, the last sequences of a full batch would never get one."""
        if value < (seats := info.data.get("max_num_seqs", 0)):
            raise ValueError(f"must be at least --max-num-seqs, which is {seats}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


class Settings(EngineSettings):
    """What the whole service needs to know. A misspelt key in the file is an error."""

    model_config = SettingsConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key_file: Path | None = Field(
        None, description="File with the keys that clients may use, one a line; none needs no key."
    )
    rate_limit: str | None = Field(
        None,
        description="What one key may start, such as 60/minute; without keys, one address.",
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Generations that one key may have at once; more get 429.",
    )
    allowed_hosts: Names | None = Field(
        None, description="Host names to answer to besides localhost, with commas; * is any."
    )
    cors_origins: Names | None = Field(
        None, description="Origins whose pages may ask, with commas; * is any, by default none."
    )
    max_request_line: Bytes = Field(  # type: ignore[assignment]
        "16KiB", ge=256, description="Size of path and query; longer ones are refused with 414."
    )
    max_header_size: Bytes = Field(  # type: ignore[assignment]
        "64KiB", ge=1024, description="Size of a request's headers; more are refused with 431."
    )
    header_timeout: float = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="Seconds in which a request's headers must be there.",
    )
    max_body_size: Bytes = Field(  # type: ignore[assignment]
        "2MiB", ge=1024, description="Size of a request's body; a larger one is refused with 413."
    )
    body_timeout: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds in which a request's body must be there, and one more for each KiB.",
    )
    keep_alive_timeout: float = Field(
        75.0,
        gt=0,
        le=86400,
        description="Seconds that a connection is kept for another request.",
    )
    max_waiting: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="Requests that may wait for a seat; more are refused with 429.",
    )
    max_paused: int = Field(
        256,
        ge=0,
        description="Sequences that may wait for a reader to come back; beyond it, the oldest of "
        "the client with most of them is cancelled.",
    )
    max_readers: int = Field(
        1024,
        ge=1,
        description="Readers that one client's tapes may have at once; the first 4 of each tape "
        "are always let in.",
    )
    queue_timeout: float = Field(
        300.0,
        ge=0.1,
        le=_DAY,
        description="Seconds that a request may wait for a seat before it is given up.",
    )
    tapes: str = Field(
        "memory", description="Where tapes are kept: memory, or redis://host:6379/0 for replicas."
    )
    tape_ttl: float = Field(
        300.0, ge=0, le=30 * _DAY, description="Seconds that a finished tape is kept."
    )
    tape_memory: Bytes = Field(  # type: ignore[assignment]
        "256MiB",
        ge=0,
        description="Memory for all tapes. Beyond it finished ones go, then paused ones of clients "
        "that have most, and then these clients' new work is refused with 429.",
    )
    max_tape_memory: Bytes = Field(  # type: ignore[assignment]
        "64MiB", ge=2**14, description="Memory for one tape; beyond it, its oldest entries go."
    )
    grace: float = Field(
        10.0, ge=0, le=3600, description="Seconds that a paused sequence waits for its reader."
    )
    ping_interval: float = Field(
        15.0, ge=0.05, le=15, description="Seconds between comments on a silent stream."
    )
    send_timeout: float = Field(
        15.0,
        ge=0.1,
        le=3600,
        description="Seconds after which a reader that takes nothing is cut off.",
    )
    engine_timeout: float = Field(
        300.0, ge=1, description="Seconds without a step after which the engine is started anew."
    )
    demo: bool = Field(
        False,
        description="Let users of this machine kill the engine from the page, to see it recover.",
    )
    shutdown_grace: float = Field(
        5.0, ge=0, le=_DAY, description="Seconds that running streams may go on after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How lines are written; auto is text on a terminal, JSON elsewhere."
    )

    otlp_endpoint: str | None = Field(
        None, description="OTLP collector for traces, such as http://127.0.0.1:4318; none is off."
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/]", value):
            raise ValueError("must begin with http:// or https://, such as http://127.0.0.1:4318")
        return value or None

    @field_validator("tapes")
    @classmethod
    def _a_store(cls, value: str) -> str:
        if value != "memory" and not re.match(r"(rediss?|unix)://.", value):
            raise ValueError("must be memory, or a URL such as redis://127.0.0.1:6379/0")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _a_rate(cls, value: str | None) -> str | None:
        if value is None:
            return None
        import limits  # takes 0.1 s, which only those wait for who limit

        try:
            rates = limits.parse_many(value)
        except ValueError:
            raise ValueError("must be a number per time, such as 60/minute or 5/second") from None
        # "5/0 minutes" would be read as 5/1 minutes.
        if any(int(number) == 0 for number in re.findall(r"\d+", value)):
            raise ValueError("must not have a 0: nobody could start anything; the least is 1/hour")
        if any(rate.amount > _MOST_STARTS or rate.get_expiry() > 366 * _DAY for rate in rates):
            raise ValueError(f"must be at most {_MOST_STARTS} in at most a year, such as 60/minute")
        return value

    @field_validator("host")
    @classmethod
    def _a_host(cls, value: str) -> str:
        """An empty one would be every address of this machine."""
        if not re.fullmatch(r"[^\s/\[\]\x00-\x1f]{1,253}", value):
            raise ValueError("must be an address or a name to listen on, such as 127.0.0.1 or ::1")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: str | None) -> str | None:
        for name in value.split(",") if value else ():
            if not re.fullmatch(r"\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", name):
                raise ValueError(
                    f"must be names as in example.org or [::1], without scheme and port; '{name}' "
                    "is none"
                )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str | None) -> str | None:
        """A browser sends scheme, host and port, and nothing behind: RFC 6454, section 6.1."""
        for origin in value.split(",") if value else ():
            if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+", origin):
                raise ValueError(
                    f"must be origins as in https://example.org:8443, without a path; '{origin}' "
                    "is none"
                )
        return value


class ClusterSettings(Settings):
    """What `tickertape cluster` needs to know beside that, for the replicas of one service."""

    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    replicas: int = Field(2, ge=1, le=1000, description="Replicas that are always there.")
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Replicas at most, under load; by default no more than always.",
    )
    target_streams: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="Streams, or sequences that run or wait, for one replica.",
    )
    scale_up_after: float = Field(
        15.0,
        ge=0,
        le=_DAY,
        description="Seconds of more than that, before another replica is started.",
    )
    scale_down_after: float = Field(
        300.0, ge=0, le=_DAY, description="Seconds of less than that, before one of them is ended."
    )
    drain_timeout: float = Field(
        600.0,
        ge=0,
        le=_DAY,
        description="Seconds that a replica that is to go waits for its streams.",
    )
    replica_cpus: int = Field(1, ge=1, le=1024, description="Processors of a replica.")
    replica_gpus: int = Field(0, ge=0, le=1024, description="GPUs of a replica.")

    @field_validator(
        "max_request_line",
        "max_header_size",
        "header_timeout",
        "body_timeout",
        "keep_alive_timeout",
        mode="before",
    )
    @classmethod
    def _not_in_a_cluster(cls, value: object, info: ValidationInfo) -> object:
        if value != cls.model_fields[str(info.field_name)].default:
            raise ValueError("must be left out here, where Ray's server reads heads, not ours")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _not_below_the_least(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < (least := info.data.get("replicas", 1)):
            raise ValueError(f"must be at least --replicas, which is {least}")
        return value


S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """An option, variable or file holds something that is no setting; one line per fault."""


def load(kind: type[S], flags: dict[str, Any]) -> S:
    """The settings, flags first. Raises SettingsError naming each fault and where to mend it."""
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except TOMLDecodeError as error:
        raise SettingsError(f"tickertape.toml is not valid TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError("; ".join(_fault(fault) for fault in error.errors())) from None


def _fault(fault: Any) -> str:
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"tickertape.toml has no setting '{name}'; docs/settings.md lists those that exist"
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} (or TICKERTAPE_{name.upper()}) {message}, not {fault['input']!r}"
