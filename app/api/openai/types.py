"""What OpenAI's three wire types share; each has a file of its own.

Fields are OpenAI's own, and the extras of `SamplingFields`. A field that is not here is refused by
name; null is the same as leaving it out. docs/compatibility.md lists every field.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.api.sampling_fields import SamplingFields
from app.api.validation import MODEL_LIMIT, ByType, Object, Range, Wire
from model.protocol.messages import JSONSchema

MAX_CHOICES = 128  # of all prompts of a request together
MAX_MESSAGES = 2048

Length = Annotated[int, Range(1, 2**20, of="length")]
N = Annotated[int, Range(1, MAX_CHOICES)]
ID_SCHEMA: Object = {"type": "integer", "minimum": 0, MODEL_LIMIT: "token_id"}
Label = Annotated[str, Field(max_length=512)]  # a name or an id that is only kept, or taken
ModelName = Annotated[str, WithJsonSchema({"type": "string", MODEL_LIMIT: "name"})]


_NULL: Object = {"type": "null"}


def _false(value: bool) -> bool:
    if value:
        raise ValueError("should be false")
    return value


# A Literal would take 0 for it.
OnlyFalse = Annotated[
    bool, AfterValidator(_false), WithJsonSchema({"type": "boolean", "const": False})
]


class Nullable(Wire):
    """Whatever may be left out may be null, too: clients write both.

    That goes for fields that the object does not have: null asks for nothing.
    """

    model_config = ConfigDict(strict=True)

    # Taken with any value and left out, see app/api/openai/history_types.py.
    left_out: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def given(cls, value: Object) -> Object:
        return {k: v for k, v in value.items() if v is not None and k not in cls.left_out}

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
        if schema.get("additionalProperties") is False:
            schema["additionalProperties"] = _NULL
            schema["properties"] |= {name: {} for name in sorted(cls.left_out)}
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
    user: Label = Field("", description="Taken, and without any effect.")


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


def is_free(format: BaseModel | None) -> bool:
    return format is None or isinstance(format, TextFormat)


def shown_role(role: str) -> str:
    """As chat templates know it: OpenAI's newer name for system they do not."""
    return "system" if role == "developer" else role


def constraint_of(format: BaseModel | None) -> JSONSchema | None:
    """What the answer must keep to; None where it is free."""
    match format:
        case JSONObjectFormat():
            return JSONSchema({"type": "object"})
        case JSONSchemaFormat():
            return JSONSchema(format.json_schema.schema_)
        case FlatSchemaFormat():
            return JSONSchema(format.schema_)
        case _:
            return None
