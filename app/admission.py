"""What may start: checked here, before any header leaves and before the engine is touched."""

import asyncio
import secrets
from dataclasses import dataclass

from app.engine_link import EngineLink
from app.errors import out_of_range, try_later
from app.schemas.native import GenerateFields
from app.tapes.registry import Registry
from model.config import ModelConfig
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer

_SHORT = 4096  # characters; tokenizing so few takes less time than a thread's start
_CHARACTERS_PER_TOKEN = 8  # ordinary text has about four


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that can be served: its prompt as ids, its wishes as SamplingParams."""

    prompt_ids: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Admission:
    tokenizer: Tokenizer
    config: ModelConfig
    link: EngineLink
    registry: Registry
    max_model_len: int
    capacity: int

    async def admit(self, fields: GenerateFields) -> Admitted:
        """Raises APIError: 422 for what can never be served, 429 and 503 for what may be later.

        The last are checked first, for little, and again when the prompt is known.
        """
        self._check_load()
        check_token_ids(fields, self.config.vocab_size)
        prompt_ids = await self._tokenize(fields.prompt)
        max_tokens = room(fields, len(prompt_ids), self.context)
        self._check_load()
        return Admitted(prompt_ids, sampling_params(fields, max_tokens))

    @property
    def context(self) -> int:
        """How many tokens prompt and output may have together."""
        return self.link.info.max_model_len if self.link.info else self.max_model_len

    async def _tokenize(self, prompt: str) -> list[int]:
        """Ids of the prompt. Raises APIError 422 when they are none, or fill the context."""
        head = prompt[: self.context * _CHARACTERS_PER_TOKEN]
        prompt_ids = await self._encode(head)
        if len(prompt_ids) < self.context and len(head) < len(prompt):
            head, prompt_ids = prompt, await self._encode(prompt)
        if not prompt_ids:
            raise out_of_range("prompt", "holds no token; give at least one character")
        if len(prompt_ids) >= self.context:
            count = len(prompt_ids)
            counted = f"{count} tokens" if head is prompt else f"more than {count} tokens"
            raise out_of_range(
                "prompt",
                f"has {counted}; this model's context is {self.context} tokens for prompt and "
                f"output together, so it must have from 1 to {self.context - 1}",
            )
        return prompt_ids

    async def _encode(self, text: str) -> list[int]:
        if len(text) <= _SHORT:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    def check_ready(self) -> None:
        """Raises APIError 503 while the engine takes no work."""
        state = self.link.state
        if state != "ready":
            raise try_later(503, f"the engine is {state}; try again shortly", code=state)

    def _check_load(self) -> None:
        self.check_ready()
        if self.registry.num_active >= self.capacity:
            seconds = self.registry.turnover.seconds_to_a_place()
            raise try_later(
                429,
                f"the queue is full; try again in {seconds} s",
                code="queue_full",
                seconds=seconds,
            )


def check_token_ids(fields: GenerateFields, vocab_size: int) -> None:
    """Raises APIError 422 when a token id is named that the model does not have."""
    for param in ("logit_bias", "stop_token_ids"):
        wrong = [token_id for token_id in getattr(fields, param) if token_id >= vocab_size]
        if wrong:
            raise out_of_range(param, f"token ids go from 0 to {vocab_size - 1}, not {wrong[0]}")


def room(fields: GenerateFields, num_prompt: int, context: int) -> int:
    """How many tokens may be generated: what was asked for, or if it was not, what fits.

    Raises APIError 422 when what was asked for does not fit.
    """
    left = context - num_prompt
    if "max_length" in fields.model_fields_set and fields.max_length > left:
        raise out_of_range(
            "max_length",
            f"{fields.max_length} new tokens and a prompt of {num_prompt} do not fit this "
            f"model's context of {context}; it must be from 1 to {left}",
        )
    max_tokens = min(fields.max_length, left)
    if fields.min_tokens > max_tokens:
        raise out_of_range(
            "min_tokens", f"must be from 0 to max_length, which is {max_tokens} here"
        )
    return max_tokens


def sampling_params(fields: GenerateFields, max_tokens: int) -> SamplingParams:
    """The wire's words -> the sampler's. A request without a seed gets one, to survive restarts."""
    return SamplingParams(
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if fields.seed is None else fields.seed,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=fields.logit_bias,
        stop=tuple(fields.stop),
        stop_token_ids=tuple(fields.stop_token_ids),
        ignore_eos=fields.ignore_eos,
        min_tokens=fields.min_tokens,
        logprobs=fields.logprobs,
    )
