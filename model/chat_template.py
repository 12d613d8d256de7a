"""A conversation -> the text, or the token ids, that the model was trained to see it as.

A template is a program that comes with a model file, and messages come from anybody: neither is
trusted. Templates run in jinja2's immutable sandbox, with the settings and helpers of transformers.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from math import inf
from time import monotonic
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from model.errors import ModelLoadError
from model.tokenizer import Tokenizer

_MAX_REPEATED = 1_000_000
_MAX_EXPONENT = 64
_MAX_CHARACTERS = 16_000_000
_MAX_SECONDS = 1.0  # a conversation takes milliseconds

_deadline: ContextVar[float] = ContextVar("deadline", default=inf)

Message = Mapping[str, Any]


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
            ChatTemplateError: the template refuses the messages, tries what the sandbox forbids, or
                takes longer than a second.
        """
        variables = {
            **self._tokens,
            **extra,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        until = _deadline.set(monotonic() + _MAX_SECONDS)
        try:
            return _join_bounded(self._template.generate(variables))
        except SecurityError as error:
            raise ChatTemplateError(f"the chat template is not safe: {error!s:.200}") from error
        except Exception as error:  # a template is a program: it can fail in any way
            raise ChatTemplateError(f"the chat template failed: {error!s:.200}") from error
        finally:
            _deadline.reset(until)


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


def _join_bounded(chunks: Iterable[str]) -> str:
    """Join what a template puts out, but not if it never stops."""
    parts = []
    characters = 0
    for chunk in chunks:
        characters += len(chunk)
        if characters > _MAX_CHARACTERS:
            raise SecurityError("it puts out too much text")
        parts.append(chunk)
    return "".join(parts)


class _GenerationTag(Extension):
    """`{% generation %}` marks the model's own words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are jinja2's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox bounds neither time nor memory: whatever repeats or grows is looked at here.

    A deadline is looked at in every turn of a loop and every call; texts may not grow without end.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        """jinja2's own hook between parsing and compiling."""
        for loop in source.find_all(nodes.For):
            loop.iter = _filtered(cast(nodes.Expr, loop.iter), "_in_time")
        for concat in list(source.find_all(nodes.Concat)):
            concat.nodes = [_filtered(nodes.List(concat.nodes), "_bounded_join")]
        return super()._generate(source, *args, **options)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped:
            _check_widths(value.__self__)
        return wrapped

    def call(self, context: Context, function: Any, /, *args: Any, **values: Any) -> Any:
        _check_time()
        if isinstance(owner := getattr(function, "__self__", None), str):
            _check_method(owner, function.__name__, args)
        return super().call(context, function, *args, **values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > _MAX_EXPONENT:
            raise SecurityError("an exponent is too large")
        if operator == "*" and _repeated_size(left, right) > _MAX_REPEATED:
            raise SecurityError("a repetition is too long")
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _check_time() -> None:
    if monotonic() > _deadline.get():
        raise SecurityError(f"it takes longer than {_MAX_SECONDS:g} s")


def _check_size(characters: int) -> None:
    if characters > _MAX_CHARACTERS:
        raise SecurityError("it makes too long a text")


def _check_widths(template: str) -> None:
    """Of %-formats and str.format: '%999999999d' is a gigabyte."""
    if any(int(digits) > _MAX_REPEATED for digits in re.findall(r"\d{7,}", template)):
        raise SecurityError("a format is too wide")


def _check_method(owner: str, name: str, args: Sequence[Any]) -> None:
    """Methods of strings that give longer ones."""
    _check_paddings(args)
    if name == "replace" and len(args) > 1:
        _check_replaced(owner, *args[:2])


def _check_paddings(args: Iterable[Any]) -> None:
    if any(isinstance(arg, int) and arg > _MAX_REPEATED for arg in args):
        raise SecurityError("a padding is too long")


def _check_replaced(text: str, old: Any, new: Any) -> None:
    _check_size(len(text) + text.count(str(old)) * len(str(new)))


def _in_time(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check_time()
        yield item


def _bounded_join(items: Sequence[Any]) -> str:
    parts = [str(item) for item in items]
    _check_size(sum(map(len, parts)))
    return "".join(parts)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """jinja2's filter, for plain text, and not without end."""
    _check_replaced(str(text), old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _padding(pad: Callable[..., str]) -> Callable[..., str]:
    """One of jinja2's filters that make a text wider."""

    @wraps(pad)
    def padding(*args: Any, **values: Any) -> str:
        _check_paddings([*args, *values.values()])
        return pad(*args, **values)

    return padding


def _format(text: Any, *args: Any, **values: Any) -> str:
    """jinja2's filter, and no width without end."""
    _check_widths(str(text))
    return str(text) % (values or args)


def _repeated_size(left: Any, right: Any) -> int:
    """How long `left * right` is, where one of them is a number and the other a sequence."""
    if isinstance(left, int):
        left, right = right, left
    return len(left) * right if isinstance(left, Sized) and isinstance(right, int) else 0


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


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters |= {
        "tojson": _tojson,
        "replace": _replace,
        "format": _format,
        "center": _padding(environment.filters["center"]),
        "indent": _padding(environment.filters["indent"]),
        "_in_time": _in_time,
        "_bounded_join": _bounded_join,
    }
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


_ENVIRONMENT = _environment()
