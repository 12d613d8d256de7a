"""What every surface that generates takes: how to choose tokens, and what to do about readers."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field, PlainValidator, WithJsonSchema, create_model

from app.api.validation import MODEL_LIMIT, Entries, Range, StringToo, Wire, refused
from app.tapes.generation_request import GenerationRequest, Prompt
from app.tapes.plan import OnDisconnect
from model.protocol import sampling_params

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
StopString = Annotated[str, Field(min_length=1, max_length=sampling_params.MAX_STOP_LENGTH)]
Stop = Annotated[
    list[StopString],
    Field(max_length=sampling_params.MAX_STOP_STRINGS),
    StringToo(lambda text: [text], {"minLength": 1, "maxLength": sampling_params.MAX_STOP_LENGTH}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{_NUMBER.pattern}$", MODEL_LIMIT: "token_key"},
            "additionalProperties": {"type": "number", "minimum": -_BIAS, "maximum": _BIAS},
        }
    ),
    Entries(sampling_params.MAX_LOGIT_BIAS),
]
CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]


def _option(name: str) -> Any:
    """The pydantic field of one of the sampler's options."""
    kind, option = sampling_params.OPTIONS[name]
    field = Field(sampling_params.default_of(name), description=option.description)
    return Annotated[kind, Range(option.low, option.high)], field


if TYPE_CHECKING:

    class _OptionFields(Wire):
        """The sampler's options."""

else:
    _OptionFields = create_model(
        "_OptionFields",
        __base__=Wire,
        __module__=__name__,
        **{name: _option(name) for name in sampling_params.OPTIONS},
    )


class DrawFields(_OptionFields):
    """How to draw the next token, and which ones end it.

    A default here counts where the model has none of its own (app/sampling_defaults.py).
    """

    # Fields whose default here goes before the model's.
    own_defaults: ClassVar[frozenset[str]] = frozenset()

    logit_bias: LogitBias = Field({}, description="Added to the logits of these token ids.")
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = Field(
        None, description="Same seed, same request, same tokens. By default a fresh one."
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=sampling_params.MAX_STOP_TOKENS, description="Token ids that end it."
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

    def request(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int | None,
        *,
        logprobs: int | None = None,
        **more: Any,
    ) -> GenerationRequest:
        """What to generate; `more` are other fields of GenerationRequest."""
        given = self.model_fields_set | self.own_defaults
        params = sampling_params.SamplingParams(
            max_tokens=0,
            seed=sampling_params.fresh_seed() if self.seed is None else self.seed,
            logprobs=logprobs,
            **{name: as_the_sampler_has_it(getattr(self, name)) for name in _PARAMS},
        )
        return GenerationRequest(
            prompts=prompts,
            params=params,
            given=frozenset(given if self.seed is not None else given - {"seed"}),
            max_tokens=max_tokens,
            priority=self.priority,
            cache_salt=self.cache_salt or "",
            **more,
        )


# The fields that the sampler has under the same names.
_PARAMS: Final = frozenset(
    SamplingFields.model_fields.keys() & set(sampling_params.SamplingParams.__struct_fields__)
) - {"seed"}


def as_the_sampler_has_it(value: Any) -> Any:
    """SamplingParams are frozen: their lists are tuples."""
    return tuple(value) if isinstance(value, list) else value
