"""The native wire types: /generate and /v1/tapes."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.schemas.fields import Range
from model import sampling
from model.messages import FinishReason


def _few(value: Any) -> Any:
    """Counted before any entry is looked at: complaints about 200,000 of them take seconds."""
    if isinstance(value, dict) and len(value) > sampling.MAX_LOGIT_BIAS:
        raise ValueError(f"must have at most {sampling.MAX_LOGIT_BIAS} entries, not {len(value)}")
    return value


TokenId = Annotated[int, Field(strict=False), Range(0, 2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=sampling.MAX_STOP_LENGTH)]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Range(-100, 100)]],
    BeforeValidator(_few),
    Field(max_length=sampling.MAX_LOGIT_BIAS),
]
CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]
OnDisconnect = Literal["pause", "abort", "continue"]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _json_in_query(value: Any) -> Any:
    """A query string has no objects: there, logit_bias is written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise ValueError('must be a JSON object such as {"42": -100}') from None


class GenerateFields(BaseModel):
    """A prompt, how to choose its continuation, and what to do when the reader leaves."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, description="The text to continue.")
    max_length: Annotated[int, Range(1, 2**20)] = Field(
        100, description="How many new tokens at most."
    )
    temperature: Annotated[float, Range(0, 2)] = Field(
        0.7, description="0 is greedy; higher is more random."
    )
    top_k: Annotated[int, Range(0, 2**20)] = Field(
        0, description="Draw among the k likeliest tokens only; 0 is all."
    )
    top_p: Annotated[float, Range(0, 1)] = Field(
        1.0, description="Draw among the likeliest tokens that together reach p."
    )
    min_p: Annotated[float, Range(0, 1)] = Field(
        0.0, description="Draw among tokens at least this share as likely as the likeliest."
    )
    repetition_penalty: Annotated[float, Range(0.01, 10)] = Field(
        1.0, description="Above 1 makes tokens seen in prompt or output less likely."
    )
    presence_penalty: Annotated[float, Range(-2, 2)] = Field(
        0.0, description="Taken from the logit of every token that the output holds."
    )
    frequency_penalty: Annotated[float, Range(-2, 2)] = Field(
        0.0, description="Taken from a token's logit once for each time the output holds it."
    )
    logit_bias: LogitBias = Field({}, description="Added to the logits of these token ids.")
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = Field(
        None, description="Same seed, same request, same tokens. By default a fresh one."
    )
    stop: Annotated[list[StopString], BeforeValidator(_one_or_many)] = Field(
        [],
        max_length=sampling.MAX_STOP_STRINGS,
        description="Texts that end it, left out.",
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=sampling.MAX_STOP_TOKENS, description="Token ids that end it."
    )
    ignore_eos: bool = Field(False, description="Go on past the model's end-of-text token.")
    min_tokens: Annotated[int, Range(0, 2**20)] = Field(
        0, description="No end before this many new tokens."
    )
    logprobs: Annotated[int, Range(0, sampling.MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities, with this many of the likeliest alternatives."
    )
    priority: Annotated[int, Range(-1000, 1000)] = Field(
        0, description="Lower goes first where requests wait for each other."
    )
    cache_salt: CacheSalt | None = Field(
        None, description="Share cached beginnings of prompts only with requests that have it too."
    )
    on_disconnect: OnDisconnect = Field(
        "pause",
        description="When a stream's last reader leaves: wait, stop, or go on. Unstreamed: stop.",
    )
    grace: Annotated[float, Range(0, 3600)] | None = Field(
        None,
        description="Seconds that a paused generation waits for a reader.",
    )
    timeout: Annotated[float, Range(0.001, 86400)] | None = Field(
        None, description="Seconds after which it ends with what there is."
    )


class GenerateQuery(GenerateFields):
    """GET /generate: always a stream, so that a browser's EventSource can read it."""

    logit_bias: Annotated[LogitBias, BeforeValidator(_json_in_query)] = Field(
        {}, description='As JSON, such as {"42": -100}.'
    )

    stream: Literal["true", "1"] = "true"


class TapeBody(GenerateFields):
    """POST /v1/tapes: JSON, so types are taken at their word."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateBody(TapeBody):
    stream: bool = Field(False, description="Stream tokens as Server-Sent Events.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Timings(BaseModel):
    """Milliseconds since the request was accepted; null where it did not come to that."""

    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float
    tokens_per_second: float | None


class TopLogprob(BaseModel):
    token_id: int
    token: str
    logprob: float


class Logprob(TopLogprob):
    top: list[TopLogprob]


class ErrorDetail(BaseModel):
    type: str
    message: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class GenerateAnswer(BaseModel):
    generated_text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tape: str
    logprobs: list[Logprob] | None = Field(None, exclude_if=lambda value: value is None)


class Gap(BaseModel):
    """Entries that are kept no longer; the text begins after them."""

    first: int = Field(alias="from")
    to: int


class TapeSnapshot(BaseModel):
    """A tape as it is now."""

    tape: str
    status: Literal["queued", "running", "paused", "recovering", "done"]
    generated_text: str
    last_entry: int
    finish_reason: FinishReason | None
    usage: Usage
    timings: Timings
    gap: Gap | None = Field(None, exclude_if=lambda value: value is None)


class TapeCreated(BaseModel):
    tape: str
