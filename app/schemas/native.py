"""The native wire types: /generate and /v1/tapes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app import strict_json
from app.schemas.ask import Ask
from app.schemas.fields import Range
from app.schemas.sampling import LogitBias, SamplingFields
from model import sampling
from model.messages import FinishReason


def _json_in_query(value: Any) -> Any:
    """A query string has no objects: there, logit_bias is written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return strict_json.loads(value.encode())
    except ValueError as error:
        raise ValueError(f'must be a JSON object such as {{"42": -100}}: {error}') from None


class GenerateFields(SamplingFields):
    """A prompt, and how to continue it."""

    prompt: str = Field(min_length=1, description="The text to continue.")
    max_length: Annotated[int, Range(1, 2**20, of="length")] = Field(
        100, description="How many new tokens at most."
    )
    logprobs: Annotated[int, Range(0, sampling.MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities, with this many of the likeliest alternatives."
    )

    def ask(self) -> Ask:
        """The default length is lowered to what fits, one that was given is not."""
        return Ask(
            prompts=[self.prompt],
            fields=self,
            max_tokens=self.max_length,
            exact="max_length" in self.model_fields_set,
            logprobs=self.logprobs,
        )


class GenerateQuery(GenerateFields):
    """GET /generate: always a stream, so that a browser's EventSource can read it."""

    logit_bias: Annotated[LogitBias, BeforeValidator(_json_in_query)] = Field(
        {}, description='As JSON, such as {"42": -100}.'
    )

    stream: Literal["true", "1"] = "true"


class TapeBody(GenerateFields):
    """POST /v1/tapes: JSON, so types are taken at their word."""

    model_config = ConfigDict(strict=True)


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
