"""What wire types are made of: bounded numbers whose refusal says the whole range."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Range:
    """`Annotated[int, Range(0, 10)]`: from low to high, both included; the error names both.

    pydantic's own bounds name only the one that was passed, and nothing for a wrong type.
    """

    low: float
    high: float

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        kind = "an integer" if source is int else "a number"
        message = f"must be {kind} from {self.low} to {self.high}"

        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            try:
                number = inner(value)
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
        return handler(schema) | {"minimum": self.low, "maximum": self.high}
