"""The wire types of /tokenize and /detokenize."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from app.schemas.fields import either, refused, whole
from app.schemas.openai import ID_SCHEMA, MAX_MESSAGES, ModelName, Nullable
from app.schemas.openai_chat import ChatMessage
from model.messages import Conversation

MAX_TOKENS = 2**17


class TokenizeBody(Nullable):
    """A text, or a conversation as the model is shown it."""

    model_config = ConfigDict(
        json_schema_extra=either(
            {"prompt": {"type": "string"}, "messages": {"type": "null"}},
            {"prompt": {"type": "null"}, "messages": {"type": "array"}},
        )
    )

    model: ModelName | None = Field(None, description="As /v1/models has it.")
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refused("prompt", "give either prompt or messages")
        return self

    def asked(self) -> str | Conversation:
        if self.messages is None:
            return self.prompt or ""
        return Conversation([message.turn() for message in self.messages])


class TokenizeAnswer(BaseModel):
    """`pieces` are the tokens as texts; parts of a code point show as U+FFFD."""

    tokens: list[int]
    pieces: list[str]
    count: int
    max_model_len: int


class DetokenizeBody(Nullable):
    model: ModelName | None = Field(None, description="As /v1/models has it.")
    tokens: list[Annotated[int, BeforeValidator(whole), WithJsonSchema(ID_SCHEMA)]] = Field(
        max_length=MAX_TOKENS
    )


class DetokenizeAnswer(BaseModel):
    prompt: str
