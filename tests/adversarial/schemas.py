"""Hostile JSON schemas of about a given size: what a grammar may cost to read, check or follow."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]
Maker = Callable[[int], Schema]  # bytes, at most


def named(number: int, schema: Schema) -> Schema:
    return {f"p{i}": schema for i in range(number)}


def closed(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def fitting(size: int, item: Any, most: int = 5000) -> int:
    return max(1, min(most, size // (len(json.dumps(item)) + 12)))


def multiples(size: int, word: str = "anyOf", places: int = 17) -> Schema:
    """Steps of 17 digits and up to so many decimal places: hardly two have a common divisor."""
    draw = random.Random(17)
    number = fitting(size, {"type": "number", "multipleOf": 0.12345678901234567}, 4000)
    return {
        word: [
            {"type": "number", "multipleOf": _step(draw.randrange(10**16, 10**17), i % places + 1)}
            for i in range(number)
        ]
    }


def _step(digits: int, places: int) -> float:
    return float(f"{digits}e-{places}")


def whole_multiples(size: int) -> Schema:
    draw = random.Random(17)
    number = fitting(size, {"type": "integer", "multipleOf": 10**17}, 4000)
    steps = [draw.randrange(10**16, 10**17) | 1 for _ in range(number)]
    return {"anyOf": [{"type": "integer", "multipleOf": step} for step in steps]}


def references(size: int) -> Schema:
    """Each definition is the next."""
    number = fitting(size, {"$ref": "#/$defs/d1234"}, 15_000)
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(number)}
    return {"$ref": "#/$defs/d0", "$defs": chain | {f"d{number}": {"type": "integer"}}}


def doubling_references(size: int) -> Schema:
    """Each definition has the next twice: two to the thirtieth, written out."""
    pair = [
        {f"d{i}": closed({"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}})}
        for i in range(30)
    ]
    defs = {name: schema for one in pair for name, schema in one.items()}
    return {"$ref": "#/$defs/d0", "$defs": defs | {"d30": {"type": "integer"}}}


def own_reference(size: int) -> Schema:
    return {"$ref": "#"}


def circle(size: int) -> Schema:
    number = fitting(size, {"$ref": "#/$defs/d1234"}, 5000)
    every = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{(i + 1) % number}"}]} for i in range(number)}
    return {"$ref": "#/$defs/d0", "$defs": every}


def recursive(size: int) -> Schema:
    number = fitting(size, {"$ref": "#/$defs/node"}, 300)
    node = {"type": "object", "properties": named(number, {"$ref": "#/$defs/node"})}
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def constrained(size: int) -> Schema:
    """Formats that also have patterns: two automata, and their product."""
    item = {"type": "string", "format": "email", "pattern": "^ab"}
    return {"type": "object", "properties": named(fitting(size, item, 200), item)}


def formats(size: int) -> Schema:
    names = ["date-time", "uuid", "ipv6", "uri", "hostname", "email", "duration", "ipv4"]
    made = {
        f"{n}{i}": {"type": "string", "format": n, "minLength": 3, "maxLength": 500 + i}
        for i in range(fitting(size, {"format": "date-time"}, 40))
        for n in names
    }
    return closed(made)


def texts(size: int, unit: str = "value ") -> Schema:
    number = fitting(size, unit + "12345", 20_000)
    return {"enum": [f"{unit}{i}" for i in range(number)]}


def long_texts(size: int) -> Schema:
    number = max(1, min(100, size // 1000))
    return {"enum": ["x" * (size // number - 10) + str(i) for i in range(number)]}


def numbers(size: int) -> Schema:
    return {"enum": [i * 1_000_003 for i in range(fitting(size, 12345678901, 20_000))]}


def objects(size: int) -> Schema:
    return {"enum": [{"a": i, "b": [i]} for i in range(fitting(size, {"a": 1, "b": [1]}, 6000))]}


def pattern(expression: str) -> Maker:
    return lambda size: {"type": "string", "pattern": expression}


def many_patterns(size: int) -> Schema:
    number = fitting(size, {"type": "string", "pattern": "^(a|b){1,123}c$"}, 1000)
    made = {f"p{i}": {"type": "string", "pattern": f"^(a|b){{1,{i + 2}}}c$"} for i in range(number)}
    return closed(made)


def words(size: int) -> Schema:
    number = max(1, min(20_000, size // 8))
    return {"type": "string", "pattern": "^(" + "|".join(f"w{i}x" for i in range(number)) + ")$"}


def pattern_properties(size: int) -> Schema:
    number = fitting(size, {"^a{1,20}b12345": {}}, 1500)
    return {
        "type": "object",
        "patternProperties": {f"^a{{1,20}}b{i}": {"type": "integer"} for i in range(number)},
    }


def products(size: int, outer: str = "allOf", inner: str = "anyOf") -> Schema:
    def one(i: int) -> Schema:
        return {inner: [closed({f"a{i}{k}": {"type": "integer"}}) for k in range(12)]}

    return {outer: [one(i) for i in range(max(1, min(12, size // 2000)))]}


def products_of_texts(size: int) -> Schema:
    return {"allOf": [{"type": "string", "pattern": f"^(.*x){{{i}}}"} for i in range(2, 14)]}


def binary(size: int) -> Schema:
    schema: Schema = {"type": "integer"}
    while len(json.dumps(schema)) * 2 + 30 < min(size, 100_000):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


def nested(size: int) -> Schema:
    schema: Schema = {"type": "integer"}
    for _ in range(15):
        schema = closed({"a": schema})
    return schema


def many_properties(size: int, required: bool = True) -> Schema:
    item = {"type": "integer"}
    made = closed(named(fitting(size, item, 6000), item))
    return made if required else made | {"required": []}


def long_names(size: int) -> Schema:
    number = max(1, min(100, size // 2000))
    return closed({"n" * 1000 + str(i): {"type": "integer"} for i in range(number)})


def required(size: int) -> Schema:
    number = min(30_000, size // 9)
    return {"type": "object", "required": [f"p{i}" for i in range(number)]}


def prefix(size: int) -> Schema:
    item = {"type": "integer"}
    number = fitting(size, item, 6000)
    return {"type": "array", "prefixItems": [item] * number, "minItems": number}


def conditions(size: int) -> Schema:
    number = fitting(size, {"if": {"required": ["p1"]}, "then": {}}, 3000)
    return {
        "allOf": [
            {"if": {"required": [f"p{i}"]}, "then": {"minProperties": i}} for i in range(number)
        ]
    }


def negations(size: int) -> Schema:
    schema: Schema = {"type": "integer"}
    for _ in range(40):
        schema = {"not": schema}
    return schema


def dependents(size: int) -> Schema:
    number = fitting(size, {"p123": ["p123", "p124"]}, 3000)
    return {"type": "object", "dependentRequired": {f"p{i}": [f"p{i + 1}"] for i in range(number)}}


def described(size: int) -> Schema:
    return {"type": "object", "description": "d" * max(1, size - 50)}


def unknown(size: int) -> Schema:
    return {"type": "object"} | {f"x{i}": i for i in range(min(15_000, size // 14))}


def fixed(schema: Schema) -> Maker:
    return lambda size: schema


def constant_text(size: int) -> Schema:
    return {"const": "c" * max(1, size - 20)}


def constant_deep(size: int) -> Schema:
    value: Any = 1
    for _ in range(40):
        value = [value, {"a": value}] if size > 10_000 and len(str(value)) < 1000 else [value]
    return {"const": value}


def guidance(size: int) -> Schema:
    """The grammar library's own options, which are no part of JSON Schema."""
    separator = r"((a{1,100}){1,100}){1,100}"
    return {
        "type": "object",
        "x-guidance": {"item_separator": separator, "whitespace_pattern": separator},
    }


SCHEMAS: Mapping[str, Maker] = {
    "multiples": multiples,
    "multiples in oneOf": lambda size: multiples(size, "oneOf"),
    "multiples in allOf": lambda size: multiples(size, "allOf"),
    "multiples of all sizes": lambda size: multiples(size, places=300),
    "whole multiples": whole_multiples,
    "least multiple": fixed({"type": "number", "multipleOf": 1e-300}),
    "multiple and bounds": fixed(
        {"type": "number", "multipleOf": 1e-16, "minimum": -1e15, "maximum": 1e15}
    ),
    "references": references,
    "doubling references": doubling_references,
    "own reference": own_reference,
    "circle": circle,
    "recursive": recursive,
    "foreign reference": fixed({"$ref": "http://127.0.0.1:9/s"}),
    "reference to a file": fixed({"$ref": "file:///etc/hostname"}),
    "constrained": constrained,
    "formats": formats,
    "texts": texts,
    "texts of a long beginning": lambda size: texts(size, "v" * 50),
    "long texts": long_texts,
    "numbers": numbers,
    "objects": objects,
    "repeats of repeats": pattern("^((a{1,100}){1,100}){1,100}$"),
    "many characters": pattern("^.{0,100000}$"),
    "exactly many": pattern("^[a-z]{65000}$"),
    "letters of all scripts": pattern(r"^(\p{L}{1,1000}\p{N}){1,1000}$"),
    "nested stars": pattern("^(a*)*(b*)*((a|b)*c)*$"),
    "which from the end": pattern("^(.*)x.{200}$"),
    "which from the end, less": pattern("^(a|b)*a(a|b){18}$"),
    "looking ahead": pattern("^(?=.*a)(?=.*b)(?!.*c).*$"),
    "looking back": pattern(r"^(a)(\1){1,100}$"),
    "deep groups": lambda size: {"type": "string", "pattern": "(" * 20_000 + "a" + ")" * 20_000},
    "long expression": lambda size: {"type": "string", "pattern": "a?" * (size // 2)},
    "expression of classes": lambda size: {"type": "string", "pattern": r"[\w\W]" * (size // 6)},
    "words": words,
    "many patterns": many_patterns,
    "patternProperties": pattern_properties,
    "many items": fixed({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "items up to many": fixed({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
    "items of items": fixed(
        {
            "type": "array",
            "minItems": 900,
            "items": {"type": "array", "minItems": 900, "items": {"type": "integer"}},
        }
    ),
    "least length": fixed({"type": "string", "minLength": 10**9}),
    "most length and pattern": fixed(
        {"type": "string", "maxLength": 10**6, "pattern": "^(ab|c)*$"}
    ),
    "bounds of length": fixed({"type": "string", "minLength": 50_000, "maxLength": 60_000}),
    "bounds": fixed({"type": "integer", "minimum": -(10**18), "maximum": 10**18}),
    "bounds of floats": fixed({"type": "number", "minimum": 1e-300, "maximum": 1e300}),
    "products": products,
    "products of oneOf": lambda size: products(size, "allOf", "oneOf"),
    "sums of products": lambda size: products(size, "anyOf", "allOf"),
    "products of texts": products_of_texts,
    "binary": binary,
    "nested": nested,
    "many properties": many_properties,
    "optional properties": lambda size: many_properties(size, required=False),
    "long names": long_names,
    "required": required,
    "prefixItems": prefix,
    "conditions": conditions,
    "negations": negations,
    "dependents": dependents,
    "description": described,
    "unknown words": unknown,
    "constant text": constant_text,
    "constant deep": constant_deep,
    "options of the library": guidance,
    "anchors": fixed({"$id": "http://a/b", "$anchor": "x", "$ref": "#x"}),
    "least properties": fixed({"type": "object", "minProperties": 10**6}),
    "unique": fixed({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
}


def written(name: str, size: int, mark: int) -> bytes:
    """No two schemas are the same: what is kept of one is of no use for another."""
    schema = SCHEMAS[name](size)
    return json.dumps(schema | {"title": f"s{mark}"}).encode()
