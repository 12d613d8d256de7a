"""A conversation -> the text, or the token ids, that the model was trained to see it as.

A template is a program that comes with a model file, and messages come from anybody: neither is
trusted. Templates run in jinja2's immutable sandbox, with the settings and helpers of transformers.
The sandbox keeps a template away from the rest of the process. It bounds neither time nor memory:
compile and render in a process that has limits (model/tokenizer_process.py).
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from model.protocol.errors import ModelLoadError
from model.protocol.messages import Message
from model.text.tokenizer import Tokenizer


class ChatTemplateError(ValueError):
    """The template cannot render these messages; the text says why, in the template's own words."""


class ChatTemplate:
    """The chat format of one model. Immutable, so any thread may render."""

    def __init__(self, source: str, bos_token: str | None, eos_token: str | None) -> None:
        """Compile `source`. Raises ModelLoadError if it is not a valid template."""
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise ModelLoadError(f"the model's chat template is broken ({error!s:.200})") from error
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The conversation as text, ending where the model's answer begins.

        `extra` are further variables of the template (`tools`, `enable_thinking`, ...).
        The text alone does not tell a control token that the template wrote from one that a message
        quotes: to get ids, use `encode_chat`, never `Tokenizer.encode(..., parse_special=True)`.

        Raises:
            ChatTemplateError: the template refuses the messages, or tries what the sandbox forbids.
            MemoryError: it needs more than there is.
        """
        variables = {
            **self._tokens,
            **extra,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except MemoryError:
            raise
        except SecurityError as error:
            raise ChatTemplateError(f"the chat template is not safe: {error!s:.200}") from error
        except Exception as error:  # a template is a program: it can fail in any way
            raise ChatTemplateError(f"the chat template failed: {error!s:.200}") from error


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a conversation; in a trusted one control tokens count as such."""

    text: str
    trusted: bool = False


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **extra: Any,
) -> list[int]:
    """The token ids of a conversation, in which only the template can write control tokens.

    Raises:
        ChatTemplateError: as `ChatTemplate.render`.
        ValueError: a message holds lone surrogates.
    """
    ids: list[int] = []
    for part in chat_parts(
        tokenizer, template, messages, add_generation_prompt=add_generation_prompt, **extra
    ):
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += tokenizer.encode(part.text, add_special_tokens=False, parse_special=part.trusted)
    return ids


def encode_continuation(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> list[int]:
    """What follows an answer that is not here: its end, the `messages`, and the next turn's begin.

    Raises:
        ChatTemplateError: as `ChatTemplate.render`, or the template changes earlier answers.
        ValueError: a message holds lone surrogates.
    """
    mark = secrets.token_hex(16)
    before = [{"role": "user", "content": "."}, {"role": "assistant", "content": mark}]
    parts = chat_parts(tokenizer, template, [*before, *messages])
    texts = [part.text for part in parts if isinstance(part, Text)]
    if sum(text.count(mark) for text in texts) != 1:
        raise ChatTemplateError("this model's chat template changes earlier answers; send them all")
    ids: list[int] = []
    behind = False
    for part in parts:
        if isinstance(part, int):
            ids += [part] * behind
            continue
        text = part.text
        if mark in text:
            behind, text = True, text.partition(mark)[2]
        if behind:
            ids += tokenizer.encode(text, add_special_tokens=False, parse_special=part.trusted)
    return ids


def chat_parts(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **extra: Any,
) -> list[int | Text]:
    """What `encode_chat` encodes, one after the other: control tokens as ids, and texts.

    The conversation is rendered twice: as it is, and with every character that could begin a
    control token hidden in all that the caller gave. If both have the same control tokens, then
    none came from a message, and the first is encoded as the model's authors would. Otherwise the
    second is: its control tokens are the template's, and what lies between is encoded as text,
    with the hidden characters shown again. (A template that looks for such text then misses it.)
    Where there is no such character, once is enough.

    Raises:
        ChatTemplateError: as `ChatTemplate.render`.
    """
    rendered = template.render(messages, add_generation_prompt=add_generation_prompt, **extra)
    given = [*_strings(messages), *_strings(extra)]
    if not any(initial in text for initial in tokenizer.control_initials for text in given):
        return [Text(rendered, trusted=True)]
    hide, show = _disguise(tokenizer.control_initials, frozenset().union(rendered, *given))
    disguised = template.render(
        _translated(messages, hide),
        add_generation_prompt=add_generation_prompt,
        **_translated(extra, hide),
    )
    pieces = list(tokenizer.split_control(disguised))
    control = [piece for piece in pieces if isinstance(piece, int)]
    if control == [p for p in tokenizer.split_control(rendered) if isinstance(p, int)]:
        return [Text(rendered, trusted=True)]
    return [piece if isinstance(piece, int) else Text(piece.translate(show)) for piece in pieces]


def _disguise(
    characters: frozenset[str], used: frozenset[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Translation tables from `characters` to private ones that nobody `used`, and back."""
    private = (chr(code) for code in range(0x10FFFD, 0xE000, -1) if chr(code) not in used)
    pairs = list(zip(sorted(characters), private, strict=False))
    hide = {ord(character): stand_in for character, stand_in in pairs}
    show = {ord(stand_in): character for character, stand_in in pairs}
    return hide, show


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON-like value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _translated(value: Any, table: dict[int, str]) -> Any:
    """A JSON-like value with every string in it translated, keys too."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {_translated(key, table): _translated(item, table) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_translated(item, table) for item in value]
    return value


class _GenerationTag(Extension):
    """`{% generation %}` marks the model's own words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are jinja2's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """jinja2's own takes any name, so a template could plant `__class__` and the like in one."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        values = dict(*args, **values)
        for name in values:
            _refuse_private(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace must not hold {name!r:.80}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not jinja2's own filter, which escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


_ENVIRONMENT = _environment()
