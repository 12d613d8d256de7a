"""`tickertape generate`: continue a prompt."""

import contextlib
import sys
from typing import Annotated, Any

import typer

from app.cli.options import ApiKey, Url, with_options, with_sampling
from app.cli.source import named, source
from app.cli.terminal import Typed, run, waiting
from app.settings import EngineSettings, SettingsError
from tickertape import Options


@with_options(EngineSettings)
@with_sampling(chat=False)
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    flags: dict[str, Any],
    options: Options,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a prompt, typing as the tokens come."""
    text = _from_stdin() if prompt == "-" else prompt
    run(_generate(_readable(text), url, api_key, flags, options))


def _from_stdin() -> str:
    """All of it, without the line end that `echo` and editors put behind the last line."""
    text = sys.stdin.read().removesuffix("\n") if sys.stdin else ""
    if not text:
        raise SettingsError("- reads the prompt from stdin, which is empty; pipe a text into it")
    return text


def _readable(text: str) -> str:
    """Bytes of the command line that are no UTF-8 become replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def _generate(
    prompt: str, url: str | None, api_key: str | None, flags: dict[str, Any], options: Options
) -> None:
    model = source(url, api_key, flags)
    async with contextlib.AsyncExitStack() as stack:
        with waiting(f"loading {named(url, flags)}"):
            await stack.enter_async_context(model)
        await Typed().type_all(model.generate(prompt, **options))
