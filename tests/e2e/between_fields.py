"""What JSON Schema has no words for: how much one field of a request leaves to the others, mostly.

Hooks of Schemathesis, which test_schemathesis.py names to it. Lengths of a request that is to be
accepted are lowered to what fits; one that is to be refused stays as it is.
"""

import json
import os
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.generation.meta import TestPhase

CONTEXT = int(os.environ.get("FUZZ_CONTEXT", "512"))
CHOICES = 128
CHOICES_WITH_LOGPROBS, LENGTH_WITH_LOGPROBS = 16, 64  # more may outgrow --max-tape-memory
ROOM_FOR_A_TEMPLATE = 32

LENGTHS = ("max_length", "max_tokens", "max_completion_tokens", "max_output_tokens")
DEFAULT_LENGTHS = {"generate": 100, "stream": 100, "create_tape": 100, "complete": 16}
SHORT = {"prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
ASKED = (*SHORT, "instructions")


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    if case.operation.definition.raw["operationId"] == "watch":  # by itself it has no end
        case.query = {"samples": 1} | (case.query or {})
    meta = case.meta
    if meta is None or meta.generation.mode != GenerationMode.POSITIVE:
        return case
    if meta.phase.name == TestPhase.STATEFUL and isinstance(case.body, dict):
        case.body.pop("store", None)  # what a link leads to must be there
    case.body = _readable(case.body)
    operation = case.operation.definition.raw["operationId"]
    for fields in (case.body, case.query):
        if isinstance(fields, dict):
            _fit(fields, DEFAULT_LENGTHS.get(operation, CONTEXT))
    if operation == "watch":  # each sample takes a second
        case.query["samples"] = 1
    if operation == "read_tape":  # how many entries there are, only the tape knows
        case.query.pop("after", None)
        case.headers.pop("Last-Event-ID", None)
    return case


def _readable(value: Any) -> Any:
    """An integer of more than 64 bits is no JSON here, not even in a tool's parameters."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return value % 2**63 if isinstance(value, int) and abs(value) >= 2**63 else value


def _fit(fields: dict[str, Any], length: int) -> None:
    if fields.get("messages") is not None:
        fields.pop("prompt", None)  # /tokenize takes one; Schemathesis looks at each field alone
    if (left := _left(fields)) < 1:
        fields |= {name: SHORT[name] for name in SHORT if name in fields}
        fields.pop("instructions", None)
        left = _left(fields)
    if fields.get("logprobs"):
        left = min(left, LENGTH_WITH_LOGPROBS)
    for name in LENGTHS:
        if fields.get(name) is not None:
            fields[name] = length = min(int(fields[name]), left)
    if fields.get("min_tokens") is not None:
        fields["min_tokens"] = min(int(fields["min_tokens"]), length, left)
    if fields.get("n") is not None:
        most = CHOICES_WITH_LOGPROBS if fields.get("logprobs") else CHOICES
        fields["n"] = min(int(fields["n"]), max(most // _num_prompts(fields.get("prompt")), 1))
    if isinstance(choice := fields.get("tool_choice"), dict):
        choice["function"]["name"] = fields["tools"][0]["function"]["name"]


def _left(fields: dict[str, Any]) -> int:
    """Tokens for the answer. A token is a byte, and JSON has more of them than a text."""
    asked = {name: fields[name] for name in ASKED if fields.get(name) is not None}
    if asked.keys() == {"prompt"} and isinstance(asked["prompt"], str):
        return CONTEXT - len(asked["prompt"].encode())
    return CONTEXT - ROOM_FOR_A_TEMPLATE - len(json.dumps(asked, ensure_ascii=False).encode())


def _num_prompts(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], str | list) else 1
