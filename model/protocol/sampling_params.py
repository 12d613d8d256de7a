"""SamplingParams: how the next token of one sequence is chosen. Plain data, checked at the edge.

A number that requests may set is an option: its range, its description and its default in requests
stand beside its field here, and the wire types of every dialect are made from them
(app/api/sampling_fields.py).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Option:
    """`Annotated[float, Option(0, 2, "...")]`: a number that requests may set, both ends included.

    `default` stands in requests, where it differs from the field's.
    """

    low: float
    high: float
    description: str
    default: float | None = None


def fresh_seed() -> int:
    """For a request without one, so that it can go on in another engine."""
    return secrets.randbits(63)


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for fields that a request leaves out, as `SamplingParams` has them.

    None where the model's makers advise nothing.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request asks of the sampler, in the field's usual names.

    `temperature == 0` is greedy: the argmax, whatever the other fields say. `top_k == 0`,
    `top_p == 1` and `min_p == 0` switch those cuts off. `logprobs` is None (none wanted) or
    how many of the likeliest alternatives go with each chosen token. `grammar` is one that
    model/text/grammar.py has made and checked: the answer follows it, and ends where it is over.
    `forced` is (n, id): after n tokens of the output comes the token `id`, whatever the logits say.
    The order in which they act is written in `model/sampling/sampler.py`.
    """

    max_tokens: int
    seed: int
    temperature: Annotated[
        float, Option(0, 2, "0 is greedy; higher is more random.", default=0.7)
    ] = 1.0
    top_k: Annotated[int, Option(0, 2**20, "Draw among the k likeliest tokens only; 0 is all.")] = 0
    top_p: Annotated[
        float, Option(0, 1, "Draw among the likeliest tokens that together reach p.")
    ] = 1.0
    min_p: Annotated[
        float, Option(0, 1, "Draw among tokens at least this share as likely as the likeliest.")
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Option(0.01, 10, "Above 1 makes tokens seen in prompt or output less likely."),
    ] = 1.0
    presence_penalty: Annotated[
        float, Option(-2, 2, "Taken from the logit of every token that the output holds.")
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        Option(-2, 2, "Taken from a token's logit once for each time the output holds it."),
    ] = 0.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    grammar: str | None = None
    forced: tuple[int, int] | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def argmax_only(self) -> bool:
        """Whether the argmax is the answer wherever none is `forced`, and nothing else is asked."""
        return (
            self.temperature == 0.0
            and self.logprobs is None
            and self.grammar is None
            and not self.min_tokens
            and not self.logit_bias
            and not self.penalizes
        )

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _options() -> dict[str, tuple[type, Option]]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {
        name: (get_args(hint)[0], get_args(hint)[1])
        for name, hint in hints.items()
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Option)
    }


OPTIONS: Final[Mapping[str, tuple[type, Option]]] = _options()  # their types, by name

_DEFAULTS: Final[dict[str, Any]] = {
    field.name: field.default for field in msgspec.structs.fields(SamplingParams)
}


def default_of(name: str) -> Any:
    """What an option is in a request that leaves it out, where the model advises nothing."""
    default = OPTIONS[name][1].default
    return _DEFAULTS[name] if default is None else default
