"""Settings -> command line options: every field becomes a flag, described where it is defined."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic_settings import BaseSettings

from app.api.native.types import GenerateFields

Command = Callable[..., None]

Url = Annotated[
    str | None,
    typer.Option(
        help="A running server, such as 127.0.0.1:8000; by default the model is loaded here.",
        metavar="HOST:PORT",
    ),
]
ServerUrl = Annotated[
    str, typer.Option("--url", help="The running server to ask.", metavar="HOST:PORT")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="TICKERTAPE_API_KEY", help="For a server that wants one.")
]

# Fields of a request that are flags of `generate` and `chat`, and names of `/set` there.
SAMPLING = (
    "max_length",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


def with_options(kind: type[BaseSettings]) -> Callable[[Command], Command]:
    """Give a command one flag per field of `kind`; it gets those that were set in `flags`.

    Flags are strings here, unless they are switches: pydantic checks them like variables and the
    file, in one place.
    """

    def decorate(command: Command) -> Command:
        options = {name: _option(kind, name) for name in kind.model_fields}
        return _with_flags(command, "flags", options, keep=lambda value: True)

    return decorate


def with_sampling(*, chat: bool) -> Callable[[Command], Command]:
    """Give a command one flag per field of SAMPLING; it gets those that were given in `options`.

    What is not given is left out of the request, so that the model's own default counts.
    """

    def decorate(command: Command) -> Command:
        options = {name: _sampling_option(name, chat=chat) for name in SAMPLING}
        return _with_flags(command, "options", options, keep=lambda value: value not in (None, []))

    return decorate


def _with_flags(
    command: Command,
    gathered: str,
    options: dict[str, inspect.Parameter],
    keep: Callable[[Any], bool],
) -> Command:
    """`command` with `options` instead of its parameter `gathered`, which gets their values."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != gathered
    ]

    def wrapper(**values: Any) -> None:
        flags = {name: values.pop(name) for name in options}
        command(**values, **{gathered: {n: value for n, value in flags.items() if keep(value)}})

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    parameters = [*own, *options.values()]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def sampling_field(name: str) -> tuple[type, float | None, float | None]:
    """The type of a field of SAMPLING, and its least and greatest value where it has them."""
    schema: dict[str, Any] = GenerateFields.model_json_schema()["properties"][name]
    number = schema.get("anyOf", [schema])[0]
    kind = {"integer": int, "number": float}.get(number.get("type"), str)
    return kind, number.get("minimum"), number.get("maximum")


def _sampling_option(name: str, *, chat: bool) -> inspect.Parameter:
    kind, low, high = sampling_field(name) if name != "seed" else (int, None, None)  # of 64 bits
    field = GenerateFields.model_fields[name]
    default = _sampling_default(name, chat=chat)
    several = name == "stop"
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} (default: {default})",
        min=low,
        max=high,
        show_default=False,
        metavar="TEXT" if kind is str else "N",
        rich_help_panel="Sampling",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(list[str] if several else kind) | None, option],
    )


def _sampling_default(name: str, *, chat: bool) -> str:
    match name:
        case "seed":
            return "a fresh one"
        case "stop":
            return "none"
        case "max_length" if chat:
            return "until the model ends or its context is full"
        case "max_length" | "temperature" if not chat:
            return str(GenerateFields.model_fields[name].default)
    return "the model's own"


def _option(kind: type[BaseSettings], name: str) -> inspect.Parameter:
    field = kind.model_fields[name]
    default = "" if field.default is None else f" (default: {field.default})"
    flag = f"--{name.replace('_', '-')}"
    switch = field.annotation is bool
    option = typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if switch else flag,
        help=f"{field.description}{default}",
        show_default=False,
        metavar=None if switch else _metavar(field.annotation),
        rich_help_panel="Settings",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(bool if switch else str) | None, option],
    )


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = {part for part in (annotation, *get_args(annotation)) if isinstance(part, type)}
    words = {str: "TEXT", float: "SECONDS", Path: "FILE"}
    return next((word for kind, word in words.items() if kind in kinds), "N")
