"""Jobs that make a request ready for the engine, and their results. No sockets, no limits.

Chat templates come with a model file, texts and schemas come from strangers. The process that does
the jobs gives each a bound on processor time and memory (model/tokenizer_process.py).
"""

from functools import cache

import orjson

from model.protocol.errors import ModelLoadError
from model.protocol.messages import (
    Conversation,
    Decode,
    Decoded,
    Encode,
    Encoded,
    ForcedCalls,
    Grammar,
    Job,
    JSONSchema,
    MakeGrammar,
    Refused,
    Result,
    Stopped,
    Tokenize,
    Tokenized,
    id_array,
    ids_of,
)
from model.text import grammar
from model.text.chat_template import (
    ChatTemplate,
    ChatTemplateError,
    encode_chat,
    encode_continuation,
)
from model.text.grammar import GrammarError
from model.text.tokenizer import Tokenizer

_CHARACTERS_PER_TOKEN = 8  # ordinary text has about four


class Preparation:
    """Does jobs with the tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None) -> None:
        """`chat_template` is compiled by the first job that needs it: it may be hostile."""
        self._tokenizer = tokenizer
        self._source = chat_template
        self._template: ChatTemplate | None = None

    def do(self, job: Job) -> Result:
        """Never raises: what is wrong with a job is its result."""
        try:
            return self._do(job)
        except MemoryError:
            return Stopped("memory")
        except (ChatTemplateError, ModelLoadError, GrammarError, ValueError) as error:
            return Refused(str(error))

    def _do(self, job: Job) -> Result:
        match job:
            case Encode():
                encoded = [self._encode(prompt, job.limit) for prompt in job.prompts]
                return Encoded([count for count, _ in encoded], [ids for _, ids in encoded])
            case Tokenize():
                return self._tokenize(job.prompt)
            case Decode():
                decode = self._tokenizer.decode
                return Decoded(
                    [decode(ids_of(ids), skip_special=job.skip_special) for ids in job.ids]
                )
            case MakeGrammar():
                return Grammar(_grammar(job.wanted))

    def _encode(self, prompt: str | Conversation, limit: int | None) -> tuple[int, bytes]:
        """The number of tokens, and the ids if they are fewer than `limit`."""
        if isinstance(prompt, str) and limit is not None:
            head = prompt[: limit * _CHARACTERS_PER_TOKEN]
            if len(head) < len(prompt):  # so that a book is refused before all of it is read
                count = len(self._tokenizer.encode(head))
                if count >= limit:
                    return count, b""
        ids = self._ids(prompt)
        fits = limit is None or len(ids) < limit
        return len(ids), id_array(ids).tobytes() if fits else b""

    def _ids(self, prompt: str | Conversation) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        if prompt.continues:
            return encode_continuation(self._tokenizer, self._chat(), prompt.messages)
        return encode_chat(self._tokenizer, self._chat(), prompt.messages, **prompt.extra)

    def _chat(self) -> ChatTemplate:
        if self._template is None:
            if self._source is None:
                raise ChatTemplateError("this model has no chat template")
            tokens = self._tokenizer.bos_token, self._tokenizer.eos_token
            self._template = ChatTemplate(self._source, *tokens)
        return self._template

    def _tokenize(self, prompt: str | Conversation) -> Tokenized:
        ids = self._ids(prompt)
        piece = cache(self._tokenizer.piece)
        return Tokenized(len(ids), orjson.dumps(ids), orjson.dumps([piece(id) for id in ids]))


def _grammar(wanted: JSONSchema | ForcedCalls) -> str:
    """Raises GrammarError for one that no engine could follow."""
    match wanted:
        case JSONSchema(schema):
            made = grammar.json_schema(schema)
        case ForcedCalls():
            made = grammar.lark(
                grammar.forced_calls(
                    wanted.functions,
                    opening=wanted.opening,
                    closing=wanted.closing,
                    several=wanted.several,
                )
            )
    grammar.check(made)
    return made
