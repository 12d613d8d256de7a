"""POST /v1/responses."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from app.api.openai import history_types
from app.api.openai.chat_types import CalledFunction, RefusalPart, ToolCall, read_arguments
from app.api.openai.types import (
    MAX_MESSAGES,
    Label,
    Length,
    Nullable,
    OnlyFalse,
    OpenAIFields,
    TextFormat,
    TextFormatOfResponses,
    constraint_of,
    shown_role,
)
from app.api.validation import Entries, Object, Range, StringToo, either, refused
from app.tapes.generation_request import FieldNames, GenerationRequest
from model.protocol import sampling_params
from model.protocol.messages import Conversation, Message


class InputText(Nullable):
    left_out = history_types.PART

    type: Literal["input_text", "output_text"]
    text: str


def _kind_of_text(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "input_text")
    return "[text]" if kind in ("input_text", "output_text") else f"[{kind}]"


Text = Annotated[
    Annotated[InputText, Tag("[text]")] | Annotated[RefusalPart, Tag("[refusal]")],
    Discriminator(
        _kind_of_text,
        custom_error_type="refused",
        custom_error_message="should be 'input_text' or 'output_text': pictures, sound and files "
        "are not read",
        custom_error_context={"param": "type"},
    ),
]


def _as_input_text(text: str) -> list[Object]:
    return [{"type": "input_text", "text": text}]


def _as_message(text: str) -> list[Object]:
    return [{"role": "user", "content": text}]


Texts = Annotated[list[Text], StringToo(_as_input_text)]


class InputMessage(Nullable):
    """One turn of the input; what an earlier response put out can be given back as it is."""

    left_out = history_types.ITEM

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts

    def turn(self) -> Object:
        return {"role": shown_role(self.role), "content": _joined(self.content)}


class FunctionCallItem(Nullable):
    """A call of a tool that the assistant made."""

    left_out = history_types.ITEM

    type: Literal["function_call"]
    call_id: Label
    name: Label
    arguments: str = ""

    @cached_property
    def function(self) -> CalledFunction:
        return CalledFunction(name=self.name, arguments=self.arguments)

    def call(self) -> Object:
        return ToolCall.model_construct(id=self.call_id, function=self.function).turn()


class FunctionOutputItem(Nullable):
    """What the tool gave."""

    left_out = history_types.ITEM | {"name"}

    type: Literal["function_call_output"]
    call_id: Label
    output: Texts

    def turn(self) -> Object:
        return {"role": "tool", "content": _joined(self.output), "tool_call_id": self.call_id}


class ReasoningItem(Nullable):
    """What a model thought before an answer is no turn."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]


class ItemReference(Nullable):
    """The message of an earlier response, by its id, instead of its text."""

    type: Literal["item_reference"] = "item_reference"
    id: Label


def _joined(texts: list[Text]) -> str:
    return "".join(part.text for part in texts)


def _kind_of_item(value: Any) -> str:
    if not isinstance(value, dict):
        return f"[{getattr(value, 'type', 'message')}]"
    is_message = "id" not in value or value.get("role") or value.get("content")
    untyped = "message" if is_message else "item_reference"
    return f"[{value.get('type') or untyped}]"


InputItem = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")]
    | Annotated[ItemReference, Tag("[item_reference]")],
    Discriminator(
        _kind_of_item,
        custom_error_type="refused",
        custom_error_message="should be message, function_call, function_call_output, reasoning "
        "or item_reference; leave other items out",
        custom_error_context={"param": "type"},
    ),
]


def _readable(items: list[Any]) -> list[Any]:
    """The arguments of calls are JSON texts, and count together as one body does."""
    read_arguments([item.function for item in items if isinstance(item, FunctionCallItem)])
    return items


class ResponseText(Nullable):
    format: TextFormatOfResponses = TextFormat(type="text")

    def told(self) -> Object:
        return {"format": self.format.model_dump(by_alias=True)}


_LOGPROBS: Final = "message.output_text.logprobs"

# OpenAI's own. Tools that run there and reasoning are not here, so there is nothing of theirs.
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponseStreamOptions(Nullable):
    include_obfuscation: OnlyFalse = False


_Key = Annotated[str, Field(max_length=64)]


class ResponseBody(OpenAIFields):
    """POST /v1/responses."""

    model_config = ConfigDict(
        json_schema_extra=either(
            {"store": {"enum": [True, None]}}, {"background": {"enum": [False, None]}}
        )
    )
    input: Annotated[
        list[InputItem],
        Field(min_length=1, max_length=MAX_MESSAGES),
        AfterValidator(_readable),
        StringToo(_as_message),
    ]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Length | None = Field(
        None, description="New tokens at most; by default as many as fit the context."
    )
    background: bool = Field(False, description="Answer at once; the response goes on by itself.")
    store: bool = Field(True, description="Whether it can be retrieved, while its tape is kept.")
    previous_response_id: Label | None = Field(None, description="Go on with that conversation.")
    metadata: Annotated[dict[_Key, Label], Entries(16)] = Field(
        {}, description="Kept with the response: keys of up to 64 characters, values of up to 512."
    )
    text: ResponseText = Field(ResponseText(), description="Text, or JSON by a schema.")
    include: list[Includable] = Field(
        [], description="Only logprobs have an effect: of the others, nothing is ever there."
    )
    top_logprobs: Annotated[int, Range(0, sampling_params.MAX_LOGPROBS)] = 0
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    tools: Annotated[list[Any], Field(max_length=0)] = Field([], description="Only empty.")
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: bool = Field(True, description="Without tools it has no effect.")
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["auto", "default"] = "auto"
    safety_identifier: str = Field("", max_length=64, description="Taken, and without any effect.")
    prompt_cache_key: Label = Field("", description="Taken; the prefix cache needs no hint.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.background and not self.store:
            raise refused("store", "must be true with background, or nobody could fetch it")
        return self

    def references(self) -> Iterator[tuple[str, str]]:
        """The ids of items that are only named, and the places where they are."""
        for number, item in enumerate(self.input):
            if isinstance(item, ItemReference):
                yield item.id, f"input.{number}"

    @property
    def has_calls(self) -> bool:
        return any(isinstance(item, FunctionCallItem | FunctionOutputItem) for item in self.input)

    def turns(self, texts: Mapping[str, str]) -> list[Object]:
        """The input as messages for a chat template; `texts` are those of the references.

        Calls belong to the turn of the assistant that they follow.
        """
        turns: list[Object] = []
        for item in self.input:
            match item:
                case ItemReference():
                    turns.append({"role": "assistant", "content": texts[item.id]})
                case FunctionCallItem():
                    if not turns or turns[-1]["role"] != "assistant":
                        turns.append({"role": "assistant", "content": ""})
                    turns[-1].setdefault("tool_calls", []).append(item.call())
                case InputMessage() | FunctionOutputItem():
                    turns.append(item.turn())
        return turns

    def told(self, sampling: Object) -> Object:
        """What the response says of its request; `sampling` is what was chosen for it."""
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
            "temperature": sampling["temperature"],
            "text": self.text.told(),
            "tool_choice": self.tool_choice,
            "tools": [],
            "top_logprobs": self.top_logprobs,
            "top_p": sampling["top_p"],
            "truncation": self.truncation,
            "user": self.user or None,
        }

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if _LOGPROBS in self.include or self.top_logprobs else None

    def generation(self, turns: Sequence[Message]) -> GenerationRequest:
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return self.request(
            [Conversation([*system, *turns])],
            self.max_output_tokens,
            logprobs=self.num_logprobs,
            constraint=constraint_of(self.text.format),
            names=FieldNames("input", "max_output_tokens", "text.format"),
        )
