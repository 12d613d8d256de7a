"""Grammars: what is refused before, and what an answer is that follows one, whatever else is asked.

The default model answers under fifty schemas; all else is done by a tiny one, whose tokens are
single bytes and whose logits make no sense.
"""

import datetime
import decimal
import enum
import gc
import ipaddress
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import psutil
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from msgspec.structs import replace
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from model.engine import Engine
from model.protocol.messages import Finished, Generate, Token
from model.protocol.sampling_params import SamplingParams
from model.sampling.grammar_matcher import GrammarCompiler, GrammarMatcher
from model.sampling.logits import Logits
from model.sampling.sampler import sample
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer
from model.text.grammar import (
    LIMITS,
    MAX_GRAMMAR_BYTES,
    GrammarError,
    check,
    embedded,
    json_object,
    json_schema,
    lark,
)
from model.text.tokenizer import Tokenizer
from tests.model.harness import load_engine, run_all
from tests.model.random_models import config
from tests.model.schemas import SCHEMAS, closed, text
from tests.speed import patience
from tests.tiny import tiny_llama

PROMPT = list(b"What is it?")  # in tokens of the tiny model: any will do
PERSON = closed({"name": text(6, minLength=1), "age": {"type": "integer", "maximum": 999}})
EOS = 2  # of the tiny model


@dataclass(frozen=True)
class Answer:
    tokens: list[Token]
    end: Finished

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def value(self) -> Any:
        return json.loads(self.text)


def sampled(grammar: str | None, seed: int = 0, **fields: Any) -> SamplingParams:
    settings = {"max_tokens": 200, "temperature": 1.0} | fields
    return SamplingParams(seed=seed, grammar=grammar, **settings)


def serve(engine: Engine, wishes: dict[str, SamplingParams]) -> dict[str, Answer]:
    for id, params in wishes.items():
        engine.submit(Generate(id, PROMPT, params))
    tokens, ends = run_all(engine)
    assert engine.gauges.kv_blocks_used == 0
    return {id: Answer(tokens.get(id, []), ends[id]) for id in wishes}


def ask(engine: Engine, grammar: str | None, **fields: Any) -> Answer:
    return serve(engine, {"one": sampled(grammar, **fields)})["one"]


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value)


def accepts(grammar: str, answer: str) -> bool:
    """Whether the grammar accepts this text, for another vocabulary: one of bytes."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar, limits=LIMITS)
    data = list(answer.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Engine:
    return load_engine(tiny_path, kv_cache_bytes=8 << 20)


# ---- fifty schemas


@pytest.mark.timeout(3600)
def test_answers_parse_and_are_valid(
    model_path: Path, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    """At temperature 1, by the default model, in the precision that it is served in."""
    engine = load_engine(model_path, dtype="auto", max_num_seqs=32)
    count = request.config.getoption("--generations")
    prompt = tokenizer.encode("Answer in JSON.\n")
    cases = {str(n): list(SCHEMAS.items())[n % len(SCHEMAS)] for n in range(count)}
    for id, (_, schema) in cases.items():
        engine.submit(Generate(id, prompt, sampled(json_schema(schema), int(id))))
    tokens, ends = run_all(engine)
    cut, wrong = [], []
    for id, (name, schema) in cases.items():
        answer = Answer(tokens[id], ends[id])
        if answer.end.reason == "length":
            cut.append(name)
        elif answer.end.reason != "stop" or not is_valid(schema, answer.value):
            wrong.append((name, answer.text, answer.end))
    print(f"{count} answers under {len(SCHEMAS)} schemas: {len(wrong)} wrong, cut: {cut}")
    assert wrong == []
    assert len(cut) <= count / 50


def test_any_json_object(tiny: Engine) -> None:
    answers = serve(tiny, {str(n): sampled(json_object(), n) for n in range(10)})
    ended = [answer for answer in answers.values() if answer.end.reason == "stop"]
    assert ended
    assert all(isinstance(answer.value, dict) for answer in ended)
    assert all(answer.text.startswith("{") for answer in answers.values())


NOT_OF_THE_FORMAT = {
    "date": ["2023-02-29", "2024-04-31"],
    "date-time": ["2023-02-29T00:00:00Z", "2024-01-01T12:51:60Z"],
    "time": ["12:51:60Z", "24:00:00Z"],
    "email": [f"{'a' * 65}@example.org", f"a@{'b' * 64}.org", "a@b@c"],
    "hostname": [".".join(["a" * 50] * 6)],
}


@pytest.mark.parametrize("name", NOT_OF_THE_FORMAT)
def test_formats_are_kept_to_the_letter(name: str) -> None:
    good = {"date": "2024-02-28", "time": "12:51:59Z", "date-time": "2024-02-28T12:51:59Z"}
    schema = closed({"format": {"type": "string", "format": name}})
    grammar = json_schema(schema)
    fine = good.get(name, "a@example.org" if name == "email" else "example.org")
    assert accepts(grammar, json.dumps({"format": fine}))
    for wrong in NOT_OF_THE_FORMAT[name]:
        assert not is_valid(schema, {"format": wrong})
        assert not accepts(grammar, json.dumps({"format": wrong}))


def test_properties_that_are_named_like_keywords_are_schemas() -> None:
    schema = closed({"default": {"type": "string", "format": "date"}})
    assert accepts(json_schema(schema), '{"default": "2024-02-28"}')
    assert not accepts(json_schema(schema), '{"default": "2023-02-29"}')


@pytest.mark.parametrize("version", range(1, 9))
def test_a_uuid_has_the_version_that_is_asked_for(version: int) -> None:
    grammar = json_schema({"type": "string", "format": f"uuid{version}"})
    for other in range(1, 9):
        written = json.dumps(f"6ba7b810-9dad-{other}1d1-80b4-00c04fd430c8")
        assert accepts(grammar, written) == (other == version)


def test_what_only_looks_like_a_format_is_left_alone() -> None:
    constant = {"format": "date", "allOf": 1}
    assert accepts(json_schema({"const": constant}), json.dumps(constant))


def test_json_embedded_in_lark_is_written_in_the_same_way(tiny: Engine) -> None:
    call = closed({"name": {"const": "weather"}, "arguments": closed({"days": {"enum": [1, 2]}})})
    grammar = lark(f'start: "<call>" json "</call>"\njson: %json {embedded(call)}')
    check(grammar)
    answer = ask(tiny, grammar)
    assert answer.end.reason == "stop"
    days = answer.text.removesuffix("}}</call>")[-1]
    written = f'<call>{{"name": "weather", "arguments": {{"days": {days}}}}}</call>'
    assert answer.text == written


# ---- what is refused

REFUSED = {
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "not supported"),
    "not": ({"not": {"type": "string"}}, "not supported"),
    "if": ({"if": {}, "then": {}}, "not supported"),
    "contains": ({"contains": {"type": "string"}}, "not supported"),
    "nested": ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "not supported"),
    "leniency asked for": ({"uniqueItems": True, "x-guidance": {"lenient": True}}, "not supported"),
    "oneOf": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "use anyOf"),
    "key names": ({"propertyNames": {"maxLength": 3}}, "leave it out"),
    "key formats": ({"propertyNames": {"format": "uuid"}}, "not supported"),
    "two may come twice": ({"uniqueItems": True, "maxItems": 2}, "leave it out"),
    "what others have left": (
        {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False},
        "not supported",
    ),
    "what a tuple has left": (
        {"items": [{}], "unevaluatedItems": False},
        "not supported",
    ),
    "lookahead": ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    "backreference": ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    "pattern": ({"type": "string", "pattern": "["}, "unclosed"),
    "no type": ({"type": "strin"}, "Invalid type"),
    "nothing": ({"enum": []}, "Unsatisfiable"),
    "itself": ({"$ref": "#"}, "no answer at all"),
    "no such reference": ({"$ref": "#/$defs/none"}, "does not exist"),
    "another document": ({"$ref": "https://example.org/schema.json"}, "another document"),
    "a file": ({"allOf": [{"$ref": "file:///etc/hostname"}]}, "another document"),
    "keys may come twice": ({"type": "object", "minProperties": 2}, "minProperties"),
    "no JSON": ({"const": float("nan")}, "no usable JSON"),
}
N = 20_000
HOSTILE = {
    "deep": json.loads('{"items":' * 900 + "{}" + "}" * 900),
    "wide": {"properties": {f"p{n}": {"type": "string"} for n in range(N)}},
    "wide and short": {"properties": {f"{n:x}": {} for n in range(4500)}},
    "large enum": {"enum": [f"v{n * 7919}" for n in range(N)]},
    "large constant": {"const": "ab cd " * 9000},
    "large pattern": {"type": "string", "pattern": "a?" * 25_000},
    "deep pattern": {"type": "string", "pattern": "(" * 20_000 + "a" + ")" * 20_000},
    "powers in a pattern": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "states of a pattern": {"type": "string", "pattern": "^.*a.{25}b$"},
    "letters of all scripts": {
        "prefixItems": [
            {"type": "string", "pattern": rf"^\p{{L}}{{1,{n}}}\w*$"} for n in range(900)
        ]
    },
    "patterns at once": {"allOf": [{"pattern": f"{c}.{{5}}{c}"} for c in "abcdefghij"]},
    "many items": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
    "long string": {"type": "string", "minLength": 10**6, "maxLength": 10**9},
    "large multiple": {"type": "integer", "multipleOf": 1_000_003},
    "multiples at once": {"allOf": [{"multipleOf": 97}, {"multipleOf": 9973}]},
    "multiple behind a reference": {"x": {"multipleOf": 1_000_003}, "$ref": "#/x"},
    "key patterns": {"patternProperties": {f"^p{n}x": {} for n in range(300)}},
    "ranges": {"properties": {f"p{n}": {"maximum": n * 12345.678} for n in range(900)}},
    "references": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
        | {"d30": {"properties": {"a": {}}}},
    },
    "products": {
        "allOf": [
            {"anyOf": [closed({f"x{n}{m}": {}}) | {"additionalProperties": {}} for m in range(8)]}
            for n in range(8)
        ]
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_to_the_letter_is_refused_in_one_line(name: str) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(GrammarError, match=reason) as error:
        check(json_schema(schema))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 400


# What says nothing of an answer, alone or in its place.
IDLE: list[dict[str, Any]] = [
    {"title": "T", "description": "d", "$comment": "c", "default": 1, "examples": [1]},
    {"deprecated": True, "readOnly": True, "writeOnly": False},
    {"$id": "https://example.org/s", "$schema": "https://json-schema.org/draft/2020-12/schema"},
    {"$schema": "http://json-schema.org/draft-07/schema#"},
    {"contentMediaType": "application/json", "contentEncoding": "base64", "contentSchema": {}},
    {"x-order": 1, "nullable": True, "example": {}, "externalDocs": {}, "xml": {}},
    {"$dynamicAnchor": "meta"},
    {"uniqueItems": False},
    {"propertyNames": {}},
    {"propertyNames": True},
    {"propertyNames": {"type": "string"}},
    {"propertyNames": {"type": ["string", "number"], "minLength": 0, "title": "T"}},
    {"propertyNames": {"type": "string", "format": "regex"}},
    {"unevaluatedProperties": True, "unevaluatedItems": {}},
    {"additionalItems": False},
    {"dependentRequired": {}, "dependentSchemas": {}, "dependencies": {}},
    {"minContains": 2, "maxContains": 0},
    {"if": {"type": "null"}},
    {"then": False, "else": False},
    {"not": False},
    *({"format": name} for name in ("regex", "uri-reference", "json-pointer", "iri", "binary")),
    *({"format": name} for name in ("int32", "json-string", "path", "password", "no such")),
]
PLACES: dict[str, Any] = {
    "alone": lambda schema: schema,
    "a property": lambda schema: closed({"uniqueItems": schema}),
    "an item": lambda schema: {"type": "array", "items": schema, "maxItems": 2},
    "behind a reference": lambda schema: {"$ref": "#/$defs/if", "$defs": {"if": schema}},
    "one of two": lambda schema: {"anyOf": [schema, {"type": "null"}]},
}
KINDS: list[dict[str, Any]] = [
    text(4),
    {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2},
    closed({"a": {"type": "boolean"}}),
    {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1},
]


def any_answer(schema: dict[str, Any], seed: int) -> Any:
    """An answer that follows the grammar, byte by byte, and nothing else; None where it is long."""
    tokenizer = LLTokenizer("byte")
    matcher, chosen = LLMatcher(tokenizer, json_schema(schema), limits=LIMITS), random.Random(seed)
    answer = bytearray()
    while not matcher.is_stopped() and len(answer) < 400:
        mask = matcher.compute_logit_bias()
        allowed = [id for id in range(256) if mask[id]]
        if not allowed or (matcher.is_accepting() and chosen.random() < 0.5):
            break
        answer.append(chosen.choice(allowed))
        assert matcher.consume_token(answer[-1])
    return json.loads(answer) if matcher.is_accepting() else None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("idle", IDLE, ids=str)
def test_what_says_nothing_is_taken(idle: dict[str, Any], place: str) -> None:
    """And the answers are valid, by the schema as it was sent."""
    answers = 0
    for seed, kind in enumerate(KINDS * 3):
        sent = {key: part for key, part in idle.items() if key not in kind}
        schema = PLACES[place](kind | sent)
        check(json_schema(schema))
        value = any_answer(schema, seed)
        assert jsonschema_rs.validator_for(schema).is_valid(value) or value is None
        answers += value is not None
    assert answers > 3


SAME_IN_OTHER_WORDS: list[tuple[dict[str, Any], str, str]] = [
    # schema, an answer, one that is none
    ({"type": "array", "uniqueItems": True, "maxItems": 1, "items": {}}, "[1]", "[1, 1]"),
    (
        {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
        '{"a": 1}',
        '{"b": 1}',
    ),
    (
        {"type": "object", "additionalProperties": {}, "unevaluatedProperties": False},
        '{"b": 1}',
        "[]",
    ),
    ({"type": "array", "prefixItems": [{}], "unevaluatedItems": False}, "[1]", "[1, 2]"),
    (
        {"type": "object", "unevaluatedProperties": {"type": "integer"}},
        '{"b": 1}',
        '{"b": "1"}',
    ),
    (
        {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"]},
            "additionalProperties": {"type": "integer"},
            "required": ["a"],
        },
        '{"a": 1, "b": 2}',
        '{"a": 1, "c": 2}',
    ),
]


@pytest.mark.parametrize(("schema", "answer", "none"), SAME_IN_OTHER_WORDS)
def test_keywords_that_others_can_express_are_followed(
    schema: dict[str, Any], answer: str, none: str
) -> None:
    grammar = json_schema(schema)
    check(grammar)
    assert is_valid(schema, json.loads(answer))
    assert accepts(grammar, answer)
    assert not is_valid(schema, json.loads(none))
    assert not accepts(grammar, none)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Everything(pydantic.BaseModel):
    """What pydantic makes schemas of, and people put into answers."""

    id: pydantic.UUID4
    raw: bytes
    nested: pydantic.Json[list[int]]
    when: datetime.datetime
    lasts: datetime.timedelta
    path: Path
    secret: pydantic.SecretStr
    url: pydantic.AnyUrl
    address: ipaddress.IPv4Address | ipaddress.IPv6Network
    colour: Colour = pydantic.Field(Colour.RED, description="One of two.", examples=["red"])
    counts: dict[str, int] = pydantic.Field({}, deprecated=True)
    by_name: dict[Literal["a", "b"], int]
    price: decimal.Decimal
    pair: tuple[int, str]
    among: Annotated[list[int], pydantic.Field(min_length=0, max_length=3)]
    inner: "Everything | None" = None

    model_config = pydantic.ConfigDict(json_schema_extra={"x-own": 1})


# As zod 4 writes z.object with records, formats, defaults and metadata.
ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "counts": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "number"},
        },
        "levels": {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["low", "high"]},
            "additionalProperties": {"type": "boolean"},
            "required": ["low", "high"],
        },
        "key": {"type": "string", "format": "nanoid", "pattern": "^[a-zA-Z0-9_-]{21}$"},
        "code": {"type": "string", "format": "base64", "contentEncoding": "base64"},
        "size": {"default": 3, "type": "integer", "minimum": -999, "maximum": 999},
        "file": {"type": "string", "format": "binary", "minLength": 0, "id": "f", "meta": {}},
    },
    "required": ["counts", "levels", "key", "code", "size", "file"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema",
    [
        Everything.model_json_schema(),
        Everything.model_json_schema(mode="serialization"),
        ZOD,
    ],
    ids=["pydantic", "pydantic, written", "zod"],
)
def test_schemas_of_the_usual_tools_are_taken(schema: dict[str, Any]) -> None:
    check(json_schema(schema))
    check(lark(f"start: json\njson: %json {embedded(schema)}"))


@pytest.mark.parametrize(
    "source", ["start: missing", 'start: "', "", "start: /(/", "start: " + "(" * 50_000]
)
def test_lark_that_means_nothing_is_refused(source: str) -> None:
    with pytest.raises(GrammarError):
        check(lark(source))


def test_what_is_no_grammar_is_refused() -> None:
    for nonsense in ("{", '{"grammars": []}', "x" * (MAX_GRAMMAR_BYTES + 1), "\ud800"):
        with pytest.raises(GrammarError):
            check(nonsense)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_done_with_in_a_second(name: str) -> None:
    """Refused or not. Processor time: what others do on this machine is not its fault."""
    before, memory = time.process_time(), resident()
    try:
        check(json_schema(HOSTILE[name]))
    except GrammarError as error:
        print(error)
    assert time.process_time() - before < patience(1)
    assert resident() - memory < 100e6


def test_nothing_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"$schema": url, "type": "null"}, {"$dynamicRef": url}):
            with pytest.raises(GrammarError):
                check(json_schema(schema))
        with pytest.raises(BlockingIOError):
            listening.accept()


def resident() -> int:
    size: int = psutil.Process().memory_info().rss
    return size


# ---- the mask

JSON = st.deferred(lambda: LEAVES | OBJECTS | ARRAYS | CHOICES)
LEAVES = st.sampled_from(
    [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "integer", "minimum": -20, "maximum": 500},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "maxLength": 4},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"enum": ["x", 'y"', "zoë", 3]},
        {"const": {"deep": [None]}},
    ]
)
OBJECTS = st.builds(
    closed,
    st.dictionaries(st.text('ab"\\é', max_size=3), LEAVES, max_size=3),
    st.dictionaries(st.text("cd\n", max_size=2), LEAVES, max_size=2),
)
ARRAYS = st.builds(
    lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": 3},
    LEAVES | OBJECTS,
    st.integers(0, 2),
)
CHOICES = st.lists(LEAVES | OBJECTS | ARRAYS, min_size=1, max_size=3).map(lambda s: {"anyOf": s})


@pytest.fixture(scope="module")
def matchers(tokenizer: Tokenizer) -> GrammarCompiler:
    """For the default model's vocabulary, as if the model had a few tokens more than that."""
    sizes = {"vocab_size": tokenizer.vocab_size + 40, "eos_token_id": EOS}
    return GrammarCompiler(tokenizer, config(**sizes))


def sequence(matcher: GrammarMatcher, tokenizer: Tokenizer, **fields: Any) -> Sequence:
    made = Sequence(
        token_ids=[1],
        params=sampled("", **fields),
        id="r",
        detokenizer=Detokenizer(tokenizer),
        arrived=0.0,
    )
    made.matcher = matcher
    return made


@settings(max_examples=60, deadline=None)
@given(
    schema=JSON,
    seed=st.integers(0, 10**6),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.0, 0.5, 3.0]),
            "top_k": st.sampled_from([1, 5, 500]),
            "top_p": st.sampled_from([0.1, 0.9]),
            "min_p": st.just(0.2),
            "repetition_penalty": st.just(1.5),
            "frequency_penalty": st.just(-2.0),
            "logit_bias": st.dictionaries(st.integers(0, 300), st.just(-100.0), max_size=60),
            "min_tokens": st.just(500),
            "ignore_eos": st.booleans(),
            "stop_token_ids": st.just((EOS,)),
            "logprobs": st.just(2),
        },
    ),
)
def test_whatever_the_logits_and_the_wishes_the_answer_is_valid(
    matchers: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any], seed: int, fields: Any
) -> None:
    """Random logits, so that any allowed token may come, and no sensible one has to."""
    grammar = json_schema(schema)
    matcher = matchers.begin(grammar).result()
    one = sequence(matcher, tokenizer, seed=seed, **fields)
    generator = torch.Generator().manual_seed(seed)
    while not matcher.over and one.num_output < 120:
        logits = torch.randn((1, tokenizer.vocab_size + 40), generator=generator) * 5
        (choice,) = sample(Logits.of(logits), [one], (EOS,))
        assert choice, matcher.error
        one.token_ids.append(choice.token_id)
        matcher.advance(choice.token_id)
        assert not matcher.error
    answer = tokenizer.decode(one.output_ids)
    if matcher.over:
        assert is_valid(schema, json.loads(answer))
        assert accepts(grammar, answer)


def test_without_the_mask_it_would_not_be(tokenizer: Tokenizer, matchers: GrammarCompiler) -> None:
    """The negative control: a token that the grammar does not allow is noticed."""
    matcher = matchers.begin(json_schema(PERSON)).result()
    matcher.forced.clear()
    matcher.advance(tokenizer.encode(" nothing")[0])
    assert matcher.error
    assert not matcher.over
    one = sequence(matcher, tokenizer)
    assert sample(Logits.of(torch.randn(1, tokenizer.vocab_size)), [one], (EOS,)) == [None]


def test_logprobs_are_those_of_the_model(matchers: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = matchers.begin(json_schema({"type": "boolean"})).result()
    logits = torch.randn(1, tokenizer.vocab_size)
    (choice,) = sample(Logits.of(logits), [sequence(matcher, tokenizer, logprobs=3)], (EOS,))
    assert choice
    expected = logits.log_softmax(-1)[0]
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]), abs=1e-5)
    assert [id for id, _ in choice.top] == expected.topk(3).indices.tolist()


def test_what_is_forced_comes_in_the_tokenizers_own_tokens(
    matchers: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = matchers.begin(json_schema(closed({"description": text()}))).result()
    written = tokenizer.encode('{"description": "')
    assert list(matcher.forced) == written[: len(matcher.forced)]
    assert len(matcher.forced) >= len(written) - 2, "the last may be part of a longer one"


# ---- other vocabularies


def sentencepiece() -> Tokenizer:
    """Byte fallback, and spaces that are written as part of the words."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    words += ["▁", *'{}":,abcdefgh0123456789', "ab", "▁ab", "▁a", "bc", "abc", '{"', '":']
    merges = [("a", "b"), ("▁", "ab"), ("▁", "a"), ("ab", "c"), ("b", "c"), ("{", '"'), ('"', ":")]
    ids = {word: id for id, word in enumerate(words)}
    backend = Backend(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("eos", [2, None], ids=["an end", "no end"])
def test_a_vocabulary_of_sentencepieces(eos: int | None) -> None:
    tokenizer = sentencepiece()
    schema = closed({"abc": {"enum": ["ab ab", "zoë"]}, "b": {"type": "integer", "maximum": 99}})
    matchers = GrammarCompiler(tokenizer, config(vocab_size=tokenizer.vocab_size, eos_token_id=eos))
    for seed in range(10):
        matcher = matchers.begin(json_schema(schema)).result()
        one = sequence(matcher, tokenizer, seed=seed)
        detokenizer, shown = Detokenizer(tokenizer), ""
        while not matcher.over:
            logits = Logits.of(torch.randn(1, tokenizer.vocab_size))
            (choice,) = sample(logits, [one], () if eos is None else (eos,))
            assert choice
            one.token_ids.append(choice.token_id)
            matcher.advance(choice.token_id)
            shown += detokenizer.push(choice.token_id)
        assert is_valid(schema, json.loads(shown))


def test_control_tokens_are_no_text(matchers: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = matchers.begin(lark('start: <|im_start|> "<|im_start|>"')).result()
    control = tokenizer.token_to_id("<|im_start|>")
    assert matcher.forced[0] == control
    assert control not in list(matcher.forced)[1:]


# ---- the engine


def test_a_grammar_ends_the_answer_where_it_is_over(tiny: Engine) -> None:
    """No end of text is needed, whatever the sequence says of ends."""
    grammar = json_schema(PERSON)
    wishes = {
        "plain": sampled(grammar),
        "ignore_eos": sampled(grammar, ignore_eos=True),
        "min_tokens": sampled(grammar, min_tokens=200),
        "min_tokens, stop tokens": sampled(grammar, min_tokens=200, stop_token_ids=(ord("}"),)),
        "no end wanted": sampled(grammar, logit_bias={EOS: -100.0}),
        "just enough": sampled(json_schema({"const": "four"}), max_tokens=6),
    }
    for name, answer in serve(tiny, wishes).items():
        assert answer.end == Finished(name, "stop")
        assert answer.text.endswith(('"', "}"))
        json.loads(answer.text)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_where_it_may_end_or_go_on_the_end_of_text_decides(tiny: Engine, ignore_eos: bool) -> None:
    forced = {EOS: 100.0}
    wishes = {"ignore_eos": ignore_eos, "logit_bias": forced}
    integer = json_schema({"type": "integer", "minimum": 1})
    answer = ask(tiny, integer, **wishes)
    assert answer.end.reason == "stop"
    assert [id == EOS for id in answer.ids] == [False, True]
    later = ask(tiny, integer, **wishes, min_tokens=5)
    assert later.end.reason == "stop"
    assert len(later.ids) == 2 if ignore_eos else 6


def test_max_tokens_and_stop_strings_cut_it(tiny: Engine) -> None:
    grammar = json_schema(PERSON)
    short = ask(tiny, grammar, max_tokens=5)
    assert (short.end.reason, short.text) == ("length", '{"nam')
    stopped = ask(tiny, grammar, stop=('": "',))
    assert (stopped.end.reason, stopped.text) == ("stop", '{"name')


WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "hot": {"temperature": 5.0},
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 0.05},
    "min_p": {"min_p": 0.9},
    "penalties": {"repetition_penalty": 2.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    "nothing is wanted": {"logit_bias": dict.fromkeys(range(256), -100.0)},
    "something else is wanted": {"logit_bias": {ord("x"): 100.0, EOS: 100.0}},
    "logprobs": {"logprobs": 5},
    "greedy logprobs": {"temperature": 0.0, "logprobs": 0},
    "all": {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {7: 3.0},
        "min_tokens": 10,
        "stop_token_ids": (3,),
        "ignore_eos": True,
        "logprobs": 1,
        "stop": ("never",),
    },
}


def test_every_wish_goes_with_a_grammar(tiny: Engine) -> None:
    wishes = {name: sampled(json_schema(PERSON), **fields) for name, fields in WISHES.items()}
    for name, answer in serve(tiny, wishes).items():
        assert answer.end == Finished(name, "stop")
        assert is_valid(PERSON, answer.value)
        logged = {token.logprob is not None for token in answer.tokens}
        assert logged == {wishes[name].logprobs is not None}


def test_neighbours_get_the_same_tokens(tiny: Engine) -> None:
    others = {
        "sampled": sampled(None, 1),
        "greedy": sampled(None, temperature=0.0),
        "penalized": sampled(None, 2, repetition_penalty=1.3, logit_bias={5: 4.0}),
        "guided": sampled(json_schema(PERSON), 3),
    }
    alone = serve(tiny, others)
    guided = {f"g{n}": sampled(json_schema(PERSON), n, min_tokens=n) for n in range(9)}
    together = serve(tiny, guided | others)
    for name, answer in alone.items():
        assert together[name].ids == answer.ids


def test_another_engine_goes_on_from_any_token(tiny: Engine) -> None:
    """As after a crash: the tokens are replayed into the grammar."""
    params = sampled(json_schema(PERSON), 5)
    undisturbed = ask(tiny, params.grammar, seed=5)
    for cut in range(len(undisturbed.ids)):
        tiny.submit(Generate(str(cut), PROMPT, params, output_ids=undisturbed.ids[:cut]))
    tokens, ends = run_all(tiny)
    for cut in range(len(undisturbed.ids)):
        assert [token.token_id for token in tokens[str(cut)]] == undisturbed.ids[cut:]
        assert ends[str(cut)].reason == "stop"


def test_preempted_and_paused_it_follows_its_grammar(tiny: Engine, tiny_path: Path) -> None:
    """Four sequences and blocks for two of them."""
    wishes = {str(n): sampled(json_schema(PERSON), n) for n in range(4)}
    undisturbed = serve(tiny, wishes)
    block = (8 << 20) // tiny._pool.total
    longest = max(len(answer.ids) for answer in undisturbed.values())
    room = tiny._pool.blocks_for(len(PROMPT) + longest)
    few = load_engine(tiny_path, kv_cache_bytes=max(2 * room, 14) * block, prefix_cache=False)
    for id, params in wishes.items():
        few.submit(Generate(id, PROMPT, replace(params, max_tokens=longest)))
    few.pause("1")
    first = few.step()
    few.unpause("1")
    tokens, ends = run_all(few)
    for id, answer in undisturbed.items():
        early = [token.token_id for token in first.tokens if token.id == id]
        assert early + [token.token_id for token in tokens[id]] == answer.ids
        assert ends[id].reason == "stop"


def test_a_grammar_that_fails_fails_alone(tiny: Engine) -> None:
    """One that this model cannot follow, and one that breaks on the way."""
    fine = {"fine": sampled(json_schema(PERSON), 1), "free": sampled(None, 2)}
    alone = serve(tiny, fine)
    unknown = lark('start: <|no_such_token|> "a"')
    check(unknown)
    tiny.submit(Generate("unknown", PROMPT, sampled(unknown)))
    tiny.submit(Generate("breaks", PROMPT, sampled(json_schema(PERSON))))
    for id, params in fine.items():
        tiny.submit(Generate(id, PROMPT, params))
    tokens: dict[str, list[int]] = {id: [] for id in ("breaks", "unknown", *fine)}
    ends: dict[str, Finished] = {}
    while tiny.has_work:
        step = tiny.step()
        for token in step.tokens:
            tokens[token.id].append(token.token_id)
        ends |= {end.id: end for end in step.finished}
        running = tiny._scheduler.running.get("breaks")
        if running and running.num_output == 3 and running.matcher:
            running.matcher.forced.clear()
            running.matcher.parser.consume_token(0)
    assert tokens["unknown"] == []
    assert len(tokens["breaks"]) == 3
    for id in ("unknown", "breaks"):
        assert ends[id].reason == "error"
        assert (ends[id].error or "").startswith("grammar: ")
    assert {id: tokens[id] for id in fine} == {id: alone[id].ids for id in fine}
    assert tiny.gauges.kv_blocks_used == 0


@pytest.mark.parametrize("how", ["cancel", "pause"])
def test_before_its_grammar_is_ready_it_can_be_cancelled_and_paused(tiny: Engine, how: str) -> None:
    tiny.submit(Generate("one", PROMPT, sampled(json_schema(PERSON))))
    assert tiny.has_work
    assert tiny.gauges.waiting == 1
    if how == "cancel":
        tiny.cancel("one")
        assert not tiny.has_work
        return
    tiny.pause("one")
    assert not tiny.has_work
    tiny.unpause("one")
    _, ends = run_all(tiny)
    assert ends["one"].reason == "stop"


def test_no_others_wait_while_a_grammar_is_made(tiny: Engine) -> None:
    large = json_schema({"properties": {f"property {n}": {"type": "string"} for n in range(800)}})
    tiny.submit(Generate("other", PROMPT, sampled(None, max_tokens=400, ignore_eos=True)))
    tiny.step()
    tiny.submit(Generate("large", PROMPT, sampled(large, max_tokens=3)))
    assert tiny._without_matcher
    while tiny._without_matcher:
        assert [token.id for token in tiny.step().tokens][:1] == ["other"]
    _, ends = run_all(tiny)
    assert ends["large"].reason in ("length", "stop")


def test_a_thousand_schemas_leave_nothing_behind(tiny: Engine) -> None:
    """A short form of it: what grows with each schema shows in 150 of them, too."""

    def answer(start: int, count: int) -> int:
        for n in range(start, start + count):
            schema = closed({f"{n} {m}": text(40 + n, pattern=f"^[a-z{n}]*$") for m in range(20)})
            tiny.submit(Generate(str(n), PROMPT, sampled(json_schema(schema), n, max_tokens=20)))
            if n % 10 == 9:
                run_all(tiny)
        gc.collect()
        return resident()

    before = answer(0, 100)
    assert answer(1000, 150) - before < 3e6


@pytest.fixture(autouse=True)
def _all_is_quiet(tiny: Engine) -> Iterator[None]:
    """No test leaves another's matchers in the making."""
    yield
    wait([matcher for _, matcher in tiny._without_matcher.values()])
