"""POST /v1/chat/completions."""

from collections.abc import Collection
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from app.api.openai import history_types
from app.api.openai.types import (
    MAX_MESSAGES,
    Label,
    Length,
    N,
    Nullable,
    OnlyFalse,
    OpenAIFields,
    ResponseFormat,
    StreamOptions,
    constraint_of,
    is_free,
    shown_role,
)
from app.api.validation import MODEL_LIMIT, Object, Range, StringToo, either, refused
from app.guard import strict_json
from app.tapes.generation_request import FieldNames, GenerationRequest
from model.protocol import sampling_params
from model.protocol.messages import Conversation, ForcedCalls

MAX_TOOLS = 128


class TextPart(Nullable):
    left_out = history_types.PART

    type: Literal["text"]
    text: str


class RefusalPart(Nullable):
    left_out = history_types.PART

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class ReasoningPart(Nullable):
    """What a model thought before an answer is no part of the turn."""

    model_config = ConfigDict(extra="ignore")

    type: history_types.ReasoningPartType

    @property
    def text(self) -> str:
        return ""


def _kind_of_part(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "text")
    return "[reasoning]" if kind in history_types.REASONING_PARTS else f"[{kind}]"


Part = Annotated[
    Annotated[TextPart, Tag("[text]")]
    | Annotated[RefusalPart, Tag("[refusal]")]
    | Annotated[ReasoningPart, Tag("[reasoning]")],
    Discriminator(
        _kind_of_part,
        custom_error_type="refused",
        custom_error_message="should be 'text': pictures, sound and files are not read",
        custom_error_context={"param": "type"},
    ),
]


def _as_part(text: str) -> list[Object]:
    return [{"type": "text", "text": text}]


class CalledFunction(Nullable):
    left_out = history_types.FUNCTION

    name: Label
    arguments: str = ""

    @cached_property
    def value(self) -> Any:
        """Of the arguments: what is not strict JSON, such as half a call, as a text."""
        try:
            return strict_json.loads(self.arguments.encode() or b"{}")
        except ValueError:
            return self.arguments


class ToolCall(Nullable):
    left_out = history_types.CALL

    id: Label
    type: Literal["function"] = "function"
    function: CalledFunction

    def turn(self) -> Object:
        function = {"name": self.function.name, "arguments": self.function.value}
        return {"id": self.id, "type": "function", "function": function}


_CONTENT: Object = {"type": ["string", "array"]}


class ChatMessage(Nullable):
    """One turn. Content is text; pictures, sound and files are refused."""

    model_config = ConfigDict(
        json_schema_extra=either(
            {"role": {"enum": ["system", "developer", "user"]}, "content": _CONTENT},
            {"role": {"const": "tool"}, "content": _CONTENT, "tool_call_id": {"type": "string"}},
            {"role": {"const": "assistant"}, "content": _CONTENT},
            {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
            {"role": {"const": "assistant"}, "refusal": {"type": "string", "minLength": 1}},
        )
    )
    left_out = history_types.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part], StringToo(_as_part)] = Field([])
    name: Label | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = Field([])
    tool_call_id: Label | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = "content" in self.model_fields_set
        if self.role != "assistant" and not given:
            raise refused("content", "is required")
        if self.role == "assistant" and not (given or self.tool_calls or self.refusal):
            raise refused("content", "is required, or tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise refused("tool_call_id", "is required")
        return self

    def turn(self) -> Object:
        """As chat templates expect it: one text, arguments as objects. developer is system."""
        turn: Object = {
            "role": shown_role(self.role),
            "content": "".join(part.text for part in self.content) or self.refusal or "",
        }
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                turn[name] = value
        return turn


def _readable(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The arguments of calls are JSON texts, and count together as one body does."""
    read_arguments([call.function for message in messages for call in message.tool_calls])
    return messages


def read_arguments(functions: Collection[CalledFunction]) -> None:
    """Once: later they are known. Raises ValueError for more JSON than a body may have."""
    try:
        strict_json.check_together(function.arguments for function in functions)
    except ValueError as error:
        raise ValueError(f"the arguments of all calls together: {error}") from None
    for function in functions:
        function.value  # noqa: B018


Messages = Annotated[
    list[ChatMessage],
    Field(min_length=1, max_length=MAX_MESSAGES),
    AfterValidator(_readable),
]


class FunctionDefinition(Nullable):
    left_out = history_types.TOOL

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    parameters: Object = Field({})
    strict: bool = Field(
        False, description="Arguments keep to `parameters` where a call is forced."
    )


class Tool(Nullable):
    left_out = history_types.TOOL

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Nullable):
    name: str


class NamedToolChoice(Nullable):
    type: Literal["function"]
    function: NamedFunction


def _kind_of_choice(value: Any) -> str:
    """In brackets, so that app/errors.py leaves it out of the path to what is wrong."""
    return "[object]" if isinstance(value, dict | NamedToolChoice) else "[word]"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[NamedToolChoice, Tag("[object]")],
    Discriminator(_kind_of_choice),
]

_FREE: Object = {"type": ["object", "null"], "properties": {"type": {"const": "text"}}}


class ChatBody(OpenAIFields):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                either({"logprobs": {"const": True}}, {"top_logprobs": {"enum": [0, None]}}),
                either(
                    {"tools": {"type": "array", "minItems": 1}, "response_format": _FREE},
                    {
                        "tools": {"type": ["array", "null"], "maxItems": 0},
                        "tool_choice": {"enum": ["none", "auto", None]},
                    },
                ),
            ]
        }
    )
    messages: Messages
    max_tokens: Length | None = Field(None, description="The older name of max_completion_tokens.")
    max_completion_tokens: Length | None = Field(
        None, description="New tokens at most; by default as many as fit the context."
    )
    n: N = Field(1, description="How many answers.")
    logprobs: bool = Field(False, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Range(0, sampling_params.MAX_LOGPROBS)] = Field(
        0, description="With this many of the likeliest alternatives; needs logprobs."
    )
    stream_options: StreamOptions = Field(StreamOptions())
    response_format: ResponseFormat | None = Field(None, description="Text, or JSON by a schema.")
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, json_schema_extra={MODEL_LIMIT: "tools"})
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="Whether a forced call may be several.")
    modalities: list[Literal["text"]] = Field(["text"])
    service_tier: Literal["auto", "default"] = "auto"
    store: OnlyFalse = Field(False, description="Only false: chats are not kept.")
    safety_identifier: str = Field("", max_length=64, description="Taken, and without any effect.")
    prompt_cache_key: Label = Field("", description="Taken; the prefix cache needs no hint.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "needs logprobs to be true")
        if self.tool_choice not in ("none", "auto") and not self.tools:
            raise refused("tool_choice", "needs tools")
        if self.tools and not is_free(self.response_format):
            raise refused("response_format", "not together with tools")
        if isinstance(self.tool_choice, NamedToolChoice):
            name = self.tool_choice.function.name
            if all(tool.function.name != name for tool in self.tools):
                raise refused("tool_choice", f"tools has no function '{name:.80}'")
        return self

    def conversation(self) -> Conversation:
        """What the chat template is given."""
        extra: Object = {}
        if self.tools and self.tool_choice != "none":
            extra["tools"] = [
                tool.model_dump(exclude={"function": {"strict"}}) for tool in self.tools
            ]
        return Conversation([message.turn() for message in self.messages], extra)

    @property
    def forced_tools(self) -> list[FunctionDefinition]:
        """Of which one must be called; none where the model decides."""
        functions = [tool.function for tool in self.tools]
        if isinstance(self.tool_choice, NamedToolChoice):
            name = self.tool_choice.function.name
            return [function for function in functions if function.name == name]
        return functions if self.tool_choice == "required" else []

    def generation(self, forced_calls: ForcedCalls | None) -> GenerationRequest:
        given = self.max_completion_tokens
        return self.request(
            [self.conversation()],
            self.max_tokens if given is None else given,
            n=self.n,
            logprobs=self.top_logprobs if self.logprobs else None,
            constraint=forced_calls or constraint_of(self.response_format),
            names=FieldNames(
                "messages",
                "max_tokens" if given is None else "max_completion_tokens",
                "tools" if self.tools else "response_format",
            ),
        )
