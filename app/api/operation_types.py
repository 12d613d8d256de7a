"""The wire types of /health, /ready and /version."""

from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    status: Literal["ok"]
    engine: Literal["loading", "ready", "recovering", "draining"]
    engine_pid: int | None
    running: int
    waiting: int
    paused: int
    tapes: int
    kv_blocks_used: int
    kv_blocks_total: int


class Ready(BaseModel):
    status: Literal["ready"]


class Version(BaseModel):
    version: str
    model: str
    dtype: str | None
    device: str | None
    max_model_len: int
    torch: str | None
