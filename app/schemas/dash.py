"""The wire types of /v1/dash, for the documentation; app/dash.py writes them."""

from typing import Literal

from pydantic import BaseModel

from model.messages import FinishReason


class DashPercentiles(BaseModel):
    p50: float
    p95: float
    p99: float


class DashSample(BaseModel):
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


class DashRow(BaseModel):
    tape: str
    status: Literal["queued", "running", "paused", "recovering", "done"]
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
