"""What every surface that generates takes: how to choose tokens, and what to do about readers."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from app.schemas.fields import OWN, Entries, Range, StringToo, Wire, refused
from model import sampling

_NUMBER = re.compile("(0|[1-9][0-9]{0,9})")


_LAST_ID = 2**31 - 1
_BIAS = 100


def _biases(value: Any) -> dict[int, float]:
    """Written out, because a dictionary of pydantic's would complain of every entry."""
    if not isinstance(value, dict):
        raise ValueError("should be an object")
    biases = {}
    for key, bias in value.items():
        # " 7" and "07" would be other keys, for the same token.
        if not _NUMBER.fullmatch(key) or int(key) > _LAST_ID:
            raise refused(key, f"the key must be an integer from 0 to {_LAST_ID}")
        if type(bias) not in (int, float) or not -_BIAS <= bias <= _BIAS:
            raise refused(key, f"must be a number from {-_BIAS} to {_BIAS}")
        biases[int(key)] = float(bias)
    return biases


TokenId = Annotated[int, Range(0, _LAST_ID, of="token_id")]
StopString = Annotated[str, Field(min_length=1, max_length=sampling.MAX_STOP_LENGTH)]
Stop = Annotated[
    list[StopString],
    Field(max_length=sampling.MAX_STOP_STRINGS),
    StringToo(lambda text: [text], {"minLength": 1, "maxLength": sampling.MAX_STOP_LENGTH}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{_NUMBER.pattern}$", OWN: "token_key"},
            "additionalProperties": {"type": "number", "minimum": -_BIAS, "maximum": _BIAS},
        }
    ),
    Entries(sampling.MAX_LOGIT_BIAS),
]
CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]
OnDisconnect = Literal["pause", "abort", "continue"]


class DrawFields(Wire):
    """How to draw the next token, and which ones end it.

    A default here counts where the model has none of its own (app/sampling_defaults.py).
    """

    # Fields whose default here goes before the model's.
    own_defaults: ClassVar[frozenset[str]] = frozenset()

    temperature: Annotated[float, Range(0, 2)] = Field(
        0.7, description="0 is greedy; higher is more random."
    )
    top_k: Annotated[int, Range(0, 2**20)] = Field(
        0, description="Draw among the k likeliest tokens only; 0 is all."
    )
    top_p: Annotated[float, Range(0, 1)] = Field(
        1.0, description="Draw among the likeliest tokens that together reach p."
    )
    min_p: Annotated[float, Range(0, 1)] = Field(
        0.0, description="Draw among tokens at least this share as likely as the likeliest."
    )
    repetition_penalty: Annotated[float, Range(0.01, 10)] = Field(
        1.0, description="Above 1 makes tokens seen in prompt or output less likely."
    )
    presence_penalty: Annotated[float, Range(-2, 2)] = Field(
        0.0, description="Taken from the logit of every token that the output holds."
    )
    frequency_penalty: Annotated[float, Range(-2, 2)] = Field(
        0.0, description="Taken from a token's logit once for each time the output holds it."
    )
    logit_bias: LogitBias = Field({}, description="Added to the logits of these token ids.")
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = Field(
        None, description="Same seed, same request, same tokens. By default a fresh one."
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=sampling.MAX_STOP_TOKENS, description="Token ids that end it."
    )
    ignore_eos: bool = Field(False, description="Go on past the model's end-of-text token.")


class LeavingFields(Wire):
    """What to do when the reader leaves, and when it takes too long."""

    on_disconnect: OnDisconnect = Field(
        "pause",
        description="When a stream's last reader leaves: wait, stop, or go on. Unstreamed: stop.",
    )
    grace: Annotated[float, Range(0, 3600)] | None = Field(
        None,
        description="Seconds that a paused generation waits for a reader.",
    )
    timeout: Annotated[float, Range(0.001, 86400)] | None = Field(
        None, description="Seconds after which it ends with what there is."
    )


class SamplingFields(DrawFields, LeavingFields):
    """How to choose the continuation, and what to do when the reader leaves."""

    stop: Stop = Field([], description="Texts that end it, left out.")
    min_tokens: Annotated[int, Range(0, 2**20, of="length")] = Field(
        0, description="No end before this many new tokens."
    )
    priority: Annotated[int, Range(-1000, 1000)] = Field(
        0, description="Lower goes first where requests of one client wait for each other."
    )
    cache_salt: CacheSalt | None = Field(
        None, description="Share cached beginnings of prompts only with requests that have it too."
    )
