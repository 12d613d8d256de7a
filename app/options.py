"""Settings -> command line options: every field becomes a flag, described where it is defined."""

import inspect
from collections.abc import Callable
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings

S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """An option, variable or file holds something that is no setting; one line per fault."""


def load(kind: type[S], flags: dict[str, Any]) -> S:
    """The settings, flags first. Raises SettingsError naming each fault and where to mend it."""
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except TOMLDecodeError as error:
        raise SettingsError(f"tickertape.toml is not valid TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError("; ".join(_fault(fault) for fault in error.errors())) from None


def _fault(fault: Any) -> str:
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"tickertape.toml has no setting '{name}'; docs/settings.md lists those that exist"
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} (or TICKERTAPE_{name.upper()}) {message}, not {fault['input']!r}"


def with_options(kind: type[BaseSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag per field of `kind`; it gets those that were set in `flags`.

    Flags are strings here, unless they are switches: pydantic checks them like variables and the
    file, in one place.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "flags"
        ]
        names = list(kind.model_fields)

        def wrapper(**values: Any) -> None:
            flags = {name: values.pop(name) for name in names}
            command(**values, flags=flags)

        wrapper.__name__ = command.__name__
        wrapper.__doc__ = command.__doc__
        parameters = [*own, *(_option(kind, name) for name in names)]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _option(kind: type[BaseSettings], name: str) -> inspect.Parameter:
    field = kind.model_fields[name]
    default = "" if field.default is None else f" [default: {field.default}]"
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
    return {str: "TEXT", float: "SECONDS", Path | None: "FILE"}.get(annotation, "N")
