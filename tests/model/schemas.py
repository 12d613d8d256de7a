"""Fifty JSON schemas of every kind that a grammar can follow.

Their answers are short: where digits or levels have no bound, a model at temperature 1 may go on
until its tokens are used up.
"""

from typing import Any

Schema = dict[str, Any]


def closed(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def text(most: int = 12, **more: Any) -> Schema:
    return {"type": "string", "maxLength": most} | more


def array(items: Schema, most: int = 4, **more: Any) -> Schema:
    return {"type": "array", "items": items, "maxItems": most} | more


def pattern(regex: str) -> Schema:
    return {"type": "string", "pattern": regex}


INTEGER = {"type": "integer", "minimum": -999, "maximum": 999}
NUMBER = {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.01}
LIST = {"anyOf": [{"type": "null"}, closed({}, {"rest": {"$ref": "#/$defs/list"}})]}
LEAF = closed({"end": {"const": True}})
NODE = closed({"value": INTEGER}, {"next": {"anyOf": [{"$ref": "#/$defs/node"}, LEAF]}})
CHAIN = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
FORMATS = ["date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid"]

SCHEMAS: dict[str, Schema] = {
    # objects
    "one property": closed({"name": text()}),
    "two properties": closed({"name": text(), "age": INTEGER}),
    "optional": closed({"id": INTEGER}, {"note": text(), "done": {"type": "boolean"}}),
    "all optional": closed({}, {"a": INTEGER, "b": INTEGER, "c": INTEGER}),
    "nested": closed({"person": closed({"name": text(), "home": closed({"city": text()})})}),
    "map of integers": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "map beside properties": {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,3}$": INTEGER},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "one at least": closed({}, {"a": INTEGER, "b": INTEGER}) | {"minProperties": 1},
    "keys that need quotes": closed({'a"b': INTEGER, "ä\n": INTEGER, "\\": INTEGER}),
    # arrays
    "array": array(INTEGER),
    "array of exactly three": array(INTEGER, 3, minItems=3),
    "array of arrays": array(array({"type": "boolean"}, 2), 3),
    "array of objects": array(closed({"x": NUMBER, "y": NUMBER}), 2, minItems=1),
    "tuple": {"type": "array", "prefixItems": [text(5), INTEGER], "items": False, "minItems": 2},
    "tuple and more": array({"type": "null"}, 4, prefixItems=[INTEGER], minItems=1),
    "empty array": array(INTEGER, 0),
    # values
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", "blue"]},
    "enum of kinds": {"enum": [1, "one", None, True, [1, 2], {"one": 1}]},
    "const": {"const": "always the same"},
    "const object": {"const": {"a": [1, "two", None], "b": {"c": 1.5}}},
    "several types": {"type": ["integer", "null"], "minimum": 0, "maximum": 50},
    # choices
    "anyOf": {"anyOf": [text(6), INTEGER, {"type": "null"}]},
    "anyOf of objects": {"anyOf": [closed({"a": INTEGER}), closed({"b": text(4)})]},
    "told apart": {
        "oneOf": [
            closed({"kind": {"const": "circle"}, "radius": NUMBER}),
            closed({"kind": {"const": "square"}, "side": NUMBER}),
        ]
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": text(5)}, "required": ["b"]},
            {"properties": {"a": True, "b": True}, "additionalProperties": False},
        ]
    },
    # references
    "$ref": {"$ref": "#/$defs/short", "$defs": {"short": text(5)}},
    "definitions": closed({"a": {"$ref": "#/definitions/n"}}) | {"definitions": {"n": INTEGER}},
    "chain": CHAIN,
    "recursion": {"$ref": "#/$defs/list", "$defs": {"list": LIST}},
    # strings
    "length": text(8, minLength=3),
    "pattern": pattern("^[A-Z]{2}-[0-9]{4}$"),
    "pattern of choices": pattern("^(north|south) (east|west)$"),
    "pattern within": pattern("^.{0,3}[0-9]{2}.{0,3}$"),
    **{f"format {name}": text(40, format=name) for name in FORMATS},
    # numbers
    "integer": INTEGER,
    "range": {"type": "integer", "minimum": 7, "exclusiveMaximum": 23},
    "number": {
        "type": "number",
        "exclusiveMinimum": -1.5,
        "maximum": 2.25,
        "multipleOf": 0.125,
    },
    "multiple": {"type": "integer", "multipleOf": 15, "minimum": 0, "maximum": 900},
    # all together
    "order": closed(
        {
            "id": pattern("^[0-9a-f]{8}$"),
            "customer": closed({"name": text(), "email": pattern("^[a-z]{1,8}@[a-z]{1,8}[.]org$")}),
            "lines": array(closed({"item": text(8), "count": INTEGER}), 2, minItems=1),
            "paid": {"type": "boolean"},
        },
        {"note": {"type": ["string", "null"], "maxLength": 10}},
    ),
    "tool call": closed({"name": {"const": "weather"}, "arguments": closed({"city": text(10)})}),
}
