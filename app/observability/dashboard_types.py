"""The wire types of /v1/dash."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from app.tapes.tape import Status
from model.protocol.messages import FinishReason


@dataclass(frozen=True, slots=True)
class DashPercentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class DashSample:
    """The whole server at one moment, `at` seconds since 1970.

    `tokens_per_second` is of the time since the sample before. Percentiles and the share of hits
    are of the last ten samples, and None when nothing has come to pass in them.
    """

    at: float
    engine: Literal["loading", "ready", "recovering", "draining"]
    tokens_per_second: float
    running: int
    waiting: int
    paused: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_hit_share: float | None
    ttft_ms: DashPercentiles | None
    itl_ms: DashPercentiles | None
    readers: int


@dataclass(frozen=True, slots=True)
class DashRow:
    """One tape. `age_s` is the time since it began, or from there to its end.

    `owner` names the API key that made it as the log does: it is not the key.
    """

    tape: str
    status: Status
    choices: int
    prompt_tokens: int
    completion_tokens: int
    tokens_per_second: float | None
    ttft_ms: float | None
    readers: int
    age_s: float
    owner: str | None
    finish_reason: FinishReason | None


class HistoryEvent(BaseModel):
    samples: list[DashSample]


class SampleEvent(BaseModel):
    sample: DashSample
    tapes: list[DashRow]
    tapes_left_out: int


class EndEvent(BaseModel):
    reason: Literal["samples", "shutdown"]
