"""What may start: checked here, before any header leaves and before the engine is touched."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from app.dialects import tool_calls
from app.engine_link import EngineLink
from app.errors import out_of_range, try_later
from app.long_texts import LongTexts
from app.schemas.ask import Ask, Conversation, Prompt
from app.schemas.sampling import SamplingFields
from app.tapes.registry import Registry
from app.tapes.store import unreachable
from model import grammar
from model.chat_template import ChatTemplate, ChatTemplateError, Text, chat_parts
from model.config import ModelConfig
from model.messages import LongText
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer

_SHORT = 4096  # characters; tokenizing so few takes less time than a thread's start
_LONG = 1 << 16  # characters; to tokenize so many takes a thread more than 15 ms
_CHARACTERS_PER_TOKEN = 8  # ordinary text has about four


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that can be served: its prompts as ids, its wishes as SamplingParams."""

    prompts: list[list[int]]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Admission:
    tokenizer: Tokenizer
    long_texts: LongTexts
    chat_template: ChatTemplate | None
    config: ModelConfig
    link: EngineLink
    registry: Registry
    max_model_len: int
    capacity: int

    async def admit(self, ask: Ask) -> Admitted:
        """Raises APIError: 422 for what can never be served, 429 and 503 for what may be later.

        The last are checked first, for little, and again when the prompts are known.
        """
        count = len(ask.prompts) * ask.n
        self._check_load(count)
        check_token_ids(ask.fields, self.config.vocab_size)
        await self._check_grammar(ask)
        prompts = [await self.token_ids(prompt, ask.prompt_name) for prompt in ask.prompts]
        max_tokens = room(ask, max(map(len, prompts)), self.context)
        self._check_load(count)
        return Admitted(prompts, sampling_params(ask, max_tokens))

    async def _check_grammar(self, ask: Ask) -> None:
        """Off the loop: a hostile one costs a second."""
        if ask.grammar is None:
            return
        try:
            await asyncio.to_thread(grammar.check, ask.grammar)
        except grammar.GrammarError as error:
            raise out_of_range(ask.grammar_name, str(error)) from None

    @property
    def has_tools(self) -> bool:
        """Whether the model was trained to call tools, in a way that we read."""
        return bool(self.chat_template and tool_calls.understands(self.chat_template.source))

    @property
    def context(self) -> int:
        """How many tokens prompt and output may have together."""
        return self.link.info.max_model_len if self.link.info else self.max_model_len

    async def token_ids(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """Ids of the prompt. Raises APIError 422 when they are none, or fill the context."""
        if not isinstance(prompt, list):
            text = prompt if isinstance(prompt, str) else prompt.text
            head = text[: self.context * _CHARACTERS_PER_TOKEN]
            if len(head) < len(text):  # so that a book is refused before all of it is read
                self._of_good_length(await self._encode(head), name, at_least=0, cut=True)
        return self._of_good_length(await self.encode(prompt, name), name)

    async def encode(self, prompt: Prompt, name: str = "prompt") -> Sequence[int]:
        """Ids of the prompt, however many. Raises APIError 422 where it cannot be encoded."""
        match prompt:
            case str():
                return await self._encode(prompt)
            case list():
                self.check_ids(prompt, name)
                return prompt
            case _:
                return await self._render(prompt)

    def check_ids(self, ids: list[int], name: str) -> None:
        """Raises APIError 422 for an id that the model does not have."""
        size = self.config.vocab_size
        if wrong := [token_id for token_id in ids if not 0 <= token_id < size]:
            raise out_of_range(name, f"token ids go from 0 to {size - 1}, not {wrong[0]}")

    def _of_good_length(
        self, ids: Sequence[int], name: str, *, at_least: int = 1, cut: bool = False
    ) -> list[int]:
        if len(ids) < at_least:
            raise out_of_range(name, "holds no token; give at least one character")
        if len(ids) >= self.context:
            counted = f"more than {len(ids)} tokens" if cut else f"{len(ids)} tokens"
            raise out_of_range(
                name,
                f"has {counted}; this model's context is {self.context} tokens for prompt and "
                f"output together, so it must have from 1 to {self.context - 1}",
            )
        return list(ids)

    async def _encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> Sequence[int]:
        """Off the loop where it takes long, and in another process where it takes longer."""
        if len(text) >= _LONG:
            return await self.long_texts.encode(LongText(text, add_special_tokens, parse_special))
        encode = partial(
            self.tokenizer.encode,
            text,
            add_special_tokens=add_special_tokens,
            parse_special=parse_special,
        )
        return encode() if len(text) <= _SHORT else await asyncio.to_thread(encode)

    async def _render(self, conversation: Conversation) -> list[int]:
        """The model's own way to write a conversation. Raises APIError where it has none."""
        ids: list[int] = []
        for part in await self._parts(conversation):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += await self._encode(
                    part.text, add_special_tokens=False, parse_special=part.trusted
                )
        return ids

    async def _parts(self, conversation: Conversation) -> list[int | Text]:
        if self.chat_template is None:
            raise out_of_range(
                "messages", "this model has no chat template; use /v1/completions or /generate"
            )
        parts = partial(
            chat_parts,
            self.tokenizer,
            self.chat_template,
            conversation.messages,
            **conversation.extra,
        )
        try:
            if len(conversation.text) <= _SHORT and not conversation.extra:
                return parts()
            return await asyncio.to_thread(parts)
        except ChatTemplateError as error:
            raise out_of_range("messages", str(error)) from None

    def check_ready(self) -> None:
        """Raises APIError 503 while the engine takes no work."""
        state = self.link.state
        if state != "ready":
            raise try_later(503, f"the engine is {state}; try again shortly", code=state)
        if not self.registry.store.is_reachable:
            raise unreachable()

    def _check_load(self, count: int) -> None:
        """Whether so many more sequences have a place. Alone, any number of them has."""
        self.check_ready()
        active = self.registry.num_active
        if active and active + count > self.capacity:
            seconds = self.registry.turnover.seconds_to_a_place()
            raise try_later(
                429,
                f"the queue is full; try again in {seconds} s",
                code="queue_full",
                seconds=seconds,
            )


def check_token_ids(fields: SamplingFields, vocab_size: int) -> None:
    """Raises APIError 422 when a token id is named that the model does not have."""
    for param in ("logit_bias", "stop_token_ids"):
        wrong = [token_id for token_id in getattr(fields, param) if token_id >= vocab_size]
        if wrong:
            raise out_of_range(param, f"token ids go from 0 to {vocab_size - 1}, not {wrong[0]}")


def room(ask: Ask, num_prompt: int, context: int) -> int:
    """How many tokens may be generated after so long a prompt: what was asked for, or what fits.

    Raises APIError 422 when what was asked for does not fit.
    """
    left = context - num_prompt
    wanted = left if ask.max_tokens is None else ask.max_tokens
    if ask.exact and wanted > left:
        raise out_of_range(
            ask.max_tokens_name,
            f"{wanted} new tokens and a prompt of {num_prompt} do not fit this "
            f"model's context of {context}; it must be from 1 to {left}",
        )
    max_tokens = min(wanted, left)
    if ask.fields.min_tokens > max_tokens:
        raise out_of_range(
            "min_tokens", f"must be from 0 to {ask.max_tokens_name}, which is {max_tokens} here"
        )
    return max_tokens


def sampling_params(ask: Ask, max_tokens: int) -> SamplingParams:
    """The wire's words -> the sampler's. A request without a seed gets one, to survive restarts."""
    fields = ask.fields
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
        logprobs=ask.logprobs,
        grammar=ask.grammar,
    )
