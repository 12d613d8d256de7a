"""The wire types of /tokenize and /detokenize."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from app.api.openai.chat_types import Messages
from app.api.openai.types import ID_SCHEMA, ModelName, Nullable
from app.api.validation import either, integers, refused
from model.protocol.messages import Conversation

MAX_TOKENS = 2**17


def _as_integers(value: Any) -> Any:
    """What is none is left for the list to name."""
    return value if not isinstance(value, list) else integers(value) or value


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
    messages: Messages | None = None

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
    tokens: Annotated[
        list[Annotated[int, WithJsonSchema(ID_SCHEMA)]],
        Field(max_length=MAX_TOKENS),
        BeforeValidator(_as_integers),
    ]


class DetokenizeAnswer(BaseModel):
    prompt: str
