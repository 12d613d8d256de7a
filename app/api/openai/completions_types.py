"""POST /v1/completions."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from app.api.openai.types import ID_SCHEMA, MAX_CHOICES, Length, N, OpenAIFields, StreamOptions
from app.api.validation import Range, either, integers, refused
from app.tapes.generation_request import FieldNames, GenerationRequest
from model.protocol import sampling_params


def _prompts(value: Any) -> Any:
    """A text, a list of texts, token ids, or a list of those -> a list of texts or token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, token ids, or a list of those")
    if ids := _ids(value):
        return [ids]
    if len(value) > MAX_CHOICES:
        raise ValueError(f"must have from 1 to {MAX_CHOICES} prompts, not {len(value)}")
    if all(isinstance(item, str) for item in value):
        return value
    prompts = [_ids(item) for item in value]
    if None in prompts:
        raise ValueError("must hold strings only, or token ids only")
    return prompts


def _ids(value: Any) -> list[int] | None:
    """None for what is no list of integers."""
    return integers(value) if isinstance(value, list) else None


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "minItems": 1,
            "maxItems": MAX_CHOICES,
        },
        {"type": "array", "items": ID_SCHEMA, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": ID_SCHEMA, "minItems": 1},
            "minItems": 1,
            "maxItems": MAX_CHOICES,
        },
    ]
}
Prompts = Annotated[
    list[str | list[int]], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)
]


class CompletionBody(OpenAIFields):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra=either({"echo": {"enum": [False, None]}}, {"logprobs": {"type": "null"}})
    )

    prompt: Prompts = Field(description="A text, token ids, or several of either.")
    max_tokens: Length = Field(16, description="New tokens at most.")
    n: N = Field(1, description="Choices for each prompt.")
    echo: bool = Field(False, description="Begin each text with its prompt.")
    logprobs: Annotated[int, Range(0, sampling_params.MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities, with this many of the likeliest alternatives."
    )
    stream_options: StreamOptions = Field(StreamOptions())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise refused("n", f"prompts times n must be from 1 to {MAX_CHOICES}")
        if self.echo and self.logprobs is not None:
            raise refused("echo", "not together with logprobs; the prompt has none")
        return self

    def generation(self) -> GenerationRequest:
        return self.request(
            self.prompt,
            self.max_tokens,
            exact="max_tokens" in self.model_fields_set,
            n=self.n,
            logprobs=self.logprobs,
            names=FieldNames(max_tokens="max_tokens"),
        )
