"""The native wire types: /generate and /v1/tapes."""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.api.openai.chat_types import Messages
from app.api.openai.types import ResponseFormat, constraint_of
from app.api.sampling_fields import LogitBias, SamplingFields
from app.api.validation import Range, refused
from app.guard import strict_json
from app.tapes.generation_request import FieldNames, GenerationRequest
from app.tapes.heads import MarkKind
from app.tapes.tape import Status
from model.protocol import sampling_params
from model.protocol.messages import Conversation, FinishReason


def _json_in_query(value: Any) -> Any:
    """A query string has no objects: there, logit_bias is written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return strict_json.loads(value.encode())
    except ValueError as error:
        raise ValueError(f'must be a JSON object such as {{"42": -100}}: {error}') from None


# The default of /generate is a promise older than the models' own.
_DOCUMENTED = frozenset({"temperature"})


class GenerateFields(SamplingFields):
    """A prompt, and how to continue it."""

    prompt: str = Field(min_length=1, description="The text to continue.")
    max_length: Annotated[int, Range(1, 2**20, of="length")] = Field(
        100, description="How many new tokens at most."
    )
    logprobs: Annotated[int, Range(0, sampling_params.MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities, with this many of the likeliest alternatives."
    )

    def generation(self) -> GenerationRequest:
        """The default length is lowered to what fits, one that was given is not."""
        return self.request(
            [self.prompt],
            self.max_length,
            exact="max_length" in self.model_fields_set,
            logprobs=self.logprobs,
        )


class GenerateQuery(GenerateFields):
    """GET /generate: always a stream, so that a browser's EventSource can read it."""

    own_defaults = _DOCUMENTED

    logit_bias: Annotated[LogitBias, BeforeValidator(_json_in_query)] = Field(
        {}, description='As JSON, such as {"42": -100}.'
    )

    stream: Literal["true", "1"] = "true"


class TapeBody(GenerateFields):
    """POST /v1/tapes: JSON, so types are taken at their word."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]},
    )

    prompt: str = Field("", min_length=1, description="The text to continue.")
    messages: Messages = Field(
        [], description="A conversation, of which the model writes the next turn."
    )
    response_format: ResponseFormat | None = Field(
        None, description="Text, or JSON by a schema; as for chat completions."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        given = self.model_fields_set & {"prompt", "messages"}
        if len(given) != 1:
            what = "not both" if given else "one of the two is required"
            raise refused("prompt", f"give prompt (a text) or messages (a conversation): {what}")
        return self

    def generation(self) -> GenerationRequest:
        request = replace(super().generation(), constraint=constraint_of(self.response_format))
        if not self.messages:
            return request
        conversation = Conversation([message.turn() for message in self.messages])
        return replace(request, prompts=[conversation], names=FieldNames("messages"))


class GenerateBody(TapeBody):
    own_defaults = _DOCUMENTED

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
    note: str | None = Field(
        None, exclude_if=lambda value: value is None, description="Why the answer is empty."
    )
    logprobs: list[Logprob] | None = Field(None, exclude_if=lambda value: value is None)


class Gap(BaseModel):
    """Entries that are kept no longer; the text begins after them."""

    first: int = Field(alias="from")
    to: int


class TapeSnapshot(BaseModel):
    """A tape as it is now."""

    tape: str
    status: Status
    generated_text: str
    last_entry: int
    finish_reason: FinishReason | None
    usage: Usage
    timings: Timings
    gap: Gap | None = Field(None, exclude_if=lambda value: value is None)
    parent: str | None = Field(None, exclude_if=lambda value: value is None)
    forked_at: int | None = Field(None, exclude_if=lambda value: value is None)


class ReaderHead(BaseModel):
    reader: int = Field(description="As the X-Reader header of its stream says.")
    entry: int


class TapeMark(BaseModel):
    """Something that happened after an entry."""

    kind: MarkKind
    entry: int
    reader: int | None = Field(None, exclude_if=lambda value: value is None)
    replayed: int | None = Field(None, exclude_if=lambda value: value is None)
    seconds_ago: float


class TapeHeads(BaseModel):
    """Where the writer and the readers of this server stand, and the newest marks."""

    status: Status
    last_entry: int
    readers: list[ReaderHead]
    marks: list[TapeMark]


class TapeCreated(BaseModel):
    tape: str
