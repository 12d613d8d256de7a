"""POST /v1/responses."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from app.schemas.ask import Ask
from app.schemas.fields import Object, Range, StringToo, either, refused
from app.schemas.openai import (
    MAX_MESSAGES,
    Length,
    Nullable,
    OnlyFalse,
    OpenAIFields,
    TextFormat,
    TextFormatOfResponses,
    grammar_of,
    shown_role,
)
from model import sampling
from model.messages import Conversation


class InputText(Nullable):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] = Field([])
    logprobs: list[Any] = Field([])


def _as_input_text(text: str) -> list[Object]:
    return [{"type": "input_text", "text": text}]


def _as_message(text: str) -> list[Object]:
    return [{"role": "user", "content": text}]


class InputMessage(Nullable):
    """One turn of the input; what an earlier response put out can be given back as it is."""

    unsupported = frozenset({"phase"})

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[InputText], StringToo(_as_input_text)]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def turn(self) -> Object:
        text = "".join(part.text for part in self.content)
        return {"role": shown_role(self.role), "content": text}


class ResponseText(Nullable):
    unsupported = frozenset({"verbosity"})

    format: TextFormatOfResponses = TextFormat(type="text")

    def told(self) -> Object:
        return {"format": self.format.model_dump(by_alias=True)}


class ResponseStreamOptions(Nullable):
    include_obfuscation: OnlyFalse = False


class ResponseBody(OpenAIFields):
    """POST /v1/responses."""

    model_config = ConfigDict(
        json_schema_extra=either(
            {"store": {"enum": [True, None]}}, {"background": {"enum": [False, None]}}
        )
    )
    unsupported = frozenset(
        {
            "access_programs",
            "background_options",
            "context_management",
            "conversation",
            "image",
            "max_tool_calls",
            "moderation",
            "prompt",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning",
        }
    )

    input: Annotated[
        list[InputMessage],
        Field(min_length=1, max_length=MAX_MESSAGES),
        StringToo(_as_message),
    ]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Length | None = Field(
        None, description="New tokens at most; by default as many as fit the context."
    )
    background: bool = Field(False, description="Answer at once; the response goes on by itself.")
    store: bool = Field(True, description="Whether it can be retrieved, while its tape is kept.")
    previous_response_id: str | None = Field(None, description="Go on with that conversation.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] = Field(
        {}, description="Kept with the response."
    )
    text: ResponseText = Field(ResponseText(), description="Text, or JSON by a schema.")
    include: list[Literal["message.output_text.logprobs"]] = Field([])
    top_logprobs: Annotated[int, Range(0, sampling.MAX_LOGPROBS)] = 0
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    tools: Annotated[list[Any], Field(max_length=0)] = Field([], description="Only empty.")
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: bool = Field(True, description="Without tools it has no effect.")
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["auto", "default"] = "auto"
    safety_identifier: str = Field("", description="Taken, and without any effect.")
    prompt_cache_key: str = Field("", description="Taken; the prefix cache needs no hint.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.background and not self.store:
            raise refused("store", "must be true with background, or nobody could fetch it")
        return self

    def turns(self) -> list[Object]:
        """The input as messages for a chat template."""
        return [message.turn() for message in self.input]

    def told(self) -> Object:
        """What the response says of its request."""
        return {
            "background": self.background,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self.store,
            "temperature": self.temperature,
            "text": self.text.told(),
            "tool_choice": self.tool_choice,
            "tools": [],
            "top_logprobs": self.top_logprobs,
            "top_p": self.top_p,
            "truncation": self.truncation,
            "user": self.user or None,
        }

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.include or self.top_logprobs else None

    def ask(self, conversation: Conversation) -> Ask:
        return Ask(
            prompts=[conversation],
            fields=self,
            max_tokens=self.max_output_tokens,
            logprobs=self.num_logprobs,
            grammar=grammar_of(self.text.format),
            prompt_name="input",
            grammar_name="text.format",
            max_tokens_name="max_output_tokens",
        )
