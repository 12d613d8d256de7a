"""What a dialect wants generated, in words common to all dialects."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.protocol.messages import Conversation, ForcedCalls, JSONSchema
from model.protocol.sampling_params import SamplingParams

Prompt = str | list[int] | Conversation


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Under which names the dialect has some fields: errors name them."""

    prompt: str = "prompt"
    max_tokens: str = "max_length"
    constraint: str = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request before admission: prompts are texts, and nothing was compared with the model."""

    prompts: Sequence[Prompt]
    params: SamplingParams  # as sent; admission adds max_tokens and grammar
    given: frozenset[str]  # the fields of `params` that the model's defaults do not replace
    max_tokens: int | None  # None: as many as fit the context
    exact: bool = True  # whether max_tokens must fit; else it is lowered to what does
    n: int = 1  # choices for each prompt
    constraint: JSONSchema | ForcedCalls | None = None  # what the answer must follow
    priority: int = 0  # of one client's requests, lower goes first
    cache_salt: str = ""  # cached prefixes are shared only with requests that have the same
    names: FieldNames = FieldNames()

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n
