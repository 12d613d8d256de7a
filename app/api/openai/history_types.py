"""What clients put into earlier turns besides a turn: taken with any value, and left out.

Clients send answers back as their SDK gave them, and frameworks add their own notes. This is the
one list of those fields, for each kind of object; docs/compatibility.md says whose they are. What
is in neither the object nor this list is refused unless it is null: sound, pictures and
`function_call` would change the answer.
"""

from typing import Final, Literal, get_args

_REASONING: Final = {
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "reasoning_opaque",
    "reasoning_text",
    "thinking",
    "thinking_blocks",
}
# Marks for caches and notes of frameworks.
_NOTES: Final = {
    "cache_control",
    "extra_content",
    "prompt_cache_breakpoint",
    "provider_specific_fields",
}

MESSAGE: Final = frozenset(
    _REASONING
    | _NOTES
    | {"additional_kwargs", "annotations", "id", "parsed", "response_metadata", "usage_metadata"}
)
PART: Final = frozenset(_NOTES | {"annotations", "citations", "id", "index", "logprobs", "parsed"})
CALL: Final = frozenset(_NOTES | {"index"})
FUNCTION: Final = frozenset(_NOTES | {"parsed_arguments"})
TOOL: Final = frozenset(_NOTES)
ITEM: Final = frozenset(
    _REASONING | _NOTES | {"caller", "async", "id", "parsed", "parsed_arguments", "phase", "status"}
)

# Types of content parts that hold no words of a turn.
ReasoningPartType = Literal["reasoning", "reasoning_content", "redacted_thinking", "thinking"]
REASONING_PARTS: Final = get_args(ReasoningPartType)
