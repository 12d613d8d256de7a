"""OpenAI's wire types: completions, chat completions, responses, and what all three share.

Fields are OpenAI's own, and the extras of `SamplingFields`. A field that is not here is refused by
name; null is the same as leaving it out. docs/compatibility.md lists every field.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.schemas.ask import Ask, Conversation
from app.schemas.fields import OWN, ByType, Object, Range, StringToo, either, refused, whole
from app.schemas.sampling import SamplingFields
from model import grammar, sampling

MAX_CHOICES = 128  # of all prompts of a request together
MAX_TOOLS = 128
MAX_MESSAGES = 2048

Length = Annotated[int, Range(1, 2**20, of="length")]
ModelName = Annotated[str, WithJsonSchema({"type": "string", OWN: "name"})]


_NULL: Object = {"type": "null"}


def _false(value: bool) -> bool:
    if value:
        raise ValueError("should be false")
    return value


# A Literal would take 0 for it.
OnlyFalse = Annotated[
    bool, AfterValidator(_false), WithJsonSchema({"type": "boolean", "const": False})
]


class Nullable(BaseModel):
    """Whatever may be left out may be null, too: clients write both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # OpenAI's fields that this server does not have: null is no wish.
    unsupported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        names = known | cls.unsupported
        return {k: v for k, v in value.items() if v is not None or k not in names}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            if name not in required:
                described = {k: field.pop(k) for k in ("title", "description") if k in field}
                default = {"default": field.pop("default")} if "default" in field else {}
                some = [one for one in field.get("anyOf", [field]) if one != _NULL]
                schema["properties"][name] = {
                    "anyOf": [*some, _NULL],
                    **described,
                    **default,
                }
        return schema


class StreamOptions(Nullable):
    include_usage: bool = Field(False, description="End with a chunk that has the usage.")
    include_obfuscation: OnlyFalse = Field(False, description="Only false.")


class OpenAIFields(Nullable, SamplingFields):
    """What the three endpoints have in common."""

    model: ModelName | None = Field(
        None, description="As /v1/models has it; by default the one there."
    )
    temperature: Annotated[float, Range(0, 2)] = Field(
        1.0, description="0 is greedy; higher is more random."
    )
    stream: bool = Field(False, description="Stream as Server-Sent Events.")
    user: str = Field("", description="Taken, and without any effect.")


# ---- response_format and tools: what the answer must look like


class TextFormat(Nullable):
    type: Literal["text"]


class JSONObjectFormat(Nullable):
    type: Literal["json_object"]


class NamedSchema(Nullable):
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    schema_: Object = Field({}, alias="schema")
    strict: bool = Field(True, description="It is always followed.")


class JSONSchemaFormat(Nullable):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchemaFormat(NamedSchema):
    """The way that /v1/responses writes it."""

    type: Literal["json_schema"]


_FORMATS = ByType("text", "json_object", "json_schema")
ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, _FORMATS]
TextFormatOfResponses = Annotated[TextFormat | JSONObjectFormat | FlatSchemaFormat, _FORMATS]


def grammar_of(format: BaseModel | None) -> str | None:
    """What the answer must keep to; None where it is free. Raises GrammarError."""
    match format:
        case JSONObjectFormat():
            return grammar.json_object()
        case JSONSchemaFormat():
            return grammar.json_schema(format.json_schema.schema_)
        case FlatSchemaFormat():
            return grammar.json_schema(format.schema_)
        case _:
            return None


# ---- /v1/completions


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
    items: list[Any] = [whole(item) for item in value] if isinstance(value, list) else [None]
    return items if all(type(item) is int for item in items) else None


_ID_SCHEMA = {"type": "integer", "minimum": 0, OWN: "token_id"}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "minItems": 1,
            "maxItems": MAX_CHOICES,
        },
        {"type": "array", "items": _ID_SCHEMA, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": _ID_SCHEMA, "minItems": 1},
            "minItems": 1,
            "maxItems": MAX_CHOICES,
        },
    ]
}
Prompts = Annotated[
    list[str | list[int]], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)
]
N = Annotated[int, Range(1, MAX_CHOICES)]


class CompletionBody(OpenAIFields):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra=either({"echo": {"enum": [False, None]}}, {"logprobs": {"type": "null"}})
    )
    unsupported = frozenset({"best_of", "suffix"})

    prompt: Prompts = Field(description="A text, token ids, or several of either.")
    max_tokens: Length = Field(16, description="New tokens at most.")
    n: N = Field(1, description="Choices for each prompt.")
    echo: bool = Field(False, description="Begin each text with its prompt.")
    logprobs: Annotated[int, Range(0, sampling.MAX_LOGPROBS)] | None = Field(
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

    def ask(self) -> Ask:
        return Ask(
            prompts=self.prompt,
            fields=self,
            max_tokens=self.max_tokens,
            exact="max_tokens" in self.model_fields_set,
            n=self.n,
            logprobs=self.logprobs,
            max_tokens_name="max_tokens",
        )


# ---- /v1/chat/completions


class TextPart(Nullable):
    type: Literal["text"]
    text: str


def _as_part(text: str) -> list[Object]:
    return [{"type": "text", "text": text}]


class CalledFunction(Nullable):
    name: str
    arguments: str

    def read(self) -> Any:
        """An object where they are one; a call that came to its end too early is told as it is."""
        try:
            return orjson.loads(self.arguments or "{}")
        except orjson.JSONDecodeError:
            return self.arguments


class ToolCall(Nullable):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def turn(self) -> Object:
        function = {"name": self.function.name, "arguments": self.function.read()}
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
    unsupported = frozenset({"audio", "function_call"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[TextPart], StringToo(_as_part)] = []
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None

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
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(part.text for part in self.content) or self.refusal or "",
        }
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                turn[name] = value
        return turn


class FunctionDefinition(Nullable):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    parameters: Object = {}
    strict: bool = Field(
        False, description="Arguments keep to `parameters` where a call is forced."
    )


class Tool(Nullable):
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
    unsupported = frozenset(
        {
            "audio",
            "function_call",
            "functions",
            "metadata",
            "moderation",
            "prediction",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning_effort",
            "verbosity",
            "web_search_options",
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: Length | None = Field(None, description="The older name of max_completion_tokens.")
    max_completion_tokens: Length | None = Field(
        None, description="New tokens at most; by default as many as fit the context."
    )
    n: N = Field(1, description="How many answers.")
    logprobs: bool = Field(False, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Range(0, sampling.MAX_LOGPROBS)] = Field(
        0, description="With this many of the likeliest alternatives; needs logprobs."
    )
    stream_options: StreamOptions = Field(StreamOptions())
    response_format: ResponseFormat | None = Field(None, description="Text, or JSON by a schema.")
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, json_schema_extra={OWN: "tools"})
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="Whether a forced call may be several.")
    modalities: list[Literal["text"]] = ["text"]
    service_tier: Literal["auto", "default"] = "auto"
    store: OnlyFalse = Field(False, description="Only false: chats are not kept.")
    safety_identifier: str = Field("", description="Taken, and without any effect.")
    prompt_cache_key: str = Field("", description="Taken; the prefix cache needs no hint.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "needs logprobs to be true")
        if self.tool_choice not in ("none", "auto") and not self.tools:
            raise refused("tool_choice", "needs tools")
        if self.tools and grammar_free(self.response_format):
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

    def ask(self, conversation: Conversation, grammar: str | None) -> Ask:
        given = self.max_completion_tokens
        return Ask(
            prompts=[conversation],
            fields=self,
            max_tokens=self.max_tokens if given is None else given,
            n=self.n,
            logprobs=self.top_logprobs if self.logprobs else None,
            grammar=grammar,
            prompt_name="messages",
            grammar_name="tools" if self.tools else "response_format",
            max_tokens_name="max_tokens" if given is None else "max_completion_tokens",
        )


def grammar_free(format: BaseModel | None) -> bool:
    return format is not None and not isinstance(format, TextFormat)


# ---- /v1/responses


class InputText(Nullable):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


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
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


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
    include: list[Literal["message.output_text.logprobs"]] = []
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
