"""SamplingParams: how the next token of one sequence is chosen. Plain data, checked at the edge."""

import secrets

import msgspec

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20


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
    model/grammar.py has made and checked: the answer follows it, and ends where it is over.
    `forced` is (n, id): after n tokens of the output comes the token `id`, whatever the logits say.
    The order in which they act is written in `model/sampler.py`.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
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
    def plain(self) -> bool:
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
