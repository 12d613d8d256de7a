"""What every wire type becomes: a generation in words common to all surfaces."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.schemas.sampling import SamplingFields
from model.messages import Conversation, ForcedCalls, JSONSchema

Prompt = str | list[int] | Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a surface wants generated: `n` choices for each prompt.

    `max_tokens` is None for as many as fit; a default is lowered to what fits, unless it was given
    and is `exact`. The names are those under which the surface has the fields.
    """

    prompts: Sequence[Prompt]
    fields: SamplingFields
    max_tokens: int | None
    exact: bool = True
    n: int = 1
    logprobs: int | None = None
    grammar: JSONSchema | ForcedCalls | None = None
    prompt_name: str = "prompt"
    max_tokens_name: str = "max_length"
    grammar_name: str = "response_format"
