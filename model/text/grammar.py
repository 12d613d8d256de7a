"""Grammars that an answer must follow: made, and checked, before any engine sees them.

A grammar is a string, llguidance's own serialized form. Works without torch: the API process makes
grammars, the engine process follows them (model/sampling/grammar_matcher.py).

JSON comes in one spelling: `, ` between items, `: ` after keys, and no other white space. Where
white space is free, a small model at temperature 1 may write blanks until its tokens are used up.
Properties come in the order in which the schema names them.

Every limit here is on work: what a stranger's schema costs is known before it is begun.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_GRAMMAR_BYTES: Final = 64 * 1024
MAX_PATTERN_PROPERTIES: Final = 32  # each is held against each other
MAX_MULTIPLE: Final = 10_000  # a lexer for multiples of n has n states

# Fuel is llguidance's unit of work: 50 of the initial or 14 of a step's take about a microsecond.
LIMITS: Final = LLParserLimits(
    max_items_in_row=8000,
    initial_lexer_fuel=100_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=10_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)

# All of them are named, so that `x-guidance` in a schema, which may name them too, changes nothing.
_JSON: Final = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": None,
    "json_allow_general_unicode_escapes": False,
}
_SPECIAL_TOKENS: Final = "no tokenizer - can't validate"


class GrammarError(ValueError):
    """A grammar that cannot be followed: one line for a person that says what is wrong."""


def json_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that are valid under `schema` (draft 2020-12).

    Raises GrammarError: it is no JSON, or costs too much; `check` finds what else may be wrong.
    """
    return LLMatcher.grammar_from_json_schema(embedded(schema))


def json_object() -> str:
    """The grammar of any JSON object."""
    return json_schema({"type": "object"})


def lark(source: str) -> str:
    """The grammar that llguidance's dialect of Lark describes. `check` says whether it does."""
    return LLMatcher.grammar_from_lark(source)


def embedded(schema: Mapping[str, Any]) -> str:
    """`schema` as it stands behind `%json` in Lark, to mean there what `json_schema` makes of it.

    Raises GrammarError as `json_schema` does.
    """
    _refuse_what_cannot_be(schema)
    try:
        exact = _exact(schema)
        return json.dumps({**exact, "x-guidance": _JSON}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is no usable JSON: {_line(str(error))}") from error


def forced_calls(
    functions: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    opening: str,
    closing: str,
    several: bool,
) -> str:
    """Lark for nothing but calls of these functions: names, and JSON schemas of their arguments.

    A call is `opening`, a line with its JSON, and `closing`; `several` may follow each other.
    Raises GrammarError.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"type": "object", **parameters}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, parameters in functions
    ]
    more = r'("\n" call)*' if several else ""
    schema = embedded({"anyOf": calls})
    return f'start: call {more}\ncall: "{opening}\\n" body "\\n{closing}"\nbody: %json {schema}\n'


def check(grammar: str) -> None:
    """Raises GrammarError for a grammar that no engine could follow.

    It is compiled, for a vocabulary of bytes: a second of work at most, outside of the interpreter
    lock. Only whether a model has the special tokens that Lark may name shows in the engine.
    """
    if len(grammar.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar is larger than {MAX_GRAMMAR_BYTES} bytes")
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=LIMITS)
    if "special token" in matcher.get_error():
        _check_without_tokens(grammar)
        return
    matcher.compute_bitmask()  # a grammar of nothing shows only now
    for problem in [matcher.get_error(), *matcher.get_grammar_warnings()]:
        if problem:
            raise GrammarError(explain(problem))


def explain(problem: str) -> str:
    """What llguidance says, as one line for a person."""
    if "oneOf constraints" in problem:
        return "oneOf is only supported where types or constants tell its members apart; use anyOf"
    if "NoExtensionBias" in problem:
        return "the grammar allows no answer at all"
    if "Unimplemented keys" in problem:
        problem = problem.replace("Unimplemented keys", "not supported")
        return f"{_line(problem)}; leave it out of the schema, and check the answer for it"
    return _line(problem)


@cache
def _bytes() -> LLTokenizer:
    """A vocabulary of the 256 bytes."""
    return LLTokenizer("byte")


def _check_without_tokens(grammar: str) -> None:
    failed, problems = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    for problem in problems:
        if failed or not problem.startswith(_SPECIAL_TOKENS):
            raise GrammarError(explain(problem))


def _line(problem: str) -> str:
    """The first line, and what is wrong at the place that the lines after it show."""
    first, *others = problem.strip().splitlines() or [""]
    if first.endswith(":") and others:
        first = f"{first} {others[-1].strip().removeprefix('error: ')}"
    return first[:300]


# ---- what llguidance would take for more than it is, or refuse though it says nothing

_VALUES: Final = ("const", "enum", "default", "examples")  # no schemas, whatever is in them
_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_BESIDE: Final = frozenset(  # whose schemas look at the same object or array
    ("allOf", "anyOf", "oneOf", "if", "$ref", "$dynamicRef", "dependentSchemas", "dependencies")
)
_ANNOTATIONS: Final = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
)

# Those that llguidance follows. Any other is an annotation: draft 2020-12, validation, 7.2.1.
_FORMATS: Final = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname"}
    | {"ipv4", "ipv6", "uri", "uuid", "unknown"}
)
_DATE: Final = "....-(02-(0.|1.|2[0-8])|(0[13-9]|1.)-..)"
_LABEL: Final = "[^.]{1,63}"  # of a domain
_DATES: Final = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": "^..:..:[0-5]"},
    "date-time": {"pattern": f"^{_DATE}...:..:[0-5]"},
}
_NAMES: Final = {
    "email": {"pattern": rf"^[^@]{{1,64}}@{_LABEL}([.]{_LABEL})*$", "maxLength": 254},
    "hostname": {"maxLength": 253},
}
# pydantic's: the version, and the variant that has versions (RFC 9562, 4.1 and 4.2).
_UUIDS: Final = {
    f"uuid{n}": {"format": "uuid", "pattern": f"^.{{14}}{n}.{{4}}[89abAB]"} for n in range(1, 9)
}


def _exact(value: Any) -> Any:
    """The same schema with formats to the letter, and without keywords that change nothing."""
    if isinstance(value, list | tuple):
        return [_exact(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    return _with_exact_format(_without_idle(_inner_exact(value)))


def _inner_exact(schema: Mapping[str, Any]) -> dict[str, Any]:
    exact = {}
    for key, part in schema.items():
        if key in _BY_NAME and isinstance(part, Mapping):
            exact[key] = {name: _exact(inner) for name, inner in part.items()}
        else:
            exact[key] = part if key in _VALUES else _exact(part)
    return exact


def _with_exact_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Without February 29 and leap seconds, which only some years and days have.

    And with the lengths that names in the Internet may have, unless a pattern of the schema's own
    bounds these: of two it cannot always be told whether anything fits both.
    """
    format = schema.get("format")
    if not isinstance(format, str):
        return schema
    if format not in _FORMATS:
        schema = {key: part for key, part in schema.items() if key != "format"}
    own = {} if "pattern" in schema else _NAMES
    rules: Mapping[str, Any] = {**_DATES, **_UUIDS, **own}
    if rule := rules.get(format):
        return {**schema, "allOf": [*schema.get("allOf", ()), rule]}
    return schema


def _without_idle(schema: dict[str, Any]) -> dict[str, Any]:
    """Without keywords that forbid nothing here, or in the words that llguidance knows for them."""
    exact = {key: part for key, part in schema.items() if not _is_idle(key, part, schema)}
    if not _BESIDE & exact.keys():
        for key, same in (("Properties", "additionalProperties"), ("Items", "items")):
            if f"unevaluated{key}" in exact and same not in exact:
                exact[same] = exact.pop(f"unevaluated{key}")
    return _with_listed_names(exact)


def _is_idle(key: str, part: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the keyword `key` says nothing in `schema`, by draft 2020-12 or one before it."""
    match key:
        case "uniqueItems":
            return part is False or _at_most_one(schema)
        case "propertyNames":
            return part is True or (isinstance(part, Mapping) and not _asked_of_text(part))
        case "additionalItems":
            return not isinstance(schema.get("items"), list)
        case "unevaluatedProperties":
            return part is True or part == {} or "additionalProperties" in schema
        case "unevaluatedItems":
            return part is True or part == {} or isinstance(schema.get("items"), Mapping | bool)
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return not part
        case "minContains" | "maxContains":
            return "contains" not in schema
        case "if":
            return not {"then", "else"} & schema.keys()
        case "then" | "else":
            return "if" not in schema
        case "not":
            return part is False
        case "$dynamicAnchor" | "$recursiveAnchor":
            return True
        case _:
            return False


def _at_most_one(schema: Mapping[str, Any]) -> bool:
    most = schema.get("maxItems")
    return isinstance(most, int | float) and most <= 1


def _asked_of_text(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What else than being one is asked of a text by `schema`."""
    asked = {key: part for key, part in schema.items() if key not in _ANNOTATIONS}
    kinds = asked.get("type")
    if kinds == "string" or (isinstance(kinds, list | tuple) and "string" in kinds):
        del asked["type"]
    if asked.get("minLength") == 0:
        del asked["minLength"]
    return asked


def _with_listed_names(schema: dict[str, Any]) -> dict[str, Any]:
    """A mapping whose keys are listed is an object with these properties."""
    names = schema.get("propertyNames")
    asked = _asked_of_text(names) if isinstance(names, Mapping) else {}
    listed = asked.get("enum")
    if len(asked) != 1 or not isinstance(listed, list) or "patternProperties" in schema:
        return schema
    properties, other = dict(schema.get("properties", {})), schema.get("additionalProperties", {})
    keys = [name for name in listed if isinstance(name, str)]
    return {
        **{key: part for key, part in schema.items() if key != "propertyNames"},
        "properties": {key: properties.get(key, other) for key in keys},
        "additionalProperties": False,
    }


# ---- what llguidance would take, and must not


def _refuse_what_cannot_be(schema: Mapping[str, Any]) -> None:
    """Raises GrammarError for what would cost too much, or let through what is not valid.

    It looks at everything that might be a schema: references may point anywhere.
    """
    multiples, patterns = [], 0
    for part in _objects(schema):
        if not str(part.get("$ref", "#")).startswith("#"):
            raise GrammarError("not supported: $ref to another document")
        if _number(part.get("minProperties")) > max(1, _count(part)):
            # Keys that are not listed may come twice, and then count as one.
            raise GrammarError("not supported: minProperties above 1 for keys not required by name")
        if multiple := _number(part.get("multipleOf")):
            multiples.append(multiple)
        if isinstance(named := part.get("patternProperties"), Mapping):
            patterns += len(named)
    if patterns > MAX_PATTERN_PROPERTIES:
        raise GrammarError(f"more than {MAX_PATTERN_PROPERTIES} patternProperties")
    if _has_large_multiple(multiples):
        raise GrammarError(f"multipleOf with a common multiple above {MAX_MULTIPLE}")


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a JSON value, itself included; not by recursion, for it may nest deeply."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            yield one
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one


def _number(value: Any) -> Fraction:
    """As it is written, and 0 for what is no number."""
    if isinstance(value, float) and math.isfinite(value):
        return Fraction(str(value))
    return Fraction(value) if isinstance(value, int) else Fraction(0)


def _count(schema: Mapping[str, Any]) -> int:
    required = schema.get("required")
    return len(required) if isinstance(required, list | tuple) else 0


def _has_large_multiple(numbers: Iterable[Fraction]) -> bool:
    """Whether the least common multiple is above MAX_MULTIPLE, in units of the smallest decimal
    place that any of the numbers has.

    It only grows from number to number, by as many digits as these have: known large, it is not
    computed further.
    """
    unit = multiple = 1
    for number in numbers:
        finer = math.lcm(unit, number.denominator)
        multiple = math.lcm(multiple * (finer // unit), abs(int(number * finer)))
        unit = finer
        if multiple > MAX_MULTIPLE:
            return True
    return False
