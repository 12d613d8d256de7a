"""What /openapi.json says can be sent: every operation, and every field at every depth.

Of each field it knows a smallest valid request that holds it, with a hole where the field is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Step = str | None  # the name of a property; None is an item of a list, "*" any other key
Path = tuple[Step, ...]

HOLE = "@@hole@@"

# A valid request costs as little as it can: so long as nothing else is tried, one token.
CHEAP: dict[str, Any] = {
    "max_length": 1,
    "max_tokens": 1,
    "max_output_tokens": 1,
    "timeout": 2,
    "on_disconnect": "abort",
    "samples": 1,
}
# What a field needs beside it to be looked at.
COMPANIONS: Mapping[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "starting_after": {"stream": "true"},
}
TEXT = "The capital of France is"


@dataclass(frozen=True)
class Field:
    """Where it is: `place` is body, query, path or header; `path` has one step but in a body."""

    place: str
    path: Path
    schema: Schema

    @property
    def name(self) -> str:
        written = "".join("[]" if step is None else f".{step}" for step in self.path)
        return f"{self.place}:{written.lstrip('.')}"


@dataclass(frozen=True)
class Operation:
    """One method of one path. `body` is the schema of its JSON body, None where it takes none."""

    method: str
    path: str
    parameters: tuple[Field, ...]
    body: Schema | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class Document:
    """An OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def operations(self) -> list[Operation]:
        return [
            self._operation(method.upper(), path, operation)
            for path, methods in self._document["paths"].items()
            for method, operation in methods.items()
        ]

    def fields(self, operation: Operation) -> list[Field]:
        """Its parameters, its body as a whole, and all that is inside it."""
        inside = self._inside((), operation.body, ()) if operation.body else ()
        return [*operation.parameters, *inside]

    def holding(self, operation: Operation, path: Path) -> Any:
        """The smallest valid body with `HOLE` at the path. Raises ValueError without a body."""
        if operation.body is None:
            raise ValueError(f"{operation.name} takes no body")
        body = self._value(operation.body, path)
        if not isinstance(body, dict):
            return body
        beside = CHEAP | COMPANIONS.get(str(path[0]) if path else "", {})
        there = {name: value for name, value in beside.items() if self._has(operation.body, name)}
        return there | body

    def valid(self, schema: Schema) -> Any:
        """The smallest value that the schema allows."""
        return self._value(schema, None)

    def resolved(self, schema: Schema) -> list[Schema]:
        """What a value may be: each alternative without references; null is none of them."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.resolved(self._document["components"]["schemas"][name])
        if "properties" in schema or not ({"anyOf", "oneOf"} & schema.keys()):
            return [] if schema.get("type") == "null" else [schema]
        alternatives = schema.get("anyOf") or schema["oneOf"]
        return [one for alternative in alternatives for one in self.resolved(alternative)]

    # ---- operations

    def _operation(self, method: str, path: str, operation: Mapping[str, Any]) -> Operation:
        content = operation.get("requestBody", {}).get("content", {})
        parameters = tuple(self._parameter(one) for one in operation.get("parameters", ()))
        body = content.get("application/json", {}).get("schema")
        return Operation(method, path, parameters, body)

    def _parameter(self, one: Mapping[str, Any]) -> Field:
        schema = one.get("schema") or one["content"]["application/json"]["schema"]
        return Field(one["in"], (one["name"],), schema)

    def _has(self, body: Schema, name: str) -> bool:
        return any(name in one.get("properties", ()) for one in self.resolved(body))

    # ---- fields

    def _inside(self, path: Path, schema: Schema, above: tuple[int, ...]) -> Iterator[Field]:
        """Depth first; a schema that is inside itself is entered once."""
        yield Field("body", path, schema)
        seen: set[Step] = set()
        for one in self.resolved(schema):
            if id(one) in above:
                continue
            for step, inner in self._steps(one):
                if step not in seen:
                    seen.add(step)
                    yield from self._inside((*path, step), inner, (*above, id(one)))

    def _steps(self, schema: Schema) -> Iterator[tuple[Step, Schema]]:
        yield from schema.get("properties", {}).items()
        if isinstance(more := schema.get("additionalProperties"), dict):
            yield "*", more
        if "items" in schema:
            yield None, schema["items"]

    # ---- values

    def _value(self, schema: Schema, hole: Path | None) -> Any:
        if hole == ():
            return HOLE
        one = self._alternative(schema, hole)
        if "const" in one or "enum" in one:
            return one.get("const", one.get("enum", [None])[0])
        match one.get("type"):
            case "object":
                return self._object(one, hole)
            case "array":
                return self._array(one, hole)
            case "integer" | "number":
                return max(one.get("minimum", 0), 0)
            case "boolean":
                return False
            case "string" if "pattern" in one:
                return "a"
            case "string":
                return one.get("default") or TEXT[: one.get("maxLength", len(TEXT))]
            case _:
                return {}

    def _alternative(self, schema: Schema, hole: Path | None) -> Schema:
        """The first that has the hole in it."""
        alternatives = self.resolved(schema) or [schema]
        if not hole:
            return alternatives[0]
        fitting = [one for one in alternatives if hole[0] in dict(self._steps(one))]
        deep = [one for one in fitting if self._reaches(one, hole)]
        return (deep or fitting)[0]

    def _reaches(self, schema: Schema, hole: Path) -> bool:
        inner = dict(self._steps(schema)).get(hole[0])
        if inner is None or len(hole) == 1:
            return inner is not None
        return any(self._reaches(one, hole[1:]) for one in self.resolved(inner))

    def _object(self, schema: Schema, hole: Path | None) -> Any:
        step, rest = (hole[0], hole[1:]) if hole else (None, ())
        steps = dict(self._steps(schema))
        case = self._case(schema, step)
        required = [*schema.get("required", ()), *case.get("required", ())]
        made = {
            name: self._value(steps[name] | case["properties"].get(name, {}), None)
            if name in case.get("properties", ()) and "type" not in case["properties"][name]
            else self._value(steps[name], None)
            for name in dict.fromkeys(required)
        }
        if step is not None:
            made["5" if step == "*" else step] = self._value(steps[step], rest)
        return made

    def _case(self, schema: Schema, step: Step) -> Schema:
        """Of what must hold of several fields together, the first case that speaks of this one."""
        cases: list[Schema] = schema.get("anyOf") or schema.get("oneOf", [{}])
        speaking = [case for case in cases if _allows(case.get("properties", {}).get(step))]
        wanting = [case for case in cases if step in case.get("required", ())]
        return (speaking or wanting or cases)[0]

    def _array(self, schema: Schema, hole: Path | None) -> Any:
        if hole:
            return [self._value(schema["items"], hole[1:])]
        return [self._value(schema["items"], None)] * schema.get("minItems", 0)


def _allows(schema: Schema | None) -> bool:
    return schema is not None and schema.get("type") != "null"


def written(holding: Any, value: bytes) -> bytes:
    """JSON of a body, with the value where its hole is."""
    before, _, after = json.dumps(holding).encode().partition(json.dumps(HOLE).encode())
    return before + value + after
