"""`tickertape serve | cluster | generate | chat | bench`: the command line.

Only what a command needs is imported, inside it: `tickertape generate --url ...` loads no torch.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from app import standard_streams
from app.client import Client, Done, Event, Options, TickertapeError, Token
from app.options import SettingsError, load, with_options
from app.settings import ClusterSettings, EngineSettings, Settings
from model.errors import ModelLoadError

if TYPE_CHECKING:
    from app.local import LocalModel

app = typer.Typer(
    name="tickertape",
    help="Serve a language model whose every answer is a tape, and talk to it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
notes = Console(stderr=True, highlight=False)

Url = Annotated[
    str | None, typer.Option(help="A running server; by default the model is loaded right here.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="TICKERTAPE_API_KEY", help="For a server that wants one.")
]
MaxLength = Annotated[int, typer.Option(min=1, help="New tokens at most.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw among the k likeliest only; 0 is all.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest that reach p.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]


@app.command()
@with_options(Settings)
def serve(flags: dict[str, Any]) -> None:
    """Serve a model over HTTP, with a live page at / and the API's documentation at /docs."""
    from app.start import run

    run(load(Settings, flags))


@app.command()
@with_options(ClusterSettings)
def cluster(flags: dict[str, Any]) -> None:
    """Serve a model by several replicas on Ray Serve, with Redis for the tapes."""
    from app.cluster import run

    run(partial(load, ClusterSettings, flags))


@app.command()
@with_options(EngineSettings)
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    flags: dict[str, Any],
    url: Url = None,
    api_key: ApiKey = None,
    max_length: MaxLength = 100,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
) -> None:
    """Continue a prompt, typing as the tokens come."""
    options = _options(max_length, temperature, top_k, top_p, seed)
    asyncio.run(_print_all(_events(prompt, url, api_key, flags, options)))


@app.command()
@with_options(EngineSettings)
def chat(
    flags: dict[str, Any],
    url: Url = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="What the model is told about itself.")] = None,
    max_length: MaxLength = 400,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends the conversation."""
    options = _options(max_length, temperature, top_k, top_p, seed)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_chat(url, api_key, flags, system, options))


@app.command(
    add_help_option=False,  # --help too is for the benchmark, which knows its options
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Measure speed and memory on this machine, beside other servers if you like."""
    from bench.serve import main

    main(context.args)


def _options(
    max_length: int, temperature: float, top_k: int, top_p: float, seed: int | None
) -> Options:
    options = Options(max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p)
    if seed is not None:
        options["seed"] = seed
    return options


async def _events(
    prompt: str, url: str | None, api_key: str | None, flags: dict[str, Any], options: Options
) -> AsyncIterator[Event]:
    async with _model(url, api_key, flags) as model:
        async for event in model.generate(prompt, **options):
            yield event


def _model(
    url: str | None, api_key: str | None, flags: dict[str, Any]
) -> "contextlib.AbstractAsyncContextManager[Client | LocalModel]":
    """A running server, or the model right here. Raises SettingsError for flags of the other."""
    if url is None:
        from app.local import LocalModel

        return LocalModel(load(EngineSettings, flags))
    if ignored := [
        f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None
    ]:
        raise SettingsError(f"{', '.join(ignored)}: the server at --url decides that; leave out")
    return Client(url, api_key=api_key)


async def _chat(
    url: str | None,
    api_key: str | None,
    flags: dict[str, Any],
    system: str | None,
    options: Options,
) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    async with _model(url, api_key, flags) as model:
        while line := await asyncio.to_thread(_ask):
            messages.append({"role": "user", "content": line})
            text = await _print_all(model.chat(messages, **options))
            messages.append({"role": "assistant", "content": text})


def _ask() -> str:
    """What the user says next; nothing at the end of the input."""
    try:
        return notes.input("[bold]you:[/bold] ").strip()
    except EOFError:
        return ""


async def _print_all(events: AsyncIterator[Event]) -> str:
    """Type the tokens as they come, then one line of figures; return the text."""
    text = ""
    async for event in events:
        if isinstance(event, Token):
            text += event.text
            typer.echo(event.text, nl=False)  # not through rich, which would replace :emoji: names
        elif isinstance(event, Done):
            typer.echo()
            notes.print(_figures(event), style="dim")
    return text


def _figures(done: Done) -> str:
    figures = [f"{done.usage['completion_tokens']} tokens"]
    if (ttft := done.timings["ttft_ms"]) is not None:
        figures.append(f"first after {ttft:.0f} ms")
    if (rate := done.timings["tokens_per_second"]) is not None:
        figures.append(f"{rate:.0f} tokens/s")
    return " · ".join([*figures, done.finish_reason])


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 1, not a traceback."""
    standard_streams.open_missing()
    try:
        app()
    except (SettingsError, ModelLoadError, TickertapeError) as error:
        notes.print(f"tickertape: {error}", style="red", markup=False, emoji=False, soft_wrap=True)
        raise SystemExit(1) from None
