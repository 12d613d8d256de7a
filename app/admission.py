"""What may start: checked here, before any header leaves and before the engine is touched."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from app.caller import Caller
from app.errors import APIError, context_exceeded, out_of_range, try_later
from app.processes.engine_client import EngineClient
from app.processes.tokenizer_client import TokenizerClient
from app.sampling_defaults import chosen
from app.tapes.generation_request import GenerationRequest, Prompt
from app.tapes.registry import Registry
from app.tapes.stores.base import unreachable
from model.checkpoints.config import ModelConfig
from model.protocol.messages import (
    Conversation,
    Decode,
    Encode,
    Tokenize,
    Tokenized,
    id_array,
    ids_of,
)
from model.protocol.sampling_params import SamplingDefaults, SamplingParams
from model.text import tool_calls
from model.text.tokenizer import Tokenizer

# What is done right here, because to have it done elsewhere takes as long.
_FEW_CHARACTERS = 4096
_FEW_TOKENS = 256


async def calls_tools(
    tokenizer_client: TokenizerClient, tokenizer: Tokenizer, chat_template: str | None
) -> bool:
    """Whether the model was trained to call tools, in a way that we read: the template shows it."""
    if chat_template is None or not tool_calls.mentioned(chat_template):
        return False
    try:
        encoded = await tokenizer_client.encode(Encode([tool_calls.CALLING]), client="")
    except APIError as error:  # the template fails, or the process did
        return error.status_code != 422
    return tool_calls.is_ours(tokenizer.decode(ids_of(encoded.ids[0]), skip_special=False))


@dataclass(frozen=True, slots=True)
class Admission:
    tokenizer: Tokenizer
    tokenizer_client: TokenizerClient
    chat_template: str | None
    has_tools: bool  # whether the model was trained to call tools, in a way that we read
    config: ModelConfig
    defaults: SamplingDefaults
    link: EngineClient
    registry: Registry
    max_model_len: int
    capacity: int

    async def admit(
        self, request: GenerationRequest, caller: Caller
    ) -> tuple[list[list[int]], SamplingParams]:
        """The prompts as token ids, and what the sampler is told.

        Raises APIError: 422 for what can never be served, 429 and 503 for what may be later.

        The last are checked first, for little, and again when the prompts are known. A caller who
        leaves meanwhile raises CallerLeftError.
        """
        self.check_load(caller.client, request.num_choices)
        check_token_ids(request.params, self.config.vocab_size)
        prompts = await self.token_ids(request.prompts, request.names.prompt, caller)
        grammar = await self._grammar(request, caller)
        max_tokens = room(request, max(map(len, prompts)), self.context)
        self.check_load(caller.client, request.num_choices)
        return prompts, admitted_params(request, max_tokens, self.defaults, grammar)

    async def _grammar(self, request: GenerationRequest, caller: Caller) -> str | None:
        if request.constraint is None:
            return None
        name = request.names.constraint
        making = self.tokenizer_client.grammar(request.constraint, caller.client, name)
        return await caller.unless_left(making)

    @property
    def context(self) -> int:
        """How many tokens prompt and output may have together."""
        return self.link.info.max_model_len if self.link.info else self.max_model_len

    async def token_ids(
        self, prompts: Sequence[Prompt], name: str, caller: Caller
    ) -> list[list[int]]:
        """Ids of each prompt. Raises APIError 422 when they are none, or fill the context."""
        texts = [prompt for prompt in prompts if not isinstance(prompt, list)]
        encoded = iter(await self._encoded(texts, name, caller))
        found = []
        for prompt in prompts:
            if isinstance(prompt, list):
                self._check_length(len(prompt), name)
                self.check_ids(prompt, name)
                found.append(prompt)
            else:
                found.append(next(encoded))
        return found

    async def _encoded(
        self, texts: list[str | Conversation], name: str, caller: Caller
    ) -> list[list[int]]:
        if _are_short(texts):
            found = [self.tokenizer.encode(text) for text in texts if isinstance(text, str)]
            for ids in found:
                self._check_length(len(ids), name)
            return found
        self._check_template(texts)
        job = Encode(texts, self.context)
        encoded = await caller.unless_left(self.tokenizer_client.encode(job, caller.client, name))
        for count, text in zip(encoded.counts, texts, strict=True):
            cut = isinstance(text, str) and len(text) > count
            self._check_length(count, name, at_least=cut)
        return [ids_of(ids) for ids in encoded.ids]

    async def tokenized(self, prompt: str | Conversation, name: str, caller: Caller) -> Tokenized:
        """All tokens of a prompt, however many."""
        self._check_template([prompt])
        job = Tokenize(prompt)
        return await caller.unless_left(self.tokenizer_client.tokenize(job, caller.client, name))

    async def texts_of(
        self, prompts: Sequence[list[int]], name: str, caller: Caller, *, skip_special: bool = True
    ) -> list[str]:
        """The text of each list of token ids. Raises APIError 422 for an id that there is not."""
        for ids in prompts:
            self.check_ids(ids, name)
        if sum(map(len, prompts)) <= _FEW_TOKENS:
            return [self.tokenizer.decode(ids, skip_special=skip_special) for ids in prompts]
        job = Decode([id_array(ids).tobytes() for ids in prompts], skip_special)
        decoding = self.tokenizer_client.decode(job, caller.client, name)
        return (await caller.unless_left(decoding)).texts

    async def echo(self, prompts: Sequence[str | list[int]], caller: Caller) -> list[str]:
        """Prompts as texts. Raises APIError 422 for one that fills the context."""
        lists = [prompt for prompt in prompts if isinstance(prompt, list)]
        for ids in lists:
            self._check_length(len(ids), "prompt")
        texts = iter(await self.texts_of(lists, "prompt", caller))
        return [prompt if isinstance(prompt, str) else next(texts) for prompt in prompts]

    def check_ids(self, ids: list[int], name: str) -> None:
        """Raises APIError 422 for an id that the model does not have."""
        size = self.config.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < size):
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise out_of_range(name, f"token ids go from 0 to {size - 1}, not {wrong}")

    def _check_length(self, count: int, name: str, *, at_least: bool = False) -> None:
        if not count:
            raise out_of_range(name, "holds no token; give at least one character")
        if count >= self.context:
            counted = f"more than {count} tokens" if at_least else f"{count} tokens"
            raise context_exceeded(
                name,
                self.context,
                f"the prompt has {counted}. It must have from 1 to {self.context - 1}, because the "
                "output counts too",
            )

    def _check_template(self, texts: Sequence[str | Conversation]) -> None:
        if self.chat_template is None and any(isinstance(text, Conversation) for text in texts):
            raise out_of_range(
                "messages", "this model has no chat template; use /v1/completions or /generate"
            )

    def check_ready(self) -> None:
        """Raises APIError 503 while the engine takes no work."""
        state = self.link.state
        if state != "ready":
            raise try_later(503, f"the engine is {state}; try again shortly", code=state)
        if why := self.registry.store.why_unavailable:
            raise unreachable(why)

    def check_load(self, client: str, count: int) -> None:
        """Whether so many more sequences of this client have a place. Raises APIError."""
        self.check_ready()
        if not self.registry.seats.has_place(client, count, self.capacity):
            seconds = self.registry.retry_after.seconds_to_a_place()
            raise try_later(
                429,
                f"the queue is full; try again in {seconds} s",
                code="queue_full",
                seconds=seconds,
            )
        self.registry.check_memory(client)


def _are_short(texts: Sequence[str | Conversation]) -> bool:
    """Plain texts of so few characters together that they are tokenized right here."""
    if not all(isinstance(text, str) for text in texts):
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) <= _FEW_CHARACTERS


class NamesTokens(Protocol):
    """Fields of a request that hold token ids."""

    @property
    def logit_bias(self) -> Mapping[int, float]: ...

    @property
    def stop_token_ids(self) -> Collection[int]: ...


def check_token_ids(fields: NamesTokens, vocab_size: int) -> None:
    """Raises APIError 422 when a token id is named that the model does not have."""
    named = {"logit_bias": fields.logit_bias, "stop_token_ids": fields.stop_token_ids}
    for param, token_ids in named.items():
        wrong = [token_id for token_id in token_ids if token_id >= vocab_size]
        if wrong:
            raise out_of_range(param, f"token ids go from 0 to {vocab_size - 1}, not {wrong[0]}")


def room(request: GenerationRequest, num_prompt: int, context: int) -> int:
    """How many tokens may be generated after so long a prompt: what was asked for, or what fits.

    Raises APIError 422 when what was asked for does not fit.
    """
    left, name = context - num_prompt, request.names.max_tokens
    wanted = left if request.max_tokens is None else request.max_tokens
    if request.exact and wanted > left:
        raise context_exceeded(
            name,
            context,
            f"you requested {num_prompt + wanted} tokens: {num_prompt} in the prompt and {wanted} "
            f"new ones. {name} must be from 1 to {left}, or the prompt shorter",
        )
    max_tokens = min(wanted, left)
    if request.params.min_tokens > max_tokens:
        raise out_of_range("min_tokens", f"must be from 0 to {name}, which is {max_tokens} here")
    return max_tokens


def admitted_params(
    request: GenerationRequest,
    max_tokens: int,
    defaults: SamplingDefaults,
    grammar: str | None = None,
) -> SamplingParams:
    """What the sampler is told, with the model's defaults where the request gives nothing."""
    return msgspec.structs.replace(
        request.params,
        max_tokens=max_tokens,
        grammar=grammar,
        **chosen(request.params, request.given, defaults),
    )
