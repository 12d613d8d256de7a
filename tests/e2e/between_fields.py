"""What JSON Schema has no words for: how much one field of a request leaves to the others.

Hooks of Schemathesis, which test_schemathesis.py names to it. Lengths of a request that is to be
accepted are lowered to what fits; one that is to be refused stays as it is.
"""

import json
import os
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

CONTEXT = int(os.environ.get("FUZZ_CONTEXT", "512"))
CHOICES = 128
ROOM_FOR_A_TEMPLATE = 32

LENGTHS = ("max_length", "max_tokens", "max_completion_tokens", "max_output_tokens")
DEFAULT_LENGTHS = {"generate": 100, "stream": 100, "create_tape": 100, "complete": 16}
SHORT = {"prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
ASKED = (*SHORT, "instructions")
TIME_ENOUGH = 60


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    meta = case.meta
    if meta is None or meta.generation.mode != GenerationMode.POSITIVE:
        return case
    operation = case.operation.definition.raw["operationId"]
    for fields in (case.body, case.query):
        if isinstance(fields, dict):
            _fit(fields, DEFAULT_LENGTHS.get(operation, CONTEXT))
    if operation == "read_tape" and case.query:
        case.query.pop("after", None)  # how many entries there are, only the tape knows
    return case


def _fit(fields: dict[str, Any], length: int) -> None:
    if fields.get("messages") is not None:
        fields.pop("prompt", None)  # /tokenize takes one; Schemathesis looks at each field alone
    if (left := _left(fields)) < 1:
        fields |= {name: SHORT[name] for name in SHORT if name in fields}
        fields.pop("instructions", None)
        left = _left(fields)
    for name in LENGTHS:
        if fields.get(name) is not None:
            fields[name] = length = min(int(fields[name]), left)
    if fields.get("min_tokens") is not None:
        fields["min_tokens"] = min(int(fields["min_tokens"]), length, left)
    if fields.get("n") is not None:
        fields["n"] = min(int(fields["n"]), CHOICES // _num_prompts(fields.get("prompt")))
    if fields.get("timeout") is not None:  # OpenAI's answers have no word for it but an error
        fields["timeout"] = max(float(fields["timeout"]), TIME_ENOUGH)
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
