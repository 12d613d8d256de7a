"""What wire types are made of: objects that are refused at their first fault, bounded numbers whose
refusal says the whole range, and the like.

A refusal names one fault. pydantic by itself finds all of them and makes an object of each, which
takes seconds for a body of a megabyte: here every object, list and mapping ends at its first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# A keyword in our JSON Schemas: what of the running model bounds the value.
MODEL_LIMIT: Final = "x-own"
Own = Literal["token_id", "token_key", "length", "name", "tools"]

Object = dict[str, Any]

_TOO_LARGE: Final = 2**64  # for an id; to make integers of a hundred digits takes long


def _stop_at_first_fault(schema: Any) -> None:
    """Every list within `schema`, a core schema of pydantic, is left at its first wrong item."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _stop_at_first_fault(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _stop_at_first_fault(part)


class Wire(BaseModel):
    """An object in a request."""

    model_config = ConfigDict(extra="forbid")

    known_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields.items()
        cls.known_keys = frozenset(field.alias or name for name, field in fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first_fault(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_key(cls, value: Any) -> Any:
        """Of keys that the object does not have, the first stands for all: one complaint."""
        if not isinstance(value, dict):
            return value
        if value.keys() <= cls.known_keys and None not in value.values():
            return value
        given = cls.given(value)
        if given.keys() <= cls.known_keys:
            return given
        unknown = next(key for key in given if key not in cls.known_keys)
        return {key: given[key] for key in (*(cls.known_keys & given.keys()), unknown)}

    @classmethod
    def given(cls, value: Object) -> Object:
        """The fields of `value` that say something."""
        return value


def whole(value: Any) -> Any:
    """1.0 is an integer for JSON Schema, and for languages that have one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def integers(values: list[Any]) -> list[int] | None:
    """The items as integers, as `whole` makes them; None where one is none.

    Of long prompts there are 200,000, and a call for each would take tens of milliseconds.
    """
    kinds = set(map(type, values))
    if kinds <= {int}:
        return values
    if not kinds <= {int, float} or max(map(abs, values)) >= _TOO_LARGE:
        return None
    numbers = list(map(int, values))
    return numbers if numbers == values else None


@dataclass(frozen=True, slots=True)
class Entries:
    """`Annotated[dict[...], Entries(16)]`: so many at most, counted before any is looked at."""

    most: int

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def count(value: Any) -> Any:
            if isinstance(value, dict) and len(value) > self.most:
                message = f"must have at most {self.most} entries, not {len(value)}"
                raise PydanticCustomError("refused", message)
            return value

        return core_schema.no_info_before_validator_function(count, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) | {"maxProperties": self.most}


@dataclass(frozen=True, slots=True)
class Range:
    """`Annotated[int, Range(0, 10)]`: from low to high, both included; the error names both.

    pydantic's own bounds name only the one that was passed, and nothing for a wrong type. Where the
    running model sets a lower bound, `of` says which: app/api/openapi.py fills it in.
    """

    low: float
    high: float
    of: Own | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        kind = "an integer" if source is int else "a number"
        message = f"must be {kind} from {self.low} to {self.high}"

        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            try:
                number = inner(whole(value) if source is int else value)
            except ValidationError:
                number = None
            # A NaN fails both comparisons.
            if number is None or not self.low <= number <= self.high:
                raise PydanticCustomError("out_of_range", message)
            return number

        return core_schema.no_info_wrap_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        own = {MODEL_LIMIT: self.of} if self.of else {}
        return handler(schema) | {"minimum": self.low, "maximum": self.high} | own


@dataclass(frozen=True, slots=True)
class StringToo:
    """`Annotated[list[...], StringToo(make)]`: a string stands for what `make` makes of it.

    A union would do, but complains of every alternative. `string` is what JSON Schema says of it.
    """

    make: Callable[[str], Any]
    string: Mapping[str, Any] = field(default_factory=dict)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def convert(value: Any) -> Any:
            if isinstance(value, str):
                return self.make(value)
            if not isinstance(value, list):
                raise PydanticCustomError("refused", "must be a string or a list")
            return value

        return core_schema.no_info_before_validator_function(convert, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", **self.string}, handler(schema)]}


@dataclass(frozen=True, slots=True)
class ByType:
    """`Annotated[A | B, ByType("a", "b")]`: a union of objects whose `type` is "a" or "b".

    pydantic's own would name the type in the path to what is wrong within. Brackets hide it, see
    app/errors.py.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        models: list[Any] = [handler.generate_schema(model) for model in get_args(source)]
        return core_schema.tagged_union_schema(
            {f"[{name}]": model for name, model in zip(self.names, models, strict=True)},
            _type_of,
            custom_error_type="refused",
            custom_error_message=f"must be an object whose type is {' or '.join(self.names)}",
        )


def _type_of(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"[{kind}]"


def either(*cases: dict[str, Object]) -> Object:
    """For JSON Schema: one of these must hold of an object's fields.

    null is a field left out, so whatever must not be null in a case must be there.
    """
    return {"anyOf": [{"properties": case, "required": _given(case)} for case in cases]}


def _given(case: dict[str, Object]) -> list[str]:
    return [
        name
        for name, schema in case.items()
        if "null" not in schema.get("type", ()) and None not in schema.get("enum", ())
    ]


def refused(param: str, message: str) -> PydanticCustomError:
    """To raise in a validator of a whole model: names the field that is wrong."""
    return PydanticCustomError("refused", "{message}", {"param": param, "message": message})
