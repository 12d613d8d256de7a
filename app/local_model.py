"""A model without a server: the same engine and the same events, for one caller in this process."""

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from pydantic import ValidationError

from app.admission import admitted_params, check_token_ids, room
from app.api.native.frames import logprobs_data
from app.api.native.types import GenerateFields
from app.errors import APIError, from_validation
from app.processes.engine_client import EngineClient, EngineError, configuration
from app.processes.tokenizer_client import TokenizerClient
from app.sampling_defaults import sampling_defaults
from app.settings import EngineSettings
from app.tapes.tape import Choice, Tape
from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.hub import resolve
from model.protocol.errors import ModelLoadError
from model.protocol.messages import (
    Conversation,
    Encode,
    Generate,
    Message,
    Prefilling,
    Queued,
    Started,
    ids_of,
)
from model.protocol.sampling_params import SamplingParams
from tickertape import Done, Event, GenerationError, Options, Status, TickertapeError, Token

Events = AsyncGenerator[Event, None]


class LocalModel:
    """Loads a model for as long as an `async with` lasts. Raises ModelLoadError on the way in."""

    def __init__(self, settings: EngineSettings) -> None:
        path = resolve(settings.model)
        checkpoint = open_checkpoint(path)
        self._options = configuration(settings, path)
        self._preparation = TokenizerClient(path)
        self._tokenizer = checkpoint.tokenizer()
        self._name = checkpoint.name if Path(settings.model).exists() else settings.model
        self._has_chat_template = checkpoint.chat_template is not None
        self._vocab_size = checkpoint.config.vocab_size
        self._defaults = sampling_defaults(settings, checkpoint)

    async def __aenter__(self) -> Self:
        self._link = EngineClient(self._options)
        await self._link.start()
        if self._has_chat_template:
            await self._preparation.start()
        try:
            self._ready = await self._link.loaded()
        except EngineError as error:
            await self._stop()
            raise ModelLoadError(str(error)) from None
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._preparation.stop()
        await self._link.stop()

    @property
    def _context(self) -> int:
        return self._ready.max_model_len

    async def version(self) -> dict[str, Any]:
        """As `Client.version`: model, dtype, device, max_model_len."""
        ready = self._ready
        return {
            "model": self._name,
            "dtype": ready.dtype,
            "device": ready.device,
            "max_model_len": ready.max_model_len,
        }

    async def generate(self, prompt: str, **options: Unpack[Options]) -> Events:
        """Like `Client.generate`. Raises TickertapeError for what the model cannot honour."""
        fields = _checked(prompt, options)
        prompt_ids = self._tokenizer.encode(fields.prompt)
        async with contextlib.aclosing(self._stream(prompt_ids, fields)) as events:
            async for event in events:
                yield event

    async def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Events:
        """The model's next turn in a conversation of {"role", "content"} messages.

        Without `max_length` the model's end or its context ends it.
        """
        if not self._has_chat_template:
            raise TickertapeError("this model has no chat template; use `tickertape generate`")
        job = Encode([Conversation(messages)])
        try:
            encoded = await self._preparation.encode(job, client="", name="messages")
        except APIError as error:
            raise TickertapeError(error.detail) from error
        prompt_ids = ids_of(encoded.ids[0])
        rest = max(self._context - len(prompt_ids), 1)
        fields = _checked("chat", {"max_length": rest, **options})
        async with contextlib.aclosing(self._stream(prompt_ids, fields)) as events:
            async for event in events:
                yield event

    async def _stream(self, prompt_ids: list[int], fields: GenerateFields) -> Events:
        if len(prompt_ids) >= self._context:
            raise TickertapeError(
                f"the prompt has {len(prompt_ids)} tokens; it must have fewer than {self._context}"
            )
        params = self._params(fields, len(prompt_ids))
        tape = Tape(secrets.token_urlsafe(16), [Choice(len(prompt_ids))])
        salt = fields.cache_salt or ""
        request = Generate(tape.id, prompt_ids, params, fields.priority, salt)
        try:
            async for event in self._link.generate(request):
                tape.record(event)
                if isinstance(event, Queued):
                    yield Status("queued", {"position": event.position})
                elif isinstance(event, Prefilling):
                    yield Status("prefill", {"done": event.done, "total": event.total})
                elif not isinstance(event, Started):
                    yield _client_event(tape)
        except EngineError as error:
            raise TickertapeError(str(error)) from error

    def _params(self, fields: GenerateFields, num_prompt: int) -> SamplingParams:
        request = fields.generation()
        try:
            check_token_ids(request.params, self._vocab_size)
            max_tokens = room(request, num_prompt, self._context)
            return admitted_params(request, max_tokens, self._defaults)
        except APIError as error:
            raise TickertapeError(error.detail) from None


def _checked(prompt: str, options: Options) -> GenerateFields:
    try:
        return GenerateFields.model_validate({"prompt": prompt, **options})
    except ValidationError as error:
        raise TickertapeError(from_validation(error.errors()[0]).detail) from None


def _client_event(tape: Tape) -> Event:
    """The tape's newest entry, as a client of a server would see it. Raises GenerationError."""
    if end := tape.end:
        error = {"message": end.error} if end.error else None
        done = Done(end.finish_reason, asdict(end.usage), asdict(end.timings), tape.id, error)
        if done.finish_reason == "error":
            raise GenerationError(done)
        return done
    entry = tape.entries[-1]
    return Token(entry.text, [entry.token_id], tape.id, tape.last, logprobs_data([entry]) or None)
